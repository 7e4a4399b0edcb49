package signature_test

import (
	"crypto/ed25519"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/client/receiver"
	"github.com/fairhook/fairhook/pkg/signature"
)

// As TestTheReceiversVerifierAgrees, with v1a.
func TestTheReceiversVerifierAgreesOnEd25519(t *testing.T) {
	t.Parallel()
	sameFault := map[error]error{
		signature.ErrMalformed: receiver.ErrMalformed, signature.ErrTooOld: receiver.ErrTooOld,
		signature.ErrTooNew: receiver.ErrTooNew, signature.ErrNoMatch: receiver.ErrNoMatch, nil: nil,
	}
	rapid.Check(t, func(rt *rapid.T) {
		var private []ed25519.PrivateKey
		var public []ed25519.PublicKey
		var texts []string
		for range rapid.IntRange(1, 3).Draw(rt, "keys") {
			key := ed25519.NewKeyFromSeed(rapid.SliceOfN(rapid.Byte(), ed25519.SeedSize, ed25519.SeedSize).Draw(rt, "seed"))
			private = append(private, key)
		}
		now := time.Now()
		at := now.Add(rapid.SampledFrom([]time.Duration{0, -time.Minute, -time.Hour, time.Hour}).Draw(rt, "age"))
		id := rapid.StringMatching(`[0-9a-zA-Z_-]{1,40}`).Draw(rt, "id")
		body := rapid.SliceOf(rapid.Byte()).Draw(rt, "body")
		list := signature.SignEd25519(private, id, at, body)
		switch rapid.SampledFrom([]string{"nothing", "id", "list", "body", "key"}).Draw(rt, "changed") {
		case "id":
			id += "x"
		case "list":
			list = rapid.SampledFrom([]string{"v1a,", "v1" + list[3:], "v1,AAAA " + list, list[:len(list)-1], list[:len(list)-3] + "B=="}).Draw(rt, "list")
		case "body":
			body = append(body, rapid.Byte().Draw(rt, "byte"))
		case "key":
			private = []ed25519.PrivateKey{ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
		}
		for _, key := range private {
			public = append(public, key.Public().(ed25519.PublicKey))
			texts = append(texts, signature.PublicKeyText(public[len(public)-1]))
		}
		timestamp := strconv.FormatInt(at.Unix(), 10)
		header := http.Header{}
		header.Set(signature.HeaderID, id)
		header.Set(signature.HeaderTimestamp, timestamp)
		header.Set(signature.HeaderSignature, list)

		ours := signature.VerifyEd25519(public, id, timestamp, list, body, now, signature.DefaultTolerance)
		verifier, err := receiver.NewVerifier(texts...)
		if err != nil {
			rt.Fatal(err)
		}
		if _, theirs := verifier.Verify(header, body); !errors.Is(theirs, sameFault[ours]) {
			rt.Fatalf("the server's verifier says %v, the receiver's %v", ours, theirs)
		}
	})
}

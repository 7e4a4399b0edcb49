package signature_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/client/receiver"
	"github.com/fairhook/fairhook/pkg/signature"
)

// The receiver's package is a module of its own and has its own code. Here both judge
// the same requests: sound ones, and ones with a part of another.
func TestTheReceiversVerifierAgrees(t *testing.T) {
	t.Parallel()
	sameFault := map[error]error{
		signature.ErrMalformed: receiver.ErrMalformed, signature.ErrTooOld: receiver.ErrTooOld,
		signature.ErrTooNew: receiver.ErrTooNew, signature.ErrNoMatch: receiver.ErrNoMatch, nil: nil,
	}
	rapid.Check(t, func(rt *rapid.T) {
		drawKeys := func(name string) (keys [][]byte, texts []string) {
			for range rapid.IntRange(1, 3).Draw(rt, name) {
				key := rapid.SliceOfN(rapid.Byte(), signature.MinKeySize, signature.MaxKeySize).Draw(rt, name)
				keys, texts = append(keys, key), append(texts, signature.SecretPrefix+base64.StdEncoding.EncodeToString(key))
			}
			return keys, texts
		}
		// Far enough from the tolerance's edge that both see the same clock.
		now := time.Now()
		at := now.Add(rapid.SampledFrom([]time.Duration{0, -time.Minute, time.Minute, -time.Hour, time.Hour}).Draw(rt, "age"))
		id := rapid.StringMatching(`[0-9a-zA-Z_-]{1,40}`).Draw(rt, "id")
		body := rapid.SliceOf(rapid.Byte()).Draw(rt, "body")
		keys, texts := drawKeys("key")
		timestamp, list := strconv.FormatInt(at.Unix(), 10), signature.Sign(keys, id, at, body)

		switch rapid.SampledFrom([]string{"nothing", "id", "timestamp", "list", "body", "key", "missing"}).Draw(rt, "changed") {
		case "id":
			id += "x"
		case "timestamp":
			timestamp = rapid.SampledFrom([]string{strconv.FormatInt(at.Unix()+1, 10), "0" + timestamp, "-1", "1e9", "253402300800"}).Draw(rt, "timestamp")
		case "list":
			list = rapid.SampledFrom([]string{"v1,", "v2" + list[2:], "x " + list, list + " v1,AAAA", list[:len(list)-1]}).Draw(rt, "list")
		case "body":
			body = append(body, rapid.Byte().Draw(rt, "byte"))
		case "key":
			keys, texts = drawKeys("other key")
		case "missing":
			list = ""
		}
		header := http.Header{}
		header.Set(signature.HeaderID, id)
		header.Set(signature.HeaderTimestamp, timestamp)
		header.Set(signature.HeaderSignature, list)

		ours := signature.Verify(keys, id, timestamp, list, body, now, signature.DefaultTolerance)
		verifier, err := receiver.NewVerifier(texts...)
		if err != nil {
			rt.Fatal(err)
		}
		if _, theirs := verifier.Verify(header, body); !errors.Is(theirs, sameFault[ours]) {
			rt.Fatalf("the server's verifier says %v, the receiver's %v", ours, theirs)
		}
	})
}

// What the one takes for a secret, the other does too.
func TestTheReceiverReadsTheSameSecrets(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.SampledFrom([]string{"", "whsec_", "whsec"}).Draw(rt, "prefix") +
			rapid.SampledFrom([]func([]byte) string{
				base64.StdEncoding.EncodeToString, base64.RawStdEncoding.EncodeToString, base64.URLEncoding.EncodeToString,
				func(b []byte) string { return string(b) },
				func(b []byte) string { return base64.StdEncoding.EncodeToString(b) + "=" },
			}).Draw(rt, "encoding")(rapid.SliceOfN(rapid.Byte(), 22, 66).Draw(rt, "key"))
		_, ours := signature.ParseSecret(text)
		if _, theirs := receiver.NewVerifier(text); (ours == nil) != (theirs == nil) {
			rt.Fatalf("of %q the server says %v, the receiver %v", text, ours, theirs)
		}
	})
}

package e2etest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/fairhook/fairhook/pkg/client"
)

// caught is a request as a receiver got it.
type caught struct {
	header http.Header
	body   []byte
}

// Everything that a webhook can ask for, on real processes, checked as a receiver
// would that has never heard of Fairhook: by the library of Standard Webhooks, by
// Ed25519 with the key that is published, and by what GitHub and Stripe tell their
// receivers to compute. Through a rotation, none of the receivers sees a request
// that it cannot verify.
func TestAWebhookIsSignedInAllWays(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest, _ := s.run("ingest").ready(), s.run("dispatcher").ready()
	c := s.client(ingest)

	var (
		mu  sync.Mutex
		got []caught // guarded by mu
	)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, caught{r.Header.Clone(), body})
	}))
	defer server.Close()
	deliver := func() caught {
		t.Helper()
		mu.Lock()
		before := len(got)
		mu.Unlock()
		if _, err := c.Submit(t.Context(), client.Event{Tenant: "acme", Type: "a", Payload: []byte(`{"a": 1.50,  "ü":"é"}`)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a request arrives", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) > before
		})
		mu.Lock()
		defer mu.Unlock()
		return got[before]
	}

	// A secret as GitHub's users have it.
	const brought = "It's a Secret to Everybody"
	hook, err := c.Webhooks().Create(t.Context(), client.NewWebhook{
		Tenant: "acme", URL: server.URL, Secret: brought,
		Signatures: []client.SignatureScheme{client.SignStandard, client.SignStandardEd25519, client.SignGitHub, client.SignStripe, client.SignTemplate},
		SignatureTemplate: &client.SignatureTemplate{
			Header: "X-Acme-Signature", Signed: "{id}/{timestamp}/{body}", Algorithm: "hmac-sha512", Encoding: "base64", Value: "s={signature}", Separator: ";s=",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if hook.Secret != brought {
		t.Errorf("the secret became %q", hook.Secret)
	}
	published := func() []ed25519.PublicKey {
		t.Helper()
		response, err := http.Get("http://" + ingest.addr + "/v1/webhooks/" + hook.ID + "/public-keys") // without an API key
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		var set struct {
			Keys []struct{ Kty, Crv, X string }
		}
		if err := json.NewDecoder(response.Body).Decode(&set); err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("public keys: %d, %v", response.StatusCode, err)
		}
		var keys []ed25519.PublicKey
		for _, k := range set.Keys {
			raw, err := base64.RawURLEncoding.DecodeString(k.X)
			if err != nil || len(raw) != ed25519.PublicKeySize || k.Kty != "OKP" || k.Crv != "Ed25519" {
				t.Fatalf("%+v is no key: %v", k, err)
			}
			keys = append(keys, raw)
		}
		return keys
	}

	// verify is each receiver's own check of a request, with the one secret and the
	// one public key that it knows; key is what Standard Webhooks makes of the secret.
	verify := func(what string, r caught, secret string, key []byte, public ed25519.PublicKey, single bool) {
		t.Helper()
		standard, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := standard.Verify(r.body, r.header); err != nil {
			t.Errorf("%s: v1: %v", what, err)
		}
		signed := fmt.Sprintf("%s.%s.%s", r.header.Get("webhook-id"), r.header.Get("webhook-timestamp"), r.body)
		if public != nil {
			found := false
			for _, entry := range strings.Fields(r.header.Get("webhook-signature")) {
				if text, is := strings.CutPrefix(entry, "v1a,"); is {
					raw, err := base64.StdEncoding.DecodeString(text)
					found = found || err == nil && ed25519.Verify(public, []byte(signed), raw)
				}
			}
			if !found {
				t.Errorf("%s: v1a: no entry of %q is by the published key", what, r.header.Get("webhook-signature"))
			}
		}
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(r.body)
		if single && r.header.Get("X-Hub-Signature-256") != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
			t.Errorf("%s: GitHub: %q", what, r.header.Get("X-Hub-Signature-256"))
		}
		items := strings.Split(r.header.Get("Stripe-Signature"), ",")
		mac = hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(strings.TrimPrefix(items[0], "t=") + "." + string(r.body)))
		if !strings.Contains(r.header.Get("Stripe-Signature"), ",v1="+hex.EncodeToString(mac.Sum(nil))) || items[0] != "t="+r.header.Get("webhook-timestamp") {
			t.Errorf("%s: Stripe: %q", what, r.header.Get("Stripe-Signature"))
		}
		mac = hmac.New(sha512.New, []byte(secret))
		mac.Write([]byte(strings.ReplaceAll(strings.Replace(signed, string(r.body), "", 1), ".", "/")))
		mac.Write(r.body)
		if !strings.Contains(";"+r.header.Get("X-Acme-Signature")+";", ";s="+base64.StdEncoding.EncodeToString(mac.Sum(nil))+";") {
			t.Errorf("%s: template: %q", what, r.header.Get("X-Acme-Signature"))
		}
	}

	first := published()
	if len(first) != 1 || "whpk_"+base64.StdEncoding.EncodeToString(first[0]) != hook.PublicKey {
		t.Fatalf("published are %v, created was %s", first, hook.PublicKey)
	}
	request := deliver()
	if !bytes.Equal(request.body, []byte(`{"a": 1.50,  "ü":"é"}`)) {
		t.Errorf("the body is %s", request.body)
	}
	verify("before", request, brought, []byte(brought), first[0], true)

	// A new secret and a new key pair: who knows the old ones and who knows the new
	// ones are both served, but for GitHub's, which has room for one.
	secret, err := c.Webhooks().RotateSecret(t.Context(), hook.ID, client.SecretRotation{Overlap: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := c.Webhooks().RotateSecret(t.Context(), hook.ID, client.SecretRotation{Kind: client.SecretEd25519, Overlap: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.Secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	keys := published()
	if len(keys) != 2 || "whpk_"+base64.StdEncoding.EncodeToString(keys[0]) != pair.PublicKey || !keys[1].Equal(first[0]) {
		t.Fatalf("published are %v", keys)
	}
	eventually(t, "the dispatcher signs with both", func() bool {
		request = deliver()
		return len(strings.Fields(request.header.Get("webhook-signature"))) == 4
	})
	verify("an old receiver", request, brought, []byte(brought), keys[1], true)
	verify("a new receiver", request, secret.Secret, key, keys[0], false)

	// The receiver has changed over: the old ones end at once.
	all, err := c.Webhooks().Secrets(t.Context(), hook.ID)
	if err != nil || len(all) != 4 {
		t.Fatalf("%d secrets, %v", len(all), err)
	}
	for _, one := range all {
		if one.ExpiresAt != nil {
			if err := c.Webhooks().DeleteSecret(t.Context(), hook.ID, one.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "the dispatcher signs with the new ones alone", func() bool {
		request = deliver()
		return len(strings.Fields(request.header.Get("webhook-signature"))) == 2
	})
	verify("afterwards", request, secret.Secret, key, keys[0], true)
	if left := published(); len(left) != 1 || !left[0].Equal(keys[0]) {
		t.Errorf("published are %v", left)
	}
}

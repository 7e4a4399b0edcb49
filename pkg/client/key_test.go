package client_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
)

func TestWithSigningSecret(t *testing.T) {
	t.Parallel()
	key := []byte(strings.Repeat("k", 32))
	secret := "whsec_" + base64.StdEncoding.EncodeToString(key)
	event := client.Event{Tenant: "acme", Type: "a", Payload: json.RawMessage(`1`), IdempotencyKey: "mine"}

	t.Run("SignsEveryTryOfASubmission", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusServiceUnavailable, `{}`), answer(http.StatusAccepted, `{}`))
		if _, err := dial(t, fake, client.WithSigningSecret(secret)).Submit(t.Context(), event); err != nil {
			t.Fatal(err)
		}
		if n := len(fake.got()); n != 2 {
			t.Fatalf("%d requests", n)
		}
		for _, sent := range fake.got() {
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte("mine." + sent.header.Get("Webhook-Timestamp") + "." + string(sent.body)))
			if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); sent.header.Get("Webhook-Signature") != want ||
				sent.header.Get("Webhook-Id") != "mine" || sent.header.Get("Idempotency-Key") != "mine" {
				t.Errorf("headers are %v, want the signature %s", sent.header, want)
			}
		}
	})
	t.Run("SignsNothingElse", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusOK, `{}`))
		if _, err := dial(t, fake, client.WithSigningSecret(secret)).Webhooks().Get(t.Context(), webhookID); err != nil {
			t.Fatal(err)
		}
		if header := fake.got()[0].header; header.Get("Webhook-Signature") != "" {
			t.Errorf("headers are %v", header)
		}
	})
	t.Run("RefusesAKeyThatCannotBeSigned", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusAccepted, `{}`))
		dotted := event
		dotted.IdempotencyKey = "a.b"
		if _, err := dial(t, fake, client.WithSigningSecret(secret)).Submit(t.Context(), dotted); err == nil || len(fake.got()) != 0 {
			t.Errorf("submitted: %v", err)
		}
	})
	t.Run("RefusesASecretThatIsNone", func(t *testing.T) {
		t.Parallel()
		for _, bad := range []string{"", "whsec_", "whsec_%%"} {
			if _, err := client.New("http://localhost", apiKey, client.WithSigningSecret(bad)); err == nil || strings.Contains(err.Error(), "%%") {
				t.Errorf("%q: %v", bad, err)
			}
		}
	})
}

func TestCreatedKeysAreNotPrinted(t *testing.T) {
	t.Parallel()
	created := client.CreatedKey{Key: client.Key{ID: "id"}, Text: "fhk_hidden", SigningSecret: "whsec_hidden"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, created) + fmt.Sprintf(format, &created); strings.Contains(got, "hidden") {
			t.Errorf("%s prints %s", format, got)
		}
	}
}

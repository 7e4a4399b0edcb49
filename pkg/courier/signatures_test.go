package courier_test

import (
	"crypto/ed25519"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// One request carries all signatures that the webhook asks for, each over exactly
// the body, and the headers of Standard Webhooks that they sign.
func TestSendSignsInAllWaysAtOnce(t *testing.T) {
	t.Parallel()
	private := signature.NewPrivateKey().Reveal()
	template := &webhook.SignatureTemplate{
		Header: "Idempotency-Key", Signed: "{id}:{body}", Algorithm: webhook.AlgorithmSHA1, Encoding: webhook.EncodingBase64, Value: "sig {signature}",
	}
	signer, err := signature.NewSigner(webhook.Schemes(), template, []signature.Secret{
		{Kind: webhook.SecretEd25519, Text: private}, {Kind: webhook.SecretSymmetric, Text: testSecret},
	})
	if err != nil {
		t.Fatal(err)
	}
	var (
		got  http.Header
		body []byte
	)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		body, _ = io.ReadAll(r.Body)
	}))
	defer server.Close()
	req := newRequest(t, server.URL)
	req.Signer = signer
	if result := courier.Send(t.Context(), newClient(t, nil), req); result.Reason != webhook.ReasonDelivered {
		t.Fatalf("%s: %s", result.Reason, result.Detail)
	}

	reference, err := standardwebhooks.NewWebhook(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if err := reference.Verify(body, got); err != nil {
		t.Errorf("v1, by the reference library: %v", err)
	}
	key, err := signature.ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := signature.ParsePublicKey(signature.PublicKeyText(key.Public().(ed25519.PublicKey)))
	if err != nil {
		t.Fatal(err)
	}
	texts := [][]byte{[]byte(testSecret)}
	id, seconds := got.Get(signature.HeaderID), got.Get(signature.HeaderTimestamp)
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	own, err := signature.NewTemplate(template)
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"v1a":      signature.VerifyEd25519([]ed25519.PublicKey{public}, id, seconds, got.Get(signature.HeaderSignature), body, time.Now(), time.Minute),
		"GitHub":   signature.VerifyGitHub(texts, got.Get("X-Hub-Signature-256"), body),
		"Stripe":   signature.VerifyStripe(texts, got.Get("Stripe-Signature"), body, time.Now(), time.Minute),
		"template": own.Verify(texts, id, time.Unix(unix, 0), got.Get("Idempotency-Key"), body),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(got.Values(signature.HeaderSignature)); n != 1 {
		t.Errorf("webhook-signature is there %d times", n)
	}
}

package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// SignatureScheme is a way to sign a webhook's requests. A newer Fairhook may have
// more than these.
type SignatureScheme string

// The schemes. A webhook may ask for several on the same request.
const (
	SignStandard        SignatureScheme = "standard"         // v1 of Standard Webhooks: HMAC-SHA256
	SignStandardEd25519 SignatureScheme = "standard_ed25519" // v1a of Standard Webhooks, in the same header
	SignGitHub          SignatureScheme = "github"           // X-Hub-Signature-256
	SignStripe          SignatureScheme = "stripe"           // Stripe-Signature
	SignTemplate        SignatureScheme = "template"         // the webhook's SignatureTemplate
)

// SignatureTemplate is a webhook's own way to sign, for SignTemplate. What is left
// empty gets Fairhook's default. The key is the text of the secret.
type SignatureTemplate struct {
	Header string `json:"header"` // which carries the signature
	// Signed is what is signed: a text with {body}, once, and {id} and {timestamp}
	// (Unix seconds). Default: "{timestamp}.{body}".
	Signed    string `json:"signed,omitzero"`
	Algorithm string `json:"algorithm,omitzero"` // hmac-sha256 (default), hmac-sha512 or hmac-sha1
	Encoding  string `json:"encoding,omitzero"`  // hex (default), base64 or base64url
	// Value is the header's value: a text with {signature}, once, and {id} and
	// {timestamp}. Default: "{signature}".
	Value string `json:"value,omitzero"`
	// Separator is what stands between the signatures while several secrets are
	// valid; empty: there is one, with the oldest secret.
	Separator string `json:"separator,omitzero"`
}

// SecretKind says what a signing secret is. A newer Fairhook may have more than
// these.
type SecretKind string

// The kinds of secrets.
const (
	SecretSymmetric SecretKind = "symmetric" // base64 of the key, "whsec_" before it
	SecretText      SecretKind = "text"      // another text, whose bytes are the key
	SecretEd25519   SecretKind = "ed25519"   // a key pair, whose private key is not shown
)

// Secret is one signing secret of a webhook. All that have not expired are
// valid, and sign.
type Secret struct {
	ID        string     `json:"id"`
	Kind      SecretKind `json:"kind"`
	Secret    string     `json:"secret"`     // empty for a key pair
	PublicKey string     `json:"public_key"` // "whpk_..." of a key pair
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at"`
}

// String hides the secret, in logs and in %v.
func (s Secret) String() string { return "secret " + s.ID }

// GoString hides the secret in %#v.
func (s Secret) GoString() string { return s.String() }

// SecretRotation says which secret to replace, and by what. The zero value makes a
// new symmetric secret, beside which those before stay valid for a day.
type SecretRotation struct {
	// Kind is SecretSymmetric or SecretEd25519; empty: what Secret is.
	Kind SecretKind
	// Secret is one to bring along; empty has Fairhook make one.
	Secret string
	// Overlap is how long those before stay valid, in whole seconds, up to 30 days.
	// 0 is Fairhook's default, a day; less than 0 ends them at once.
	Overlap time.Duration
}

// String hides the secret, in logs and in %v.
func (r SecretRotation) String() string { return "rotation of a secret" }

// GoString hides the secret in %#v.
func (r SecretRotation) GoString() string { return r.String() }

func (r SecretRotation) encode() ([]byte, error) {
	body := struct {
		Kind    SecretKind `json:"kind,omitzero"`
		Secret  string     `json:"secret,omitzero"`
		Overlap *int64     `json:"expire_previous_after_seconds,omitzero"`
	}{Kind: r.Kind, Secret: r.Secret}
	if r.Overlap != 0 {
		seconds := max(0, int64(r.Overlap/time.Second))
		body.Overlap = &seconds
	}
	return json.Marshal(body)
}

// RotateSecret gives a webhook a new signing secret and returns it. Until those
// before end, all of them sign every request, so that its receiver can be changed
// over. One that is brought along may be so again, which changes nothing; one that
// Fairhook makes is not asked for twice after an error that leaves open whether it
// was done: Secrets tells.
func (w Webhooks) RotateSecret(ctx context.Context, id string, rotation SecretRotation) (*Secret, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	body, err := rotation.encode()
	if err != nil {
		return nil, fmt.Errorf("fairhook: encode the rotation: %w", err)
	}
	secret := &Secret{}
	_, err = w.client.do(ctx, call{
		method: http.MethodPost, path: "/v1/webhooks/" + id + "/secrets", header: jsonContent(), body: body,
		repeatable: rotation.Secret != "",
	}, secret)
	if err != nil {
		return nil, err
	}
	return secret, nil
}

// DeleteSecret ends one of the secrets that a rotation left valid, at once.
func (w Webhooks) DeleteSecret(ctx context.Context, id, secretID string) error {
	for _, one := range []string{id, secretID} {
		if err := checkID(one); err != nil {
			return err
		}
	}
	got, err := w.client.do(ctx, call{method: http.MethodDelete, path: "/v1/webhooks/" + id + "/secrets/" + secretID, repeatable: true}, nil)
	if got != nil && got.status == http.StatusNotFound && got.tries > 1 {
		return nil // an earlier try, whose answer was lost, deleted it
	}
	return err
}

// PublicKeys reads the public keys ("whpk_...") with which a webhook's v1a
// signatures can be verified now, newest first. The route needs no API key.
func (w Webhooks) PublicKeys(ctx context.Context, id string) ([]string, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	var set struct {
		Keys []struct {
			Text string `json:"whpk"`
		} `json:"keys"`
	}
	if _, err := w.client.do(ctx, call{method: http.MethodGet, path: "/v1/webhooks/" + id + "/public-keys", repeatable: true}, &set); err != nil {
		return nil, err
	}
	keys := make([]string, len(set.Keys))
	for i, key := range set.Keys {
		keys[i] = key.Text
	}
	return keys, nil
}

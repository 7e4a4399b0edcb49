package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// maxPublicBytes bounds roughly the memory for public keys, made-up webhooks
	// that were asked for included.
	maxPublicBytes = 8 << 20
	// maxPublicLoads is how many webhooks' public keys are looked up at the same
	// time. Anyone may ask for them, by made-up ids too, and must not be able to
	// take up the connections with that.
	maxPublicLoads = 2
)

// PublicKeys is what a webhook publishes for its receivers. It is shared: nobody
// may change it.
type PublicKeys struct {
	// Document is a JWK Set (RFC 7517) with a key of type OKP (RFC 8037) for each
	// that signs now, newest first, which also has the text that Standard Webhooks
	// gives it.
	Document []byte
	// ETag is a strong entity tag of Document.
	ETag string
}

// jwk is one public key as a JSON Web Key (RFC 8037, section 2).
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	KeyID     string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
	// Text is the key as Standard Webhooks' libraries take it.
	Text string `json:"whpk"`
}

// PublicKeys returns the public keys of a webhook. The error is a *webhook.Error
// with CodeNotFound when there are none, alike whether there is such a webhook or
// not; other errors are those of Webhook. What is known, and what is known not to
// be, costs no round trip.
func (c *Catalog) PublicKeys(ctx context.Context, id webhook.ID) (*PublicKeys, error) {
	return c.publicKeys.get(ctx, id)
}

func (c *Catalog) loadPublicKeys(ctx context.Context, id webhook.ID) (*PublicKeys, time.Duration, error) {
	select {
	case c.publicLoads <- struct{}{}:
		defer func() { <-c.publicLoads }()
	case <-ctx.Done():
		// Not postgres.Unavailable: this says nothing about the database.
		return nil, 0, &webhook.Error{
			Code: webhook.CodeUnavailable, Message: "The service has too many public keys to look up; try again.", RetryAfter: time.Second,
		}
	}
	loaded, life, err := postgres.LoadPublicKeys(ctx, c.pool, id)
	if err != nil {
		return nil, 0, err
	}
	var set struct {
		Keys []jwk `json:"keys"`
	}
	for _, k := range loaded {
		set.Keys = append(set.Keys, jwk{
			KeyType: "OKP", Curve: "Ed25519", X: base64.RawURLEncoding.EncodeToString(k.Key),
			KeyID: k.ID.String(), Algorithm: "EdDSA", Use: "sig", Text: signature.PublicKeyText(k.Key),
		})
	}
	document, err := json.Marshal(set)
	if err != nil {
		return nil, 0, fmt.Errorf("encode the public keys of webhook %s: %w", id, err)
	}
	sum := sha256.Sum256(document)
	known := &PublicKeys{Document: document, ETag: `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`}
	if life == nil {
		return known, 0, nil
	}
	return known, max(time.Millisecond, *life), nil
}

// publicKeysWeight is roughly how many bytes public keys take.
func publicKeysWeight(_ webhook.ID, k *PublicKeys) int {
	const weight = 384
	if k == nil {
		return weight
	}
	return weight + len(k.Document) + len(k.ETag)
}

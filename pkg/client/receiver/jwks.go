package receiver

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// maxPublicKeys is how many keys a set may have: each costs time per message.
const maxPublicKeys = 32

// ParseJWKS reads the ed25519 keys of a JSON Web Key Set (RFC 7517 and RFC 8037),
// such as a sender publishes, in the form that [NewVerifier] and
// [Verifier.SetKeys] take. Keys of other kinds, and those that are not for
// signatures, are passed over; a set without a single one left is an error.
//
// Get the set over https from an address that is configured, never from one that a
// message names.
func ParseJWKS(set []byte) ([]string, error) {
	var document struct {
		Keys []struct {
			Type  string `json:"kty"`
			Curve string `json:"crv"`
			Use   string `json:"use"`
			X     string `json:"x"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(set, &document); err != nil {
		return nil, fmt.Errorf("receiver: read the key set: %w", err)
	}
	var keys []string
	for i, key := range document.Keys {
		if key.Type != "OKP" || key.Curve != "Ed25519" || key.Use != "" && key.Use != "sig" {
			continue
		}
		x, err := base64.RawURLEncoding.Strict().DecodeString(key.X)
		if err != nil || len(x) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("receiver: key %d of the set is no ed25519 public key", i)
		}
		keys = append(keys, publicPrefix+base64.StdEncoding.EncodeToString(x))
	}
	switch {
	case len(keys) == 0:
		return nil, errors.New("receiver: the key set has no ed25519 key")
	case len(keys) > maxPublicKeys:
		return nil, fmt.Errorf("receiver: the key set has more than %d ed25519 keys", maxPublicKeys)
	}
	return keys, nil
}

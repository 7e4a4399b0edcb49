package signature

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// SecretPrefix begins the text of a symmetric secret (specification, "Signature
// scheme").
const SecretPrefix = "whsec_"

// The sizes that the specification allows for a symmetric key, in bytes, and
// the one that NewSecret makes.
const (
	MinKeySize = 24
	MaxKeySize = 64
	newKeySize = 32
)

// NewSecret makes a secret of 32 random bytes: "whsec_" and their base64.
func NewSecret() webhook.Secret {
	var key [newKeySize]byte
	// crypto/rand.Read never fails (Go 1.24 and later crash the program instead).
	_, _ = rand.Read(key[:])
	return webhook.NewSecret(SecretPrefix + base64.StdEncoding.EncodeToString(key[:]))
}

// ParseSecret gives the key that a secret's text stands for. "whsec_" may be
// missing, since secrets brought along from another sender do not always have
// it; the rest is standard base64, padded or not, of 24 to 64 bytes.
//
// The error's text says what the secret must be and repeats nothing of it, so
// that it can be shown to a caller of the API.
func ParseSecret(text string) ([]byte, error) {
	encoded := strings.TrimPrefix(text, SecretPrefix)
	if encoded == "" {
		return nil, errors.New("must not be empty")
	}
	// The decoder would skip line breaks.
	if strings.ContainsAny(encoded, "\r\n") {
		return nil, errNotBase64
	}
	if len(encoded)%4 == 0 {
		encoded = strings.TrimSuffix(strings.TrimSuffix(encoded, "="), "=")
	}
	key, err := base64.RawStdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errNotBase64
	}
	if len(key) < MinKeySize || len(key) > MaxKeySize {
		return nil, fmt.Errorf("must stand for %d to %d bytes, and stands for %d", MinKeySize, MaxKeySize, len(key))
	}
	return key, nil
}

var errNotBase64 = fmt.Errorf("must be %q followed by standard base64", SecretPrefix)

package signature

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

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
	return SecretText(key[:])
}

// SecretText is the text that stands for a key: "whsec_" and its base64.
func SecretText(key []byte) webhook.Secret {
	return webhook.NewSecret(SecretPrefix + base64.StdEncoding.EncodeToString(key))
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
	key, ok := decodeBase64(encoded)
	if !ok {
		return nil, errNotBase64
	}
	if len(key) < MinKeySize || len(key) > MaxKeySize {
		return nil, fmt.Errorf("must stand for %d to %d bytes, and stands for %d", MinKeySize, MaxKeySize, len(key))
	}
	return key, nil
}

var errNotBase64 = fmt.Errorf("must be %q followed by standard base64", SecretPrefix)

// Bounds of a secret that is a text of any kind, in bytes. The least is what 128
// bits take when every bit is random; a text has fewer, and one that has less
// than minDistinct different bytes is no secret.
const (
	MinTextSize = 16
	MaxTextSize = 256
	minDistinct = 6
)

// ReadSecret reads a symmetric secret that was brought along from another sender,
// and says what it is. Where the text is what Standard Webhooks' libraries read
// (ParseSecret), it is SecretSymmetric, and signs for Standard Webhooks with what
// it is the base64 of; that it does so for a text that merely looks like base64
// is what those libraries do. Any other text is SecretText, and signs with its
// bytes. The other schemes sign with a text's bytes in any case.
//
// What begins with "whsec_" must be the base64 of a key, since it is more likely
// mistyped than another sender's. So must neither half of a key pair be given for
// a secret. The error's text repeats nothing of the secret, and can be shown to
// a caller of the API.
func ReadSecret(text string) (webhook.SecretKind, error) {
	switch {
	case strings.HasPrefix(text, PrivateKeyPrefix), strings.HasPrefix(text, PublicKeyPrefix):
		return "", errors.New("is part of an Ed25519 key pair, and not a symmetric secret")
	case len(text) > MaxTextSize:
		return "", fmt.Errorf("must be at most %d bytes long", MaxTextSize)
	}
	_, err := ParseSecret(text)
	switch {
	case err == nil:
		return webhook.SecretSymmetric, nil
	case text == "" || strings.HasPrefix(text, SecretPrefix):
		return "", err
	}
	return webhook.SecretText, checkSecretText(text)
}

func checkSecretText(text string) error {
	if len(text) < MinTextSize {
		return fmt.Errorf("must be %q followed by standard base64, or another text of at least %d bytes", SecretPrefix, MinTextSize)
	}
	if !utf8.ValidString(text) {
		return errors.New("must be valid UTF-8")
	}
	distinct := map[byte]bool{}
	for i := range len(text) {
		if text[i] < 0x20 || text[i] == 0x7f {
			return errors.New("must not contain control characters, line breaks included")
		}
		distinct[text[i]] = true
	}
	if len(distinct) < minDistinct {
		return fmt.Errorf("must have at least %d different characters", minDistinct)
	}
	return nil
}

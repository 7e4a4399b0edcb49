package signature

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// The beginnings of the texts of an asymmetric key pair (specification,
// "Signature scheme").
const (
	PrivateKeyPrefix = "whsk_"
	PublicKeyPrefix  = "whpk_"
)

const versionPrefixEd25519 = "v1a,"

// encodedSizeEd25519 is the length of one v1a signature in base64.
var encodedSizeEd25519 = base64.StdEncoding.EncodedLen(ed25519.SignatureSize)

// NewPrivateKey makes a key pair: "whsk_" and the base64 of the 64 bytes of the
// private key, which end with the public key.
func NewPrivateKey() webhook.Secret {
	seed := make([]byte, ed25519.SeedSize)
	// crypto/rand.Read never fails (Go 1.24 and later crash the program instead).
	_, _ = rand.Read(seed)
	return webhook.NewSecret(PrivateKeyText(ed25519.NewKeyFromSeed(seed)))
}

// PrivateKeyText is how a private key is kept: "whsk_" and base64.
func PrivateKeyText(key ed25519.PrivateKey) string {
	return PrivateKeyPrefix + base64.StdEncoding.EncodeToString(key)
}

var (
	errNotPrivateKey = errors.New(`must be "whsk_" followed by the standard base64 of an Ed25519 private key, of 32 or 64 bytes`)
	errPairMismatch  = errors.New("has a public key that is not that of its private key")
)

// ParsePrivateKey reads the text of a private key: "whsk_" and the base64 of the
// 32 bytes of its seed, or of these and the 32 bytes of the public key, which
// must fit. The error's text repeats nothing of the key, and can be shown to a
// caller of the API.
func ParsePrivateKey(text string) (ed25519.PrivateKey, error) {
	encoded, found := strings.CutPrefix(text, PrivateKeyPrefix)
	if !found {
		return nil, errNotPrivateKey
	}
	raw, ok := decodeBase64(encoded)
	switch {
	case ok && len(raw) == ed25519.SeedSize:
		return ed25519.NewKeyFromSeed(raw), nil
	case !ok || len(raw) != ed25519.PrivateKeySize:
		return nil, errNotPrivateKey
	}
	key := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	// Signing with a public key that does not fit would give the private one away.
	if !key.Equal(ed25519.PrivateKey(raw)) {
		return nil, errPairMismatch
	}
	return key, nil
}

// PublicKeyText is how a public key is shown: "whpk_" and base64.
func PublicKeyText(key ed25519.PublicKey) string {
	return PublicKeyPrefix + base64.StdEncoding.EncodeToString(key)
}

// ParsePublicKey is the inverse of PublicKeyText.
func ParsePublicKey(text string) (ed25519.PublicKey, error) {
	encoded, found := strings.CutPrefix(text, PublicKeyPrefix)
	raw, ok := decodeBase64(encoded)
	if !found || !ok || len(raw) != ed25519.PublicKeySize {
		return nil, errors.New(`must be "whpk_" followed by the standard base64 of an Ed25519 public key, of 32 bytes`)
	}
	return raw, nil
}

// decodeBase64 reads standard base64, padded or not, on one line.
func decodeBase64(encoded string) ([]byte, bool) {
	// The decoder would skip line breaks.
	if strings.ContainsAny(encoded, "\r\n") {
		return nil, false
	}
	if len(encoded)%4 == 0 {
		encoded = strings.TrimSuffix(strings.TrimSuffix(encoded, "="), "=")
	}
	raw, err := base64.RawStdEncoding.DecodeString(encoded)
	return raw, err == nil
}

// SignEd25519 is Sign with private keys: one "v1a,<base64>" for each. Unlike Sign
// it copies the body, since Ed25519 reads what it signs twice.
func SignEd25519(keys []ed25519.PrivateKey, id string, timestamp time.Time, body []byte) string {
	return string(appendEd25519(nil, keys, id, timestamp, body))
}

func appendEd25519(out []byte, keys []ed25519.PrivateKey, id string, timestamp time.Time, body []byte) []byte {
	if len(keys) == 0 {
		return out
	}
	message := signedMessage(id, timestamp.Unix(), body)
	for _, key := range keys {
		if len(out) > 0 {
			out = append(out, ' ')
		}
		out = append(out, versionPrefixEd25519...)
		out = base64.StdEncoding.AppendEncode(out, ed25519.Sign(key, message))
	}
	return out
}

// VerifyEd25519 is Verify with public keys: at least one v1a signature of the
// list must have been made with the private key of one of them. Signatures of
// other versions are passed over.
func VerifyEd25519(keys []ed25519.PublicKey, id, timestamp, signatures string, body []byte, now time.Time, tolerance time.Duration) error {
	seconds, err := checkHeaders(id, timestamp, signatures, now, tolerance)
	if err != nil {
		return err
	}
	message := signedMessage(id, seconds, body)
	for got := range entries(signatures, versionPrefixEd25519, encodedSizeEd25519) {
		// Strict: base64 has more than one spelling for the same bytes, and only the
		// one that SignEd25519 makes is a signature.
		raw, err := base64.StdEncoding.Strict().DecodeString(got)
		if err != nil {
			continue
		}
		for _, key := range keys {
			if ed25519.Verify(key, message, raw) {
				return nil
			}
		}
	}
	return ErrNoMatch
}

func signedMessage(id string, seconds int64, body []byte) []byte {
	message := make([]byte, 0, len(id)+len("..")+20+len(body))
	return append(signedPrefix(message, id, seconds), body...)
}

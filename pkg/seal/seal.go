// Package seal keeps secrets at rest: AES-256-GCM under the key that operators
// give in FAIRHOOK_ENCRYPTION_KEY.
//
// What is sealed can be opened only with the same key and the same context, so
// that a sealed secret moved to another row does not open there. Every sealed
// text begins with the id of its key: a wrong key is told apart from damage,
// and several keys can be held side by side while one replaces another.
//
// It leaves to callers which context a secret is bound to, and never to log
// what Open returns.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// KeySize is the size of a key, in bytes.
const KeySize = 32

// The layout of a sealed text: version, key id, nonce, ciphertext with its tag.
const (
	version    = 1
	keyIDSize  = 4
	headerSize = 1 + keyIDSize
)

// Overhead is how many bytes a sealed text is longer than its plaintext.
const Overhead = headerSize + 12 + 16

var (
	// ErrWrongKey says that a text was sealed under another key.
	ErrWrongKey = errors.New("sealed under another encryption key")
	// ErrCorrupt says that a text was not made by Seal, was changed since, or is
	// bound to another context.
	ErrCorrupt = errors.New("not a sealed text of this context")
)

// Key is an encryption key. It prints as "***" in every format.
type Key struct{ bytes [KeySize]byte }

// ParseKey reads a key: exactly 32 bytes in standard base64, padded or not.
// Surrounding white space is ignored. The error says how to make a key, and
// repeats nothing of the text.
func ParseKey(text string) (Key, error) {
	const hint = "make one with: openssl rand -base64 32"
	text = strings.TrimSpace(text)
	if text == "" {
		return Key{}, errors.New("encryption key is empty; " + hint)
	}
	// The decoder would skip line breaks; a key has one spelling.
	if strings.ContainsAny(text, "\r\n") {
		return Key{}, errors.New("encryption key is not base64; " + hint)
	}
	raw, err := base64.RawStdEncoding.Strict().DecodeString(unpad(text))
	if err != nil {
		return Key{}, errors.New("encryption key is not base64; " + hint)
	}
	if len(raw) != KeySize {
		return Key{}, fmt.Errorf("encryption key has %d bytes instead of %d; %s", len(raw), KeySize, hint)
	}
	return Key{bytes: [KeySize]byte(raw)}, nil
}

// unpad takes off the padding that base64 of this length calls for, and no
// other.
func unpad(text string) string {
	if len(text)%4 != 0 {
		return text
	}
	if cut, ok := strings.CutSuffix(text, "=="); ok {
		return cut
	}
	return strings.TrimSuffix(text, "=")
}

// String hides the key.
func (Key) String() string { return "***" }

// Format hides the key under every verb of package fmt.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "***") }

// LogValue hides the key in logs.
func (Key) LogValue() slog.Value { return slog.StringValue("***") }

// MarshalText hides the key in encoders.
func (Key) MarshalText() ([]byte, error) { return []byte("***"), nil }

func (k Key) id() [keyIDSize]byte {
	h := sha256.New()
	h.Write([]byte("fairhook seal key id\x00"))
	h.Write(k.bytes[:])
	return [keyIDSize]byte(h.Sum(nil)[:keyIDSize])
}

// Box seals and opens under one key. It is safe for concurrent use, and prints
// as "***".
type Box struct {
	aead  cipher.AEAD
	keyID [keyIDSize]byte
}

// New makes a box of a key.
func New(key Key) *Box {
	block, err := aes.NewCipher(key.bytes[:])
	if err != nil {
		panic("seal: " + err.Error()) // a Key has a valid size
	}
	// The nonces are random: 2^32 secrets may be sealed under one key before the
	// chance of a repeat matters (NIST SP 800-38D, section 8.3).
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("seal: " + err.Error()) // AES has the block size that GCM wants
	}
	return &Box{aead: aead, keyID: key.id()}
}

// Seal encrypts plaintext and binds it to context, which Open must be given
// again. Sealing the same text twice gives different results.
func (b *Box) Seal(plaintext []byte, context string) []byte {
	sealed := make([]byte, 0, len(plaintext)+Overhead)
	sealed = append(sealed, version)
	sealed = append(sealed, b.keyID[:]...)
	return b.aead.Seal(sealed, nil, plaintext, additional(sealed, context))
}

// Open is the inverse of Seal. It fails with ErrWrongKey when the text was
// sealed under another key, and with ErrCorrupt when it was sealed in another
// context or is damaged.
func (b *Box) Open(sealed []byte, context string) ([]byte, error) {
	if len(sealed) < Overhead || sealed[0] != version {
		return nil, ErrCorrupt
	}
	header := sealed[:headerSize]
	if [keyIDSize]byte(header[1:]) != b.keyID {
		return nil, ErrWrongKey
	}
	plaintext, err := b.aead.Open(nil, nil, sealed[headerSize:], additional(header, context))
	if err != nil {
		return nil, ErrCorrupt
	}
	return plaintext, nil
}

// Format hides the key schedule under every verb of package fmt.
func (*Box) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "***") }

// additional is what is authenticated beside the ciphertext: the header, whose
// length is fixed, and the context.
func additional(header []byte, context string) []byte {
	return append(append(make([]byte, 0, headerSize+len(context)), header[:headerSize]...), context...)
}

// Package seal keeps secrets at rest: AES-256-GCM under the key that operators
// give in FAIRHOOK_ENCRYPTION_KEY.
//
// What is sealed can be opened only with the same key and the same context, so
// that a sealed secret moved to another row does not open there. Every sealed
// text begins with the id of its key: a wrong key is told apart from damage,
// and a Box can hold several keys while one replaces another: the current one
// seals, and all of them open.
//
// It leaves to callers which context a secret is bound to, to seal anew what was
// sealed under an earlier key, and never to log what Open returns.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
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
	// ErrWrongKey says that a text was sealed under a key that was not given.
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

// MaxOldKeys is how many earlier keys may be held beside the current one.
const MaxOldKeys = 16

// ParseOldKeys reads the keys that were used before the current one: each as
// ParseKey reads it, separated by commas. None at all is no error. The error says
// which of them is wrong by its place, and repeats nothing of the text.
func ParseOldKeys(text string) ([]Key, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > MaxOldKeys {
		return nil, fmt.Errorf("has %d keys, more than %d: leave out those under which nothing is sealed any more", len(parts), MaxOldKeys)
	}
	keys := make([]Key, len(parts))
	for i, part := range parts {
		var err error
		if keys[i], err = ParseKey(part); err != nil {
			return nil, fmt.Errorf("number %d: %w", i+1, err)
		}
	}
	return keys, nil
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

// Keys are the keys that a process is given. The zero value has none yet.
type Keys struct {
	current Key
	old     []Key
}

// SetCurrent reads the current key (ParseKey).
func (k *Keys) SetCurrent(text string) (err error) {
	k.current, err = ParseKey(text)
	return err
}

// SetOld reads the earlier keys (ParseOldKeys).
func (k *Keys) SetOld(text string) (err error) {
	k.old, err = ParseOldKeys(text)
	return err
}

// Box makes a box of the keys.
func (k *Keys) Box() *Box { return New(k.current, k.old...) }

// PrefixSize is how many bytes at the beginning of a sealed text tell under which
// key it was sealed.
const PrefixSize = headerSize

// Prefix is the beginning of everything that is sealed under one key. It tells
// nothing about the key.
type Prefix [PrefixSize]byte

// String is the id of the key, in hexadecimal, as people see it.
func (p Prefix) String() string { return hex.EncodeToString(p[1:]) }

// Box seals under its current key, and opens under that and the earlier ones. It
// is safe for concurrent use, and prints as "***".
type Box struct {
	keys []opener // the current one first, never empty
}

// opener is one key, ready for use.
type opener struct {
	prefix Prefix
	aead   cipher.AEAD
}

// New makes a box that seals under the current key. What was sealed under the old
// ones opens too.
func New(current Key, old ...Key) *Box {
	b := &Box{keys: []opener{newOpener(current)}}
	for _, key := range old {
		b.keys = append(b.keys, newOpener(key))
	}
	return b
}

func newOpener(key Key) opener {
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
	id := key.id()
	return opener{prefix: Prefix(append([]byte{version}, id[:]...)), aead: aead}
}

// Current is the prefix of what the box seals.
func (b *Box) Current() Prefix { return b.keys[0].prefix }

// Holds reports whether the box has the key of texts with this prefix.
func (b *Box) Holds(p Prefix) bool {
	for _, k := range b.keys {
		if k.prefix == p {
			return true
		}
	}
	return false
}

// Seal encrypts plaintext under the current key and binds it to context, which
// Open must be given again. Sealing the same text twice gives different results.
func (b *Box) Seal(plaintext []byte, context string) []byte {
	current := b.keys[0]
	sealed := make([]byte, 0, len(plaintext)+Overhead)
	sealed = append(sealed, current.prefix[:]...)
	return current.aead.Seal(sealed, nil, plaintext, additional(sealed, context))
}

// Open is the inverse of Seal. It fails with ErrWrongKey when the text was
// sealed under a key that the box does not have, and with ErrCorrupt when it was
// sealed in another context or is damaged.
func (b *Box) Open(sealed []byte, context string) ([]byte, error) {
	if len(sealed) < Overhead || sealed[0] != version {
		return nil, ErrCorrupt
	}
	err := ErrWrongKey
	for _, k := range b.keys {
		if k.prefix != Prefix(sealed[:PrefixSize]) {
			continue
		}
		// Ids are short, so two keys may share one: each gets its try.
		plaintext, failed := k.aead.Open(nil, nil, sealed[headerSize:], additional(sealed[:headerSize], context))
		if failed == nil {
			return plaintext, nil
		}
		err = ErrCorrupt
	}
	return nil, err
}

// Format hides the key schedule under every verb of package fmt.
func (*Box) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "***") }

// additional is what is authenticated beside the ciphertext: the header, whose
// length is fixed, and the context.
func additional(header []byte, context string) []byte {
	return append(append(make([]byte, 0, headerSize+len(context)), header[:headerSize]...), context...)
}

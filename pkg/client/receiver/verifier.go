package receiver

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// The headers of a signed request (specification, "Webhook headers").
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
)

// Headers that Fairhook adds. No signature covers them.
const (
	HeaderEventType = "fairhook-event-type"
	HeaderAttempt   = "fairhook-attempt"
)

// DefaultTolerance is how far a timestamp may be from the receiver's clock, in the
// past or in the future.
const DefaultTolerance = 5 * time.Minute

// The sizes that the specification allows for a symmetric key, in bytes.
const (
	minKeySize = 24
	maxKeySize = 64
)

// maxID is how long an id may be, in bytes: it ends up in databases.
const maxID = 256

// maxSignatures is how many entries of each version are tried. A sender makes one
// for each of its keys; checking the thousands that fit in a header would be work
// that anybody could ask for.
const maxSignatures = 16

// Why a message is refused.
var (
	// ErrMalformed says that a header is missing, doubled, or cannot be read.
	ErrMalformed = errors.New("receiver: signature headers missing or malformed")
	// ErrTooOld says that it was signed further in the past than allowed.
	ErrTooOld = errors.New("receiver: signed too long ago")
	// ErrTooNew says that it was signed further in the future than allowed.
	ErrTooNew = errors.New("receiver: signed in the future")
	// ErrNoMatch says that no signature was made with any of the keys over this id,
	// timestamp and body.
	ErrNoMatch = errors.New("receiver: no matching signature")
)

// Message is a verified message.
type Message struct {
	// ID is the same for all attempts of a message. With Fairhook it is the event's,
	// so two webhooks that lead to one receiver bring the same ID.
	ID string
	// Timestamp is when this attempt was signed, to the second.
	Timestamp time.Time
	// Body is what was signed, byte for byte.
	Body []byte
	// Type is the event's type, and Attempt counts the attempts from 1, as
	// Fairhook's headers say; empty and 0 with other senders. They are not signed:
	// decide nothing by them that a stranger should not decide.
	Type    string
	Attempt int
	// ContentType is the request's. It is not signed.
	ContentType string
}

// Verifier checks signatures. It is safe for use by several goroutines at a time.
type Verifier struct {
	keys      atomic.Pointer[keyset]
	tolerance time.Duration
}

// keyset is what is trusted, never changed once it is in use.
type keyset struct {
	symmetric [][]byte
	public    []ed25519.PublicKey
}

// NewVerifier makes a Verifier that trusts the given keys: shared secrets, "whsec_"
// and base64 (the prefix may be missing), for signatures of version v1, and public
// keys, "whpk_" and base64, for v1a. Give several while a secret is being rotated.
// Its tolerance is DefaultTolerance.
//
// Its errors repeat nothing of a key.
func NewVerifier(keys ...string) (*Verifier, error) {
	v := &Verifier{tolerance: DefaultTolerance}
	if err := v.SetKeys(keys...); err != nil {
		return nil, err
	}
	return v, nil
}

// SetKeys replaces the keys, for messages that are verified from now on. After an
// error the keys are those of before.
func (v *Verifier) SetKeys(keys ...string) error {
	if len(keys) == 0 {
		return errors.New("receiver: there must be a key")
	}
	set := &keyset{}
	for i, text := range keys {
		if err := set.add(text); err != nil {
			return fmt.Errorf("receiver: key %d: %w", i, err)
		}
	}
	v.keys.Store(set)
	return nil
}

// WithTolerance is a Verifier with the same keys, as they are now, and another
// tolerance, which must not be negative.
func (v *Verifier) WithTolerance(tolerance time.Duration) (*Verifier, error) {
	if tolerance < 0 {
		return nil, fmt.Errorf("receiver: the tolerance must not be negative: %s", tolerance)
	}
	other := &Verifier{tolerance: tolerance}
	other.keys.Store(v.keys.Load())
	return other, nil
}

// String says nothing of the keys.
func (v *Verifier) String() string { return "receiver.Verifier" }

// GoString says nothing of the keys.
func (v *Verifier) GoString() string { return v.String() }

var errNotBase64 = errors.New("must be standard base64")

// add reads one key's text.
func (s *keyset) add(text string) error {
	if encoded, public := strings.CutPrefix(text, publicPrefix); public {
		key, err := decodeKey(encoded)
		if err != nil {
			return err
		}
		if len(key) != ed25519.PublicKeySize {
			return fmt.Errorf("must stand for %d bytes, and stands for %d", ed25519.PublicKeySize, len(key))
		}
		s.public = append(s.public, ed25519.PublicKey(key))
		return nil
	}
	if strings.HasPrefix(text, "whsk_") {
		return errors.New(`is the sender's private key: a receiver needs the public one, "whpk_..."`)
	}
	key, err := decodeKey(strings.TrimPrefix(text, "whsec_"))
	if err != nil {
		return err
	}
	if len(key) < minKeySize || len(key) > maxKeySize {
		return fmt.Errorf("must stand for %d to %d bytes, and stands for %d", minKeySize, maxKeySize, len(key))
	}
	s.symmetric = append(s.symmetric, key)
	return nil
}

const publicPrefix = "whpk_"

// decodeKey reads standard base64, padded or not.
func decodeKey(encoded string) ([]byte, error) {
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
	return key, nil
}

// Verify checks a request's headers against its body, byte for byte as it came, and
// returns the message. It fails with ErrMalformed, ErrTooOld, ErrTooNew or
// ErrNoMatch. The message's Body is body itself, not a copy.
//
// It remembers nothing: whoever calls it also has to recognise messages that come
// again, by their ID.
func (v *Verifier) Verify(header http.Header, body []byte) (*Message, error) {
	id, ok := single(header, HeaderID)
	list, listed := single(header, HeaderSignature)
	stamp, stamped := single(header, HeaderTimestamp)
	// A dot separates what is signed: with one in the id, part of another message's
	// body could be passed off as the timestamp.
	if !ok || !listed || !stamped || len(id) > maxID || strings.Contains(id, ".") {
		return nil, ErrMalformed
	}
	seconds, ok := parseTimestamp(stamp)
	if !ok {
		return nil, ErrMalformed
	}
	signed, now := time.Unix(seconds, 0), time.Now()
	switch {
	case now.Sub(signed) > v.tolerance:
		return nil, ErrTooOld
	case signed.Sub(now) > v.tolerance:
		return nil, ErrTooNew
	}
	if !v.keys.Load().match(id+"."+stamp+".", body, list) {
		return nil, ErrNoMatch
	}
	attempt, _ := strconv.Atoi(header.Get(HeaderAttempt)) // 0 where there is none
	return &Message{
		ID: id, Timestamp: signed, Body: body,
		Type: header.Get(HeaderEventType), Attempt: max(attempt, 0), ContentType: header.Get("Content-Type"),
	}, nil
}

// single is the value of a header that has exactly one, and not an empty one: of
// two, another reader of the same request might take the other.
func single(header http.Header, name string) (string, bool) {
	values := header.Values(name)
	if len(values) != 1 || values[0] == "" {
		return "", false
	}
	return values[0], true
}

// maxTimestamp is the last second of the year 9999: far enough, and safe to
// calculate with.
const maxTimestamp = 253402300799

// parseTimestamp reads Unix seconds in their one canonical spelling.
func parseTimestamp(text string) (int64, bool) {
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 || seconds > maxTimestamp || strconv.FormatInt(seconds, 10) != text {
		return 0, false
	}
	return seconds, true
}

// match reports whether a signature of the list was made with one of the keys over
// prefix and body. Entries of other versions, and those that cannot be read, are
// passed over.
func (s *keyset) match(prefix string, body []byte, list string) bool {
	shared, public := signatures(list)
	matched := false
	for _, key := range s.symmetric {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(prefix))
		mac.Write(body)
		// The encoded forms are compared: base64 has more than one spelling for the
		// same bytes, and only one of them is the signature. No comparison is left
		// out, whatever the others said.
		want := []byte(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		for _, got := range shared {
			matched = hmac.Equal([]byte(got), want) || matched
		}
	}
	if len(s.public) == 0 || len(public) == 0 {
		return matched
	}
	content := append([]byte(prefix), body...) // ed25519 needs it in one piece
	for _, key := range s.public {
		for _, got := range public {
			matched = ed25519.Verify(key, content, got) || matched
		}
	}
	return matched
}

// signatures picks from a webhook-signature header what has the form of a
// signature: v1 as their base64, v1a decoded, and of each the first maxSignatures.
func signatures(list string) (shared []string, public [][]byte) {
	for entry := range strings.SplitSeq(list, " ") {
		version, encoded, _ := strings.Cut(entry, ",")
		switch {
		case version == "v1" && len(encoded) == base64.StdEncoding.EncodedLen(sha256.Size) && len(shared) < maxSignatures:
			shared = append(shared, encoded)
		case version == "v1a" && len(encoded) == base64.StdEncoding.EncodedLen(ed25519.SignatureSize) && len(public) < maxSignatures:
			if decoded, err := base64.StdEncoding.Strict().DecodeString(encoded); err == nil && len(decoded) == ed25519.SignatureSize {
				public = append(public, decoded)
			}
		}
	}
	return shared, public
}

// Package signature signs and verifies requests: as Standard Webhooks 1.0.0
// describes, schemes v1 (HMAC-SHA256: Sign, Verify) and v1a (Ed25519:
// SignEd25519, VerifyEd25519),
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md;
// as GitHub and Stripe do; and by a webhook's own Template. A Signer makes all the
// signatures that one webhook asks for.
//
// It is pure: no clock, no network, no logging. Keys are raw bytes here;
// ParseSecret and ReadSecret make them from the text that owners of webhooks see.
package signature

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// The headers of a signed request (specification, "Webhook Headers (Sending
// metadata)").
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
)

// DefaultTolerance is how far a request's timestamp may be from the receiver's
// clock, in the past or in the future: what the reference libraries allow.
const DefaultTolerance = 5 * time.Minute

const (
	versionPrefix = "v1,"
	macSize       = sha256.Size
)

// encodedSize is the length of one signature in base64.
var encodedSize = base64.StdEncoding.EncodedLen(macSize)

// Why Verify refuses.
var (
	// ErrMalformed says that a header is missing or cannot be read.
	ErrMalformed = errors.New("signature headers missing or malformed")
	// ErrTooOld says that the timestamp is further in the past than allowed.
	ErrTooOld = errors.New("signed too long ago")
	// ErrTooNew says that the timestamp is further in the future than allowed.
	ErrTooNew = errors.New("signed in the future")
	// ErrNoMatch says that no signature of the list was made with any of the keys
	// over this id, timestamp and body.
	ErrNoMatch = errors.New("no matching signature")
)

// Sign returns the value of the webhook-signature header: one "v1,<base64>" for
// each key, separated by spaces, in the order of the keys (specification,
// "Signature scheme"; several keys are valid while a secret is being rotated).
// The timestamp is signed in whole Unix seconds, and the body byte for byte,
// without being copied.
//
// The id must not contain a dot, which separates it from the timestamp. Without
// a key the result is empty, and such a request must not be sent.
func Sign(keys [][]byte, id string, timestamp time.Time, body []byte) string {
	return string(appendStandard(make([]byte, 0, standardSize(len(keys))), keys, id, timestamp, body))
}

// standardSize is how long the v1 signatures of n keys are, with a space behind
// each.
func standardSize(n int) int { return n * (len(versionPrefix) + encodedSize + 1) }

func appendStandard(out []byte, keys [][]byte, id string, timestamp time.Time, body []byte) []byte {
	var prefixBuf [64]byte
	prefix := signedPrefix(prefixBuf[:0], id, timestamp.Unix())
	for i, key := range keys {
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, versionPrefix...)
		out = appendMAC(out, key, prefix, body)
	}
	return out
}

// Verify checks the three headers of a request against its body, as a receiver
// does: that the timestamp is within tolerance of now, and that at least one v1
// signature of the list was made with one of the keys. Signatures of other
// versions, and entries that cannot be read, are passed over. Comparison takes
// constant time. It fails with ErrMalformed, ErrTooOld, ErrTooNew or ErrNoMatch.
//
// A receiver must also remember the ids it has handled: a delivery can arrive
// more than once.
func Verify(keys [][]byte, id, timestamp, signatures string, body []byte, now time.Time, tolerance time.Duration) error {
	seconds, err := checkHeaders(id, timestamp, signatures, now, tolerance)
	if err != nil {
		return err
	}
	var prefixBuf [64]byte
	prefix := signedPrefix(prefixBuf[:0], id, seconds)
	matched := false
	for _, key := range keys {
		var macBuf [64]byte
		// The encoded forms are compared: base64 has more than one spelling for the
		// same bytes, and only the one that Sign makes is a signature.
		want := appendMAC(macBuf[:0], key, prefix, body)
		for got := range entries(signatures, versionPrefix, encodedSize) {
			matched = hmac.Equal([]byte(got), want) || matched
		}
	}
	if !matched {
		return ErrNoMatch
	}
	return nil
}

// signedPrefix appends what is signed before the body: "<id>.<seconds>.".
func signedPrefix(dst []byte, id string, seconds int64) []byte {
	dst = append(dst, id...)
	dst = append(dst, '.')
	dst = strconv.AppendInt(dst, seconds, 10)
	return append(dst, '.')
}

// appendMAC appends the base64 of the HMAC over prefix and body.
func appendMAC(dst, key, prefix, body []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(prefix)
	mac.Write(body)
	var sum [macSize]byte
	return base64.StdEncoding.AppendEncode(dst, mac.Sum(sum[:0]))
}

// checkHeaders reads the timestamp, and checks that it is within tolerance of now
// and that the other headers are there.
func checkHeaders(id, timestamp, signatures string, now time.Time, tolerance time.Duration) (seconds int64, err error) {
	if id == "" || signatures == "" {
		return 0, ErrMalformed
	}
	return checkTimestamp(timestamp, now, tolerance)
}

func checkTimestamp(timestamp string, now time.Time, tolerance time.Duration) (seconds int64, err error) {
	seconds, ok := parseTimestamp(timestamp)
	if !ok {
		return 0, ErrMalformed
	}
	switch signed := time.Unix(seconds, 0); {
	case now.Sub(signed) > tolerance:
		return 0, ErrTooOld
	case signed.Sub(now) > tolerance:
		return 0, ErrTooNew
	}
	return seconds, nil
}

// entries yields the base64 of each entry of a webhook-signature header that is
// of the given version and has the length of one.
func entries(header, version string, size int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for entry := range strings.SplitSeq(header, " ") {
			encoded, ok := strings.CutPrefix(entry, version)
			if ok && len(encoded) == size && !yield(encoded) {
				return
			}
		}
	}
}

// maxTimestamp is the last second of the year 9999: far enough, and safe to
// calculate with.
const maxTimestamp = 253402300799

// parseTimestamp reads Unix seconds in their one canonical spelling: what is
// signed is the number, so no other text may stand for it.
func parseTimestamp(text string) (int64, bool) {
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 || seconds > maxTimestamp || strconv.FormatInt(seconds, 10) != text {
		return 0, false
	}
	return seconds, true
}

package signature

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"time"
)

const gitHubPrefix = "sha256="

// SignGitHub returns the value of GitHub's X-Hub-Signature-256 header: "sha256="
// and the HMAC-SHA256 over the body, in hexadecimal. The key is the text of the
// secret. The header has room for one signature.
// https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
func SignGitHub(key, body []byte) string {
	return string(appendHexMAC([]byte(gitHubPrefix), key, nil, body))
}

// VerifyGitHub checks the value of an X-Hub-Signature-256 header against a body
// and the keys that are valid. It takes constant time, and fails with
// ErrMalformed or ErrNoMatch. GitHub's scheme signs neither a time nor an id: it
// does not tell a request that is sent again.
func VerifyGitHub(keys [][]byte, header string, body []byte) error {
	if !strings.HasPrefix(header, gitHubPrefix) {
		return ErrMalformed
	}
	matched := false
	for _, key := range keys {
		matched = hmac.Equal([]byte(header), []byte(SignGitHub(key, body))) || matched
	}
	if !matched {
		return ErrNoMatch
	}
	return nil
}

// SignStripe returns the value of Stripe's Stripe-Signature header: "t=", the
// timestamp in Unix seconds, and for each key ",v1=" and the HMAC-SHA256, in
// hexadecimal, over the timestamp, a dot and the body. The keys are the texts of
// the secrets, "whsec_" included. Without a key the result is empty, and such a
// request must not be sent.
// https://docs.stripe.com/webhooks#verify-manually
func SignStripe(keys [][]byte, timestamp time.Time, body []byte) string {
	if len(keys) == 0 {
		return ""
	}
	var prefixBuf [32]byte
	prefix := append(strconv.AppendInt(prefixBuf[:0], timestamp.Unix(), 10), '.')
	out := append(make([]byte, 0, 16+len(keys)*(len(",v1=")+2*sha256.Size)), "t="...)
	out = append(out, prefix[:len(prefix)-1]...)
	for _, key := range keys {
		out = appendHexMAC(append(out, ",v1="...), key, prefix, body)
	}
	return string(out)
}

// VerifyStripe checks the value of a Stripe-Signature header against a body: that
// its timestamp is within tolerance of now, and that at least one of its v1
// signatures was made with one of the keys. Other schemes in it are passed over.
// Comparison takes constant time. It fails with ErrMalformed, ErrTooOld,
// ErrTooNew or ErrNoMatch.
func VerifyStripe(keys [][]byte, header string, body []byte, now time.Time, tolerance time.Duration) error {
	var (
		timestamp  string
		signatures []string
	)
	for item := range strings.SplitSeq(header, ",") {
		name, value, _ := strings.Cut(item, "=")
		switch {
		case name == "t" && timestamp != "":
			return ErrMalformed
		case name == "t":
			timestamp = value
		case name == "v1":
			signatures = append(signatures, value)
		}
	}
	seconds, err := checkTimestamp(timestamp, now, tolerance)
	if err != nil {
		return err
	}
	prefix := append(strconv.AppendInt(nil, seconds, 10), '.')
	matched := false
	for _, key := range keys {
		want := appendHexMAC(nil, key, prefix, body)
		for _, got := range signatures {
			matched = hmac.Equal([]byte(got), want) || matched
		}
	}
	if !matched {
		return ErrNoMatch
	}
	return nil
}

// appendHexMAC appends the hexadecimal HMAC-SHA256 over prefix and body.
func appendHexMAC(dst, key, prefix, body []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(prefix)
	mac.Write(body)
	var sum [macSize]byte
	return hex.AppendEncode(dst, mac.Sum(sum[:0]))
}

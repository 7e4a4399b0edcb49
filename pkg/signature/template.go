package signature

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Template signs as a webhook's owner has described. It is immutable, and safe
// for concurrent use.
type Template struct {
	header        string
	signed, value []webhook.TemplatePart
	newHash       func() hash.Hash
	encode        func(dst, src []byte) []byte
	separator     *string
}

// NewTemplate reads a description. It fails on one that
// webhook.SignatureTemplate.Check refuses.
func NewTemplate(t *webhook.SignatureTemplate) (*Template, error) {
	if faults := t.Check(""); len(faults) > 0 {
		return nil, fmt.Errorf("read a signature template: %s %s", faults[0].Pointer, faults[0].Detail)
	}
	c := &Template{header: strings.ToLower(t.Header), separator: t.Separator}
	c.signed, _ = t.SignedParts()
	c.value, _ = t.ValueParts()
	switch t.Algorithm {
	case webhook.AlgorithmSHA256:
		c.newHash = sha256.New
	case webhook.AlgorithmSHA512:
		c.newHash = sha512.New
	case webhook.AlgorithmSHA1:
		c.newHash = sha1.New
	}
	switch t.Encoding {
	case webhook.EncodingHex:
		c.encode = hex.AppendEncode
	case webhook.EncodingBase64:
		c.encode = base64.StdEncoding.AppendEncode
	case webhook.EncodingBase64URL:
		c.encode = base64.RawURLEncoding.AppendEncode
	}
	return c, nil
}

// Header is the name of the header, in lower case.
func (t *Template) Header() string { return t.header }

// Sign returns the header's value. keys are the texts of the secrets, newest
// first. With a separator there is a signature for each of them, in this order,
// and without one only that of the last, the oldest: a receiver that looks for one
// signature knows that secret for certain. Without a key the result is empty, and
// such a request must not be sent.
func (t *Template) Sign(keys [][]byte, id string, timestamp time.Time, body []byte) string {
	if len(keys) == 0 {
		return ""
	}
	separator := ""
	if t.separator == nil {
		keys = keys[len(keys)-1:]
	} else {
		separator = *t.separator
	}
	seconds := strconv.FormatInt(timestamp.Unix(), 10)
	var out []byte
	for _, part := range t.value {
		switch part.Placeholder {
		case webhook.PlaceholderID:
			out = append(out, id...)
		case webhook.PlaceholderTimestamp:
			out = append(out, seconds...)
		case webhook.PlaceholderSignature:
			for i, key := range keys {
				if i > 0 {
					out = append(out, separator...)
				}
				out = t.encode(out, t.mac(key, id, seconds, body))
			}
		default:
			out = append(out, part.Literal...)
		}
	}
	return string(out)
}

// Verify checks the header's value against a body, given the id and the timestamp
// that it was signed with, from wherever the template has them sent: that it is
// what Sign makes with one of the keys alone, or, where there is a separator, that
// one of its signatures was made with one of the keys. It takes constant time, and
// fails with ErrNoMatch.
func (t *Template) Verify(keys [][]byte, id string, timestamp time.Time, value string, body []byte) error {
	matched := false
	for _, key := range keys {
		want := t.Sign([][]byte{key}, id, timestamp, body)
		matched = hmac.Equal([]byte(value), []byte(want)) || matched
		if t.separator == nil {
			continue
		}
		before, after := t.around(id, strconv.FormatInt(timestamp.Unix(), 10))
		list, ok := strings.CutPrefix(value, before)
		if list, ok = cutSuffix(list, after, ok); !ok {
			continue
		}
		signature := []byte(want[len(before) : len(want)-len(after)])
		for got := range strings.SplitSeq(list, *t.separator) {
			matched = hmac.Equal([]byte(got), signature) || matched
		}
	}
	if !matched {
		return ErrNoMatch
	}
	return nil
}

func cutSuffix(text, suffix string, ok bool) (string, bool) {
	if !ok {
		return "", false
	}
	return strings.CutSuffix(text, suffix)
}

// around is what the value has before and after its signatures.
func (t *Template) around(id, seconds string) (before, after string) {
	var out strings.Builder
	for _, part := range t.value {
		switch part.Placeholder {
		case webhook.PlaceholderID:
			out.WriteString(id)
		case webhook.PlaceholderTimestamp:
			out.WriteString(seconds)
		case webhook.PlaceholderSignature:
			before = out.String()
			out.Reset()
		default:
			out.WriteString(part.Literal)
		}
	}
	return before, out.String()
}

func (t *Template) mac(key []byte, id, seconds string, body []byte) []byte {
	mac := hmac.New(t.newHash, key)
	for _, part := range t.signed {
		switch part.Placeholder { // an HMAC's Write never fails
		case webhook.PlaceholderID:
			_, _ = io.WriteString(mac, id)
		case webhook.PlaceholderTimestamp:
			_, _ = io.WriteString(mac, seconds)
		case webhook.PlaceholderBody:
			_, _ = mac.Write(body)
		default:
			_, _ = io.WriteString(mac, part.Literal)
		}
	}
	return mac.Sum(nil)
}

package webhook

import (
	"fmt"
	"net/textproto"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Scheme is a way to sign a request. A webhook may ask for several on the same
// request.
type Scheme string

// The closed set of schemes (the API's `signatures`).
const (
	// SchemeStandard is v1 of Standard Webhooks: HMAC-SHA256.
	SchemeStandard Scheme = "standard"
	// SchemeStandardEd25519 is v1a of Standard Webhooks. Its signatures share a
	// header with those of v1.
	SchemeStandardEd25519 Scheme = "standard_ed25519"
	// SchemeGitHub is GitHub's X-Hub-Signature-256.
	SchemeGitHub Scheme = "github"
	// SchemeStripe is Stripe's Stripe-Signature, scheme v1.
	SchemeStripe Scheme = "stripe"
	// SchemeTemplate is the webhook's own: see SignatureTemplate.
	SchemeTemplate Scheme = "template"
)

// Schemes lists the closed set.
func Schemes() []Scheme {
	return []Scheme{SchemeStandard, SchemeStandardEd25519, SchemeGitHub, SchemeStripe, SchemeTemplate}
}

// UsesText reports whether the scheme's key is the text of a secret as it is, and
// not what that is the base64 of.
func (s Scheme) UsesText() bool {
	return s == SchemeGitHub || s == SchemeStripe || s == SchemeTemplate
}

// The headers of the schemes that are not Standard Webhooks'.
const (
	HeaderGitHubSignature = "X-Hub-Signature-256"
	HeaderStripeSignature = "Stripe-Signature"
)

// SecretKind says what a signing secret is.
type SecretKind string

// The closed set of kinds of secrets. The first two are symmetric keys, for all
// schemes but SchemeStandardEd25519.
const (
	// SecretSymmetric is a symmetric secret of Standard Webhooks: base64 of the key,
	// behind "whsec_" or without it.
	SecretSymmetric SecretKind = "symmetric"
	// SecretText is a text that is no base64 of a key: its bytes are the key.
	SecretText SecretKind = "text"
	// SecretEd25519 is a private key of Ed25519: "whsk_" and base64.
	SecretEd25519 SecretKind = "ed25519"
)

// Algorithm is a MAC that a template may ask for.
type Algorithm string

// The closed set of algorithms. SHA-1 is for receivers that know nothing else:
// as a MAC it is not broken.
const (
	AlgorithmSHA256 Algorithm = "hmac-sha256"
	AlgorithmSHA512 Algorithm = "hmac-sha512"
	AlgorithmSHA1   Algorithm = "hmac-sha1"
)

// Algorithms lists the closed set.
func Algorithms() []Algorithm { return []Algorithm{AlgorithmSHA256, AlgorithmSHA512, AlgorithmSHA1} }

// Encoding is how a template writes a signature.
type Encoding string

// The closed set of encodings: lower case hexadecimal, standard base64 with its
// padding, and the URL alphabet without it.
const (
	EncodingHex       Encoding = "hex"
	EncodingBase64    Encoding = "base64"
	EncodingBase64URL Encoding = "base64url"
)

// Encodings lists the closed set.
func Encodings() []Encoding { return []Encoding{EncodingHex, EncodingBase64, EncodingBase64URL} }

// SignatureTemplate describes how SchemeTemplate signs: which header, what is
// signed, how, and how the header's value is written.
type SignatureTemplate struct {
	Header string `json:"header"`
	// Signed is what is signed: text with {body}, once, and {id} and {timestamp}.
	Signed    string    `json:"signed"`
	Algorithm Algorithm `json:"algorithm"`
	Encoding  Encoding  `json:"encoding"`
	// Value is the header's value: text with {signature}, once, and {id} and
	// {timestamp}.
	Value string `json:"value"`
	// Separator is what stands between the signatures while several secrets are
	// valid. nil: there is one signature, with the oldest of them.
	Separator *string `json:"separator"`
}

// DefaultSignatureTemplate is what a template is where it does not say otherwise.
func DefaultSignatureTemplate() SignatureTemplate {
	return SignatureTemplate{
		Signed: "{timestamp}.{body}", Algorithm: AlgorithmSHA256, Encoding: EncodingHex, Value: "{signature}",
	}
}

// MaxTemplateText is how long a template's texts may be, in bytes.
const MaxTemplateText = 256

// Placeholder is what a template's text may have in braces.
type Placeholder string

// The closed set of placeholders.
const (
	PlaceholderID        Placeholder = "id"        // the event's id: the header webhook-id
	PlaceholderTimestamp Placeholder = "timestamp" // of the attempt, in Unix seconds: the header webhook-timestamp
	PlaceholderBody      Placeholder = "body"      // the request's body, byte for byte
	PlaceholderSignature Placeholder = "signature"
)

// TemplatePart is either a literal text or a placeholder.
type TemplatePart struct {
	Literal     string
	Placeholder Placeholder // empty: Literal
}

// ParseTemplate divides a template's text at its placeholders. needed must be
// there once; others may be. fault says what is wrong, for the owner of the
// webhook.
func ParseTemplate(text string, needed Placeholder, others ...Placeholder) (parts []TemplatePart, fault string) {
	names := func() string {
		all := []string{"{" + string(needed) + "}"}
		for _, p := range others {
			all = append(all, "{"+string(p)+"}")
		}
		return strings.Join(all, ", ")
	}
	found := 0
	for text != "" {
		at := strings.IndexAny(text, "{}")
		if at < 0 {
			parts = append(parts, TemplatePart{Literal: text})
			break
		}
		if at > 0 {
			parts = append(parts, TemplatePart{Literal: text[:at]})
		}
		name, rest, closed := strings.Cut(text[at+1:], "}")
		p := Placeholder(name)
		if text[at] != '{' || !closed || p != needed && !slices.Contains(others, p) {
			return nil, "has a brace that belongs to none of " + names()
		}
		if p == needed {
			found++
		}
		parts = append(parts, TemplatePart{Placeholder: p})
		text = rest
	}
	if found != 1 {
		return nil, fmt.Sprintf("must have {%s} once", needed)
	}
	return parts, ""
}

// SignedParts are the parts of Signed.
func (t *SignatureTemplate) SignedParts() (parts []TemplatePart, fault string) {
	return ParseTemplate(t.Signed, PlaceholderBody, PlaceholderID, PlaceholderTimestamp)
}

// ValueParts are the parts of Value.
func (t *SignatureTemplate) ValueParts() (parts []TemplatePart, fault string) {
	return ParseTemplate(t.Value, PlaceholderSignature, PlaceholderID, PlaceholderTimestamp)
}

// Check returns everything wrong with a template, by JSON Pointer below the given
// one.
func (t *SignatureTemplate) Check(pointer string) []FieldError {
	var faults []FieldError
	fault := func(name, detail string) {
		if detail != "" {
			faults = append(faults, FieldError{Pointer: pointer + "/" + name, Detail: detail})
		}
	}
	text := func(name, value string, parse func() ([]TemplatePart, string)) {
		switch detail := checkText(value, MaxTemplateText); {
		case detail != "":
			fault(name, detail)
		default:
			_, detail := parse()
			fault(name, detail)
		}
	}
	if len(t.Header) > MaxHeaderName {
		fault("header", fmt.Sprintf("must be at most %d bytes long", MaxHeaderName))
	} else {
		fault("header", checkHeader(t.Header, ""))
	}
	text("signed", t.Signed, t.SignedParts)
	text("value", t.Value, t.ValueParts)
	if t.Value != strings.TrimSpace(t.Value) {
		fault("value", "must not begin or end with a space")
	}
	if !slices.Contains(Algorithms(), t.Algorithm) {
		fault("algorithm", "must be one of "+list(Algorithms()))
	}
	if !slices.Contains(Encodings(), t.Encoding) {
		fault("encoding", "must be one of "+list(Encodings()))
	}
	if s := t.Separator; s != nil {
		switch {
		case *s == "" || len(*s) > MaxTemplateText:
			fault("separator", fmt.Sprintf("must be 1 to %d bytes long, or null for a single signature", MaxTemplateText))
		case !httpguts.ValidHeaderFieldValue(*s):
			fault("separator", "is not part of a header value")
		}
	}
	return faults
}

// list is a closed set as the text of an error.
func list[T ~string](words []T) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = fmt.Sprintf("%q", string(word))
	}
	return strings.Join(quoted, ", ")
}

// Uses reports whether the webhook asks for a scheme.
func (w *Webhook) Uses(s Scheme) bool { return slices.Contains(w.Signatures, s) }

// checkSignatures returns what is wrong with how a webhook is to be signed.
func (w *Webhook) checkSignatures() []FieldError {
	var faults []FieldError
	fault := func(pointer, detail string) {
		faults = append(faults, FieldError{Pointer: pointer, Detail: detail})
	}
	if len(w.Signatures) == 0 || len(w.Signatures) > len(Schemes()) {
		fault("/signatures", fmt.Sprintf("must have between 1 and %d entries", len(Schemes())))
	} else {
		for i, s := range w.Signatures {
			pointer := fmt.Sprintf("/signatures/%d", i)
			switch {
			case !slices.Contains(Schemes(), s):
				fault(pointer, "must be one of "+list(Schemes()))
			case slices.Contains(w.Signatures[:i], s):
				fault(pointer, "is there twice")
			}
		}
	}
	if t := w.SignatureTemplate; t != nil && w.Auth != nil && strings.EqualFold(t.Header, "Authorization") {
		fault("/signature_template/header", "carries the webhook's auth")
	}
	taken := map[string]bool{} // headers of signatures, in canonical spelling
	if w.Uses(SchemeGitHub) {
		taken[HeaderGitHubSignature] = true
	}
	if w.Uses(SchemeStripe) {
		taken[HeaderStripeSignature] = true
	}
	switch t := w.SignatureTemplate; {
	case t == nil && w.Uses(SchemeTemplate):
		fault("/signature_template", `is required by the signature "template"`)
	case t != nil && !w.Uses(SchemeTemplate):
		fault("/signature_template", `is used only with the signature "template"`)
	case t != nil:
		faults = append(faults, t.Check("/signature_template")...)
		name := textproto.CanonicalMIMEHeaderKey(t.Header)
		if taken[name] {
			fault("/signature_template/header", "carries another of the webhook's signatures")
		}
		taken[name] = true
	}
	for name := range w.Headers {
		if taken[textproto.CanonicalMIMEHeaderKey(name)] {
			fault("/headers/"+EscapePointer(name), "carries one of the webhook's signatures")
		}
	}
	return faults
}

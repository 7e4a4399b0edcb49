package webhook

import (
	"slices"
	"strings"
	"testing"
)

func ptr[T any](v T) *T { return &v }

func TestSignaturesOfAWebhook(t *testing.T) {
	t.Parallel()
	templated := func(edit func(*SignatureTemplate)) func(*Webhook) {
		return func(w *Webhook) {
			d := DefaultSignatureTemplate()
			d.Header = "X-Acme"
			edit(&d)
			w.Signatures, w.SignatureTemplate = []Scheme{SchemeTemplate}, &d
		}
	}
	for name, c := range map[string]struct {
		edit func(*Webhook)
		want []string // pointers of faults
	}{
		"AllAtOnce":           {func(w *Webhook) { templated(func(*SignatureTemplate) {})(w); w.Signatures = Schemes() }, nil},
		"AnyOne":              {func(w *Webhook) { w.Signatures = []Scheme{SchemeGitHub} }, nil},
		"None":                {func(w *Webhook) { w.Signatures = []Scheme{} }, []string{"/signatures"}},
		"AnUnknownOne":        {func(w *Webhook) { w.Signatures = []Scheme{"standard", "md5"} }, []string{"/signatures/1"}},
		"OneTwice":            {func(w *Webhook) { w.Signatures = []Scheme{"github", "github"} }, []string{"/signatures/1"}},
		"ATemplateThatIsNot":  {func(w *Webhook) { w.Signatures = []Scheme{SchemeTemplate} }, []string{"/signature_template"}},
		"ATemplateForNothing": {func(w *Webhook) { w.SignatureTemplate = ptr(DefaultSignatureTemplate()) }, []string{"/signature_template"}},
		"AHeaderOfItsOwnTwice": {func(w *Webhook) {
			w.Signatures = []Scheme{SchemeGitHub}
			w.Headers = map[string]Secret{"x-hub-signature-256": NewSecret("x")}
		}, []string{"/headers/x-hub-signature-256"}},
		"StripesHeader": {func(w *Webhook) {
			w.Signatures = []Scheme{SchemeStripe}
			w.Headers = map[string]Secret{"STRIPE-Signature": NewSecret("x")}
		}, []string{"/headers/STRIPE-Signature"}},
		"TheTemplatesHeader": {func(w *Webhook) {
			templated(func(*SignatureTemplate) {})(w)
			w.Headers = map[string]Secret{"x-acme": NewSecret("x")}
		}, []string{"/headers/x-acme"}},
		"TheHeaderOfItsAuth": {func(w *Webhook) {
			templated(func(d *SignatureTemplate) { d.Header = "authorization" })(w)
			w.Auth = &Auth{Type: AuthBearer, Token: NewSecret("token")}
		}, []string{"/signature_template/header"}},
		"TheSameHeaderTwice": {func(w *Webhook) {
			templated(func(d *SignatureTemplate) { d.Header = "stripe-signature" })(w)
			w.Signatures = []Scheme{SchemeStripe, SchemeTemplate}
		}, []string{"/signature_template/header"}},
		"StripesHeaderByATemplate": {templated(func(d *SignatureTemplate) { d.Header = "Stripe-Signature" }), nil},
		"AReservedHeader":          {templated(func(d *SignatureTemplate) { d.Header = "webhook-signature" }), []string{"/signature_template/header"}},
		"AHopByHopHeader":          {templated(func(d *SignatureTemplate) { d.Header = "Connection" }), []string{"/signature_template/header"}},
		"NoHeader":                 {templated(func(d *SignatureTemplate) { d.Header = "" }), []string{"/signature_template/header"}},
		"ALongHeader":              {templated(func(d *SignatureTemplate) { d.Header = strings.Repeat("x", MaxHeaderName+1) }), []string{"/signature_template/header"}},
		"ALineBreakInTheValue":     {templated(func(d *SignatureTemplate) { d.Value = "{signature}\r\nX-Evil: 1" }), []string{"/signature_template/value"}},
		"ASpaceAtTheEnd":           {templated(func(d *SignatureTemplate) { d.Value = "{signature} " }), []string{"/signature_template/value"}},
		"NoSignature":              {templated(func(d *SignatureTemplate) { d.Value = "{timestamp}" }), []string{"/signature_template/value"}},
		"NoBody":                   {templated(func(d *SignatureTemplate) { d.Signed = "{id}{timestamp}" }), []string{"/signature_template/signed"}},
		"TwoBodies":                {templated(func(d *SignatureTemplate) { d.Signed = "{body}{body}" }), []string{"/signature_template/signed"}},
		"ASignatureInWhatIsSigned": {templated(func(d *SignatureTemplate) { d.Signed = "{body}{signature}" }), []string{"/signature_template/signed"}},
		"LongTexts":                {templated(func(d *SignatureTemplate) { d.Signed = "{body}" + strings.Repeat("x", MaxTemplateText) }), []string{"/signature_template/signed"}},
		"UnknownWords": {templated(func(d *SignatureTemplate) { d.Algorithm, d.Encoding = "md5", "binary" }), []string{
			"/signature_template/algorithm", "/signature_template/encoding",
		}},
		"ASeparator":             {templated(func(d *SignatureTemplate) { d.Separator = ptr(" v1,") }), nil},
		"AnEmptySeparator":       {templated(func(d *SignatureTemplate) { d.Separator = ptr("") }), []string{"/signature_template/separator"}},
		"ALineBreakForSeparator": {templated(func(d *SignatureTemplate) { d.Separator = ptr("\n") }), []string{"/signature_template/separator"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := valid()
			c.edit(w)
			var got []string
			for _, fault := range w.Check() {
				got = append(got, fault.Pointer)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("faults %v, want %v", w.Check(), c.want)
			}
		})
	}
}

func TestParseTemplate(t *testing.T) {
	t.Parallel()
	parts, fault := ParseTemplate("a{id}{body}.b", PlaceholderBody, PlaceholderID)
	want := []TemplatePart{{Literal: "a"}, {Placeholder: PlaceholderID}, {Placeholder: PlaceholderBody}, {Literal: ".b"}}
	if fault != "" || !slices.Equal(parts, want) {
		t.Errorf("parts %v, fault %q", parts, fault)
	}
	for _, bad := range []string{"", "{", "}", "{body", "body}", "{body}}", "{{body}}", "{ body }", "{BODY}", "{}{body}", "{body}{timestamp}"} {
		if _, fault := ParseTemplate(bad, PlaceholderBody, PlaceholderID); fault == "" {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// What is accepted is, put together again, what was given, with the needed
// placeholder once.
func FuzzParseTemplate(f *testing.F) {
	for _, text := range []string{"", "{body}", "{timestamp}.{body}", "{id}{", "}{body}", "{body}{body}", "\x00{body}"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parts, fault := ParseTemplate(text, PlaceholderBody, PlaceholderID, PlaceholderTimestamp)
		if fault != "" {
			return
		}
		var again strings.Builder
		for _, p := range parts {
			if p.Placeholder != "" {
				again.WriteString("{" + string(p.Placeholder) + "}")
			}
			again.WriteString(p.Literal)
		}
		if again.String() != text || strings.Count(text, "{body}") != 1 {
			t.Errorf("%q was read as %v", text, parts)
		}
	})
}

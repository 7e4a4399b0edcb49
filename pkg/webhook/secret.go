package webhook

import (
	"fmt"
	"io"
	"log/slog"
)

// Masked is what is shown in place of a secret. In a change of a webhook it stands
// for the secret that is stored.
const Masked = "***"

// Secret is text that must reach no log, error or answer: a signing secret of a
// webhook ("whsec_" and base64, Standard Webhooks 1.0.0, "Signature scheme"), the
// value of a header, a password, a key. It prints as "***" in every format; Reveal
// gives the text. The zero value is unset, which is not the same as empty.
type Secret struct {
	// A pointer, because fmt prints the unexported fields of a struct without asking
	// their methods.
	text *string
}

// NewSecret wraps a secret's text.
func NewSecret(text string) Secret { return Secret{&text} }

// Reveal is the secret's text; empty when unset.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether the secret is unset.
func (s Secret) IsZero() bool { return s.text == nil }

// String hides the secret.
func (s Secret) String() string { return Masked }

// Format hides the secret under every verb of package fmt.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Masked) }

// LogValue hides the secret in logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(Masked) }

// MarshalText hides the secret in encoders; whoever must show it says Reveal.
func (s Secret) MarshalText() ([]byte, error) { return []byte(Masked), nil }

// UnmarshalText takes text as it is, so what MarshalText wrote is read as "***".
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}

// keep is the secret that a change asks for: what is given, or where that is "***"
// the one that is stored. It reports whether there is one.
func keep(given, stored Secret) (Secret, bool) {
	if given.Reveal() != Masked {
		return given, true
	}
	return stored, !stored.IsZero()
}

// nothingKept is what is wrong with a "***" where nothing is stored.
const nothingKept = `is "***", which stands for what is stored, and nothing is`

package daemon

import "log/slog"

// SecretString is text that must not reach a log, an error or a terminal. It
// prints as *** through fmt, slog and encoding/json, also where it is an
// unexported field of a printed struct. The zero value is unset.
type SecretString struct {
	// A pointer, because fmt prints the unexported fields of a struct without
	// asking their String method.
	value *string
}

const masked = "***"

// NewSecretString wraps text; the empty text is unset.
func NewSecretString(text string) SecretString {
	if text == "" {
		return SecretString{}
	}
	return SecretString{value: &text}
}

// Reveal is the text itself, empty when unset.
func (s SecretString) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsSet reports whether there is any text.
func (s SecretString) IsSet() bool { return s.value != nil }

// String is "***", or empty when unset.
func (s SecretString) String() string {
	if s.value == nil {
		return ""
	}
	return masked
}

// GoString masks %#v.
func (s SecretString) GoString() string { return `daemon.SecretString("` + s.String() + `")` }

// MarshalText masks the text in JSON and other encodings.
func (s SecretString) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue masks the text in logs.
func (s SecretString) LogValue() slog.Value { return slog.StringValue(s.String()) }

package webhook

import (
	"encoding/json"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"unicode/utf8"
)

// AuthType is how a webhook's requests say who sends them.
type AuthType string

// The closed set of ways, all of which use the Authorization header.
const (
	AuthBasic  AuthType = "basic"  // a user name and a password (RFC 7617)
	AuthBearer AuthType = "bearer" // a token that does not change (RFC 6750)
	AuthOAuth2 AuthType = "oauth2" // tokens by client credentials (RFC 6749, section 4.4)
)

// AuthStyle is where a request for a token has the client's credentials.
type AuthStyle string

// The closed set of styles (RFC 6749, section 2.3.1).
const (
	AuthStyleBasic AuthStyle = "basic" // in the Authorization header
	AuthStyleBody  AuthStyle = "body"  // beside the other parameters
)

// Bounds of Auth, in bytes but for the number of scopes.
const (
	MaxUsername    = 255
	MaxPassword    = 1024
	MaxBearerToken = 4096
	MaxScopes      = 50
	MaxScope       = 256
	MaxAudience    = 2048
)

// Auth is what a webhook's requests say of who sends them. Which fields there are is
// up to Type.
type Auth struct {
	Type AuthType `json:"type"`

	Username string `json:"username,omitzero"` // basic
	Password Secret `json:"password,omitzero"` // basic

	Token Secret `json:"token,omitzero"` // bearer

	// Those of oauth2: where tokens are asked for, by whom, and for what.
	TokenURL     string    `json:"token_url,omitzero"`
	ClientID     string    `json:"client_id,omitzero"`
	ClientSecret Secret    `json:"client_secret,omitzero"`
	Scopes       []string  `json:"scopes,omitzero"` // never nil for oauth2
	Audience     string    `json:"audience,omitzero"`
	AuthStyle    AuthStyle `json:"auth_style,omitzero"`
}

// Secrets are the texts in it that must not be shown.
func (a *Auth) Secrets() []Secret {
	return slices.DeleteFunc([]Secret{a.Password, a.Token, a.ClientSecret}, Secret.IsZero)
}

// Equal reports whether both say the same.
func (a *Auth) Equal(b *Auth) bool {
	return a.Type == b.Type && a.Username == b.Username && a.Password.Reveal() == b.Password.Reveal() &&
		a.Token.Reveal() == b.Token.Reveal() && a.TokenURL == b.TokenURL && a.ClientID == b.ClientID &&
		a.ClientSecret.Reveal() == b.ClientSecret.Reveal() && slices.Equal(a.Scopes, b.Scopes) &&
		a.Audience == b.Audience && a.AuthStyle == b.AuthStyle
}

// Keep puts the secrets that are stored in place of each "***". It returns what is
// wrong, by JSON Pointers that begin at a. A client's secret is not kept for another
// token_url than it was given for: whoever may change a webhook would otherwise learn
// it.
func (a *Auth) Keep(stored *Auth) []FieldError {
	if stored == nil || stored.Type != a.Type {
		stored = &Auth{TokenURL: a.TokenURL}
	}
	var faults []FieldError
	for _, secret := range []struct {
		pointer string
		given   *Secret
		stored  Secret
	}{
		{"/password", &a.Password, stored.Password},
		{"/token", &a.Token, stored.Token},
		{"/client_secret", &a.ClientSecret, stored.ClientSecret},
	} {
		kept, found := keep(*secret.given, secret.stored)
		switch {
		case !found:
			faults = append(faults, FieldError{Pointer: secret.pointer, Detail: nothingKept})
		case secret.given.Reveal() == Masked && a.TokenURL != stored.TokenURL:
			faults = append(faults, FieldError{Pointer: secret.pointer, Detail: "must be given again, since token_url changes"})
		}
		*secret.given = kept
	}
	return faults
}

// check returns what is wrong, by JSON Pointers below the given one. The rules for
// token_url belong to package egress.
func (a *Auth) check(pointer string) []FieldError {
	var faults []FieldError
	fault := func(name, detail string) {
		if detail != "" {
			faults = append(faults, FieldError{Pointer: pointer + name, Detail: detail})
		}
	}
	switch a.Type {
	case AuthBasic:
		fault("/username", checkUsername(a.Username))
		fault("/password", checkPassword(a.Password, 0))
	case AuthBearer:
		fault("/token", checkVisible(a.Token.Reveal(), MaxBearerToken, ""))
	case AuthOAuth2:
		if a.TokenURL == "" {
			fault("/token_url", "is required")
		}
		fault("/client_id", checkLine(a.ClientID, 1, MaxUsername))
		fault("/client_secret", checkPassword(a.ClientSecret, 1))
		if len(a.Scopes) > MaxScopes {
			fault("/scopes", fmt.Sprintf("must have at most %d entries", MaxScopes))
		}
		for i, scope := range a.Scopes {
			fault(fmt.Sprintf("/scopes/%d", i), checkVisible(scope, MaxScope, `"\`))
		}
		fault("/audience", checkLine(a.Audience, 0, MaxAudience))
		if a.AuthStyle != AuthStyleBasic && a.AuthStyle != AuthStyleBody {
			fault("/auth_style", `must be "basic" or "body"`)
		}
	default:
		fault("/type", `must be "basic", "bearer" or "oauth2"`)
	}
	return faults
}

// checkUsername leaves out what RFC 7617 cannot express.
func checkUsername(name string) string {
	if strings.Contains(name, ":") {
		return "must not contain a colon"
	}
	return checkLine(name, 1, MaxUsername)
}

func checkPassword(password Secret, shortest int) string {
	if password.IsZero() {
		return "is required"
	}
	return checkLine(password.Reveal(), shortest, MaxPassword)
}

// checkLine allows any text without control characters.
func checkLine(s string, shortest, longest int) string {
	switch {
	case len(s) < shortest:
		return "must not be empty"
	case len(s) > longest:
		return fmt.Sprintf("must be at most %d bytes long", longest)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "must be valid UTF-8 without control characters"
	}
	return ""
}

// checkVisible allows visible ASCII characters but those given.
func checkVisible(s string, longest int, without string) string {
	switch {
	case s == "":
		return "must not be empty"
	case len(s) > longest:
		return fmt.Sprintf("must be at most %d bytes long", longest)
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(without, r) }):
		return "has characters that are not allowed there"
	}
	return ""
}

// KeepHeaders puts the values that are stored in place of each "***", whatever the
// spelling of their names. It returns what is wrong, by JSON Pointers that begin at
// the headers.
func KeepHeaders(headers, stored map[string]Secret) []FieldError {
	known := make(map[string]Secret, len(stored))
	for name, value := range stored {
		known[textproto.CanonicalMIMEHeaderKey(name)] = value
	}
	var faults []FieldError
	for name, value := range headers {
		kept, found := keep(value, known[textproto.CanonicalMIMEHeaderKey(name)])
		if !found {
			faults = append(faults, FieldError{Pointer: "/" + EscapePointer(name), Detail: nothingKept})
		}
		headers[name] = kept
	}
	return faults
}

// credentials is the one document in which all of a webhook's secrets but those that
// sign are sealed. Its form is stored: fields are only ever added.
type credentials struct {
	Headers map[string]string `json:"headers,omitempty"`
	Auth    *openAuth         `json:"auth,omitempty"`
	TLS     *openTLS          `json:"tls,omitempty"`
}

type openAuth struct {
	Type         AuthType  `json:"type"`
	Username     string    `json:"username,omitempty"`
	Password     *string   `json:"password,omitempty"`
	Token        *string   `json:"token,omitempty"`
	TokenURL     string    `json:"token_url,omitempty"`
	ClientID     string    `json:"client_id,omitempty"`
	ClientSecret *string   `json:"client_secret,omitempty"`
	Scopes       []string  `json:"scopes"`
	Audience     string    `json:"audience,omitempty"`
	AuthStyle    AuthStyle `json:"auth_style,omitempty"`
}

type openTLS struct {
	ClientCertificate *string `json:"client_certificate,omitempty"`
	ClientKey         *string `json:"client_key,omitempty"`
	CACertificates    *string `json:"ca_certificates,omitempty"`
	ServerName        string  `json:"server_name,omitempty"`
}

// EncodeCredentials writes Auth and TLS, and if asked for Headers, in the open: for
// nothing but to be sealed.
func (w *Webhook) EncodeCredentials(headers bool) ([]byte, error) {
	c := credentials{}
	if headers {
		c.Headers = RevealAll(w.Headers)
	}
	if a := w.Auth; a != nil {
		c.Auth = &openAuth{
			a.Type, a.Username, a.Password.text, a.Token.text, a.TokenURL, a.ClientID, a.ClientSecret.text,
			a.Scopes, a.Audience, a.AuthStyle,
		}
	}
	if t := w.TLS; t != nil {
		c.TLS = &openTLS{t.ClientCertificate.text, t.ClientKey.text, t.CACertificates.text, t.ServerName}
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the credentials of webhook %s: %w", w.ID, err)
	}
	return text, nil
}

// DecodeCredentials reads what EncodeCredentials wrote. Headers are left as they are
// where the document has none. The error repeats nothing of the text.
func (w *Webhook) DecodeCredentials(text []byte) error {
	var c credentials
	if json.Unmarshal(text, &c) != nil {
		return fmt.Errorf("decode the credentials of webhook %s: not what was written", w.ID)
	}
	if len(c.Headers) > 0 {
		w.Headers = make(map[string]Secret, len(c.Headers))
		for name, value := range c.Headers {
			w.Headers[name] = NewSecret(value)
		}
	}
	w.Auth, w.TLS = nil, nil
	if a := c.Auth; a != nil {
		w.Auth = &Auth{
			a.Type, a.Username,
			Secret{a.Password},
			Secret{a.Token},
			a.TokenURL, a.ClientID,
			Secret{a.ClientSecret},
			a.Scopes, a.Audience, a.AuthStyle,
		}
	}
	if t := c.TLS; t != nil {
		w.TLS = &TLS{Secret{t.ClientCertificate}, Secret{t.ClientKey}, Secret{t.CACertificates}, t.ServerName}
	}
	return nil
}

// RevealAll is headers with their values in the open; never nil.
func RevealAll(headers map[string]Secret) map[string]string {
	open := make(map[string]string, len(headers))
	for name, value := range headers {
		open[name] = value.Reveal()
	}
	return open
}

package client

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Masked is what a secret of a webhook reads as. In an update it stands for the
// secret that is stored.
const Masked = "***"

// AuthType is how a webhook's requests say who sends them. A newer Fairhook may have
// more than these.
type AuthType string

// The types of Auth.
const (
	AuthBasic  AuthType = "basic"  // a user name and a password
	AuthBearer AuthType = "bearer" // a token that does not change
	AuthOAuth2 AuthType = "oauth2" // tokens by OAuth 2.0 client credentials
)

// AuthStyle is where a request for a token has the client's credentials.
type AuthStyle string

// The styles.
const (
	AuthStyleBasic AuthStyle = "basic" // in the Authorization header; the default
	AuthStyleBody  AuthStyle = "body"  // beside the other parameters
)

// Auth is what a webhook's requests say of who sends them, in their Authorization
// header. Which fields count is up to Type. Read from Fairhook, its secrets are
// Masked. It prints without them.
type Auth struct {
	Type AuthType `json:"type"`

	Username string `json:"username,omitzero"` // AuthBasic
	Password string `json:"password,omitzero"` // AuthBasic

	Token string `json:"token,omitzero"` // AuthBearer

	// Those of AuthOAuth2: where tokens are asked for, by whom, and for what.
	TokenURL     string    `json:"token_url,omitzero"`
	ClientID     string    `json:"client_id,omitzero"`
	ClientSecret string    `json:"client_secret,omitzero"`
	Scopes       []string  `json:"scopes,omitzero"`
	Audience     string    `json:"audience,omitzero"`
	AuthStyle    AuthStyle `json:"auth_style,omitzero"`
}

// MarshalJSON writes an empty password of AuthBasic too, which is one like any other.
func (a Auth) MarshalJSON() ([]byte, error) {
	type plain Auth // without this method
	if a.Type != AuthBasic {
		return json.Marshal(plain(a))
	}
	return json.Marshal(struct {
		plain
		Password string `json:"password"`
	}{plain(a), a.Password})
}

// Format hides the secrets under every verb of package fmt.
func (a Auth) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "auth "+string(a.Type)) }

// TLS is what is special about connections to a webhook. Read from Fairhook, all but
// ServerName is Masked. It prints without the certificates and the key.
type TLS struct {
	// ClientCertificate is a chain in PEM, the leaf first, and ClientKey the leaf's
	// private key in PEM; both or none.
	ClientCertificate string `json:"client_certificate,omitzero"`
	ClientKey         string `json:"client_key,omitzero"`
	// CACertificates are the authorities in PEM that the receiver's certificate must
	// chain to, instead of the system's.
	CACertificates string `json:"ca_certificates,omitzero"`
	// ServerName is whom the receiver's certificate must be for; empty: the URL's host.
	ServerName string `json:"server_name,omitzero"`
}

// Format hides the certificates and the key under every verb of package fmt.
func (t TLS) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "tls "+t.ServerName) }

// ShownTLS is TLS with what may be told of the certificates.
type ShownTLS struct {
	TLS
	Certificate *Certificate  `json:"certificate"` // nil: there is none
	Authorities []Certificate `json:"authorities"`
}

// Certificate is what may be told of a certificate.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA256    string    `json:"sha256"` // the fingerprint, in hexadecimal
}

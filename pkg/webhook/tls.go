package webhook

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Bounds of TLS: the lengths in bytes of PEM.
const (
	MaxClientCertificate = 32 << 10
	MaxClientKey         = 16 << 10
	MaxCACertificates    = 64 << 10
	MaxServerName        = 253
)

// TLS is what is special about a webhook's connections: the certificate by which the
// receiver knows them, and how the receiver's own is judged.
type TLS struct {
	// ClientCertificate is a chain in PEM, the leaf first, and ClientKey the leaf's
	// private key; both or none.
	ClientCertificate Secret `json:"client_certificate,omitzero"`
	ClientKey         Secret `json:"client_key,omitzero"`
	// CACertificates are the authorities in PEM that the receiver's certificate must
	// chain to, instead of the system's; unset: the system's.
	CACertificates Secret `json:"ca_certificates,omitzero"`
	// ServerName is what the receiver's certificate must be for, and what it is asked
	// for by (SNI); empty: the URL's host.
	ServerName string `json:"server_name,omitzero"`
}

// Certificate is what may be told of a certificate.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA256    string    `json:"sha256"` // of its DER, in hexadecimal
}

// MarshalJSON hides the certificates themselves, and shows what may be told of them.
func (t TLS) MarshalJSON() ([]byte, error) {
	type plain TLS // without this method
	view := struct {
		plain
		Certificate *Certificate  `json:"certificate,omitzero"`
		Authorities []Certificate `json:"authorities,omitzero"`
	}{plain: plain(t)}
	if chain, err := parseCertificates(t.ClientCertificate.Reveal()); err == nil {
		view.Certificate = &describe(chain[:1])[0]
	}
	if authorities, err := parseCertificates(t.CACertificates.Reveal()); err == nil {
		view.Authorities = describe(authorities)
	}
	return json.Marshal(view)
}

func describe(certificates []*x509.Certificate) []Certificate {
	told := make([]Certificate, len(certificates))
	for i, c := range certificates {
		sum := sha256.Sum256(c.Raw)
		told[i] = Certificate{c.Subject.String(), c.Issuer.String(), c.NotBefore.UTC(), c.NotAfter.UTC(), hex.EncodeToString(sum[:])}
	}
	return told
}

// Equal reports whether both say the same.
func (t *TLS) Equal(o *TLS) bool {
	return t.ClientCertificate.Reveal() == o.ClientCertificate.Reveal() && t.ClientKey.Reveal() == o.ClientKey.Reveal() &&
		t.CACertificates.Reveal() == o.CACertificates.Reveal() && t.ServerName == o.ServerName
}

// NotAfter is when the client certificate, or one of its chain, expires first; zero
// where there is none.
func (t *TLS) NotAfter() time.Time {
	chain, err := parseCertificates(t.ClientCertificate.Reveal())
	if err != nil {
		return time.Time{}
	}
	first := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first.UTC()
}

// KeyPair is the client certificate with its key; nil where there is none. The error
// repeats nothing of either.
func (t *TLS) KeyPair() (*tls.Certificate, error) {
	if t.ClientCertificate.IsZero() {
		return nil, nil
	}
	pair, err := tls.X509KeyPair([]byte(t.ClientCertificate.Reveal()), []byte(t.ClientKey.Reveal()))
	if err != nil {
		return nil, errors.New("the client certificate and key are no pair")
	}
	return &pair, nil
}

// Authorities is the pool of CACertificates; nil where the system's count. The error
// repeats nothing of them.
func (t *TLS) Authorities() (*x509.CertPool, error) {
	if t.CACertificates.IsZero() {
		return nil, nil
	}
	certificates, err := parseCertificates(t.CACertificates.Reveal())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool, nil
}

// Keep puts what is stored in place of each "***". It returns what is wrong, by JSON
// Pointers that begin at t.
func (t *TLS) Keep(stored *TLS) []FieldError {
	if stored == nil {
		stored = &TLS{}
	}
	var faults []FieldError
	for _, secret := range []struct {
		pointer string
		given   *Secret
		stored  Secret
	}{
		{"/client_certificate", &t.ClientCertificate, stored.ClientCertificate},
		{"/client_key", &t.ClientKey, stored.ClientKey},
		{"/ca_certificates", &t.CACertificates, stored.CACertificates},
	} {
		kept, found := keep(*secret.given, secret.stored)
		if !found {
			faults = append(faults, FieldError{Pointer: secret.pointer, Detail: nothingKept})
		}
		*secret.given = kept
	}
	return faults
}

// Check returns what is wrong at this moment, by JSON Pointers that begin at t. It
// repeats nothing of what was given.
func (t *TLS) Check(now time.Time) []FieldError {
	var faults []FieldError
	fault := func(pointer, detail string) {
		if detail != "" {
			faults = append(faults, FieldError{Pointer: pointer, Detail: detail})
		}
	}
	if *t == (TLS{}) {
		fault("", "must have at least one of client_certificate, ca_certificates and server_name")
		return faults
	}
	t.checkPair(now, fault)
	if !t.CACertificates.IsZero() {
		text := t.CACertificates.Reveal()
		_, err := parseCertificates(text)
		switch {
		case len(text) > MaxCACertificates:
			fault("/ca_certificates", fmt.Sprintf("must be at most %d bytes long", MaxCACertificates))
		case err != nil:
			fault("/ca_certificates", err.Error())
		}
	}
	if t.ServerName != "" && !isHostName(t.ServerName) {
		fault("/server_name", "must be a host name")
	}
	return faults
}

// checkPair is Check for the client certificate and its key.
func (t *TLS) checkPair(now time.Time, fault func(pointer, detail string)) {
	switch {
	case t.ClientCertificate.IsZero() && t.ClientKey.IsZero():
		return
	case t.ClientCertificate.IsZero():
		fault("/client_certificate", "is required with a client_key")
		return
	case t.ClientKey.IsZero():
		fault("/client_key", "is required with a client_certificate")
		return
	case len(t.ClientCertificate.Reveal()) > MaxClientCertificate:
		fault("/client_certificate", fmt.Sprintf("must be at most %d bytes long", MaxClientCertificate))
		return
	case len(t.ClientKey.Reveal()) > MaxClientKey:
		fault("/client_key", fmt.Sprintf("must be at most %d bytes long", MaxClientKey))
		return
	}
	chain, err := parseCertificates(t.ClientCertificate.Reveal())
	if err != nil {
		fault("/client_certificate", err.Error())
	}
	detail := checkKey(t.ClientKey.Reveal())
	fault("/client_key", detail)
	if err != nil || detail != "" {
		return
	}
	if _, err := t.KeyPair(); err != nil {
		fault("/client_key", "is not the key of the client_certificate's first certificate")
	}
	for _, c := range chain {
		switch {
		case now.After(c.NotAfter):
			fault("/client_certificate", "expired at "+c.NotAfter.UTC().Format(time.RFC3339))
			return
		case now.Before(c.NotBefore):
			fault("/client_certificate", "is not valid before "+c.NotBefore.UTC().Format(time.RFC3339))
			return
		}
	}
}

// parseCertificates reads certificates in PEM, at least one. What stands between
// them is passed over, as it commonly is.
func parseCertificates(text string) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && len(certificates) == 0:
			return nil, errors.New("must be certificates in PEM")
		case block == nil && bytes.Contains(rest, []byte("-----BEGIN")):
			return nil, fmt.Errorf("has something after %d certificates that is not PEM", len(certificates))
		case block == nil:
			return certificates, nil
		case block.Type != "CERTIFICATE":
			return nil, errors.New("must have nothing but certificates")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("has as number %d what is no certificate", len(certificates)+1)
		}
		certificates = append(certificates, c)
	}
}

// checkKey looks at the form of a private key alone.
func checkKey(text string) string {
	block, rest := pem.Decode([]byte(text))
	for block != nil && !strings.HasSuffix(block.Type, "PRIVATE KEY") { // such as EC PARAMETERS
		block, rest = pem.Decode(rest)
	}
	switch {
	case block == nil:
		return "must be a private key in PEM"
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return "must not be encrypted with a passphrase: it is sealed here"
	}
	return ""
}

// isHostName tells a name from an address and from what is neither.
func isHostName(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil || len(name) > MaxServerName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

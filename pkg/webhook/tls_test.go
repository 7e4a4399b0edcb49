package webhook_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
	"github.com/fairhook/fairhook/pkg/webhook/certtest"
)

func pointers(faults []webhook.FieldError) []string {
	all := []string{}
	for _, f := range faults {
		all = append(all, f.Pointer)
	}
	return all
}

func TestTLSCheck(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ca := certtest.New(t, "The Authority")
	good, other := ca.Issue(t, "client"), ca.Issue(t, "other")
	old := ca.IssueFor(t, "old", now.Add(-2*time.Hour), now.Add(-time.Hour))
	early := ca.IssueFor(t, "early", now.Add(time.Hour), now.Add(2*time.Hour))
	key := webhook.NewSecret(good.Key)
	certificate := webhook.NewSecret(good.Certificate)
	raw, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	openssl := string(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8}})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))

	for name, tc := range map[string]struct {
		tls  webhook.TLS
		want []string
	}{
		"APair":                      {webhook.TLS{ClientCertificate: certificate, ClientKey: key}, nil},
		"AChain":                     {webhook.TLS{ClientCertificate: webhook.NewSecret(good.Certificate + ca.PEM), ClientKey: key}, nil},
		"WithTextBetween":            {webhook.TLS{CACertificates: webhook.NewSecret("# one\n" + ca.PEM + "\n# two\n" + ca.PEM + "\n")}, nil},
		"AName":                      {webhook.TLS{ServerName: "hooks.internal"}, nil},
		"Nothing":                    {webhook.TLS{}, []string{""}},
		"ACertificateAlone":          {webhook.TLS{ClientCertificate: certificate}, []string{"/client_key"}},
		"AKeyAlone":                  {webhook.TLS{ClientKey: key}, []string{"/client_certificate"}},
		"AnotherKey":                 {webhook.TLS{ClientCertificate: certificate, ClientKey: webhook.NewSecret(other.Key)}, []string{"/client_key"}},
		"AKeyAsOpenSSLWritesIt":      {webhook.TLS{ClientCertificate: certificate, ClientKey: webhook.NewSecret(openssl)}, []string{"/client_key"}},
		"TheChainTheWrongWayRound":   {webhook.TLS{ClientCertificate: webhook.NewSecret(ca.PEM + good.Certificate), ClientKey: key}, []string{"/client_key"}},
		"NoPEM":                      {webhook.TLS{ClientCertificate: webhook.NewSecret("x"), ClientKey: webhook.NewSecret("y")}, []string{"/client_certificate", "/client_key"}},
		"AnEmptyOne":                 {webhook.TLS{ClientCertificate: webhook.NewSecret(""), ClientKey: key}, []string{"/client_certificate"}},
		"TheKeyAmongTheCertificates": {webhook.TLS{ClientCertificate: webhook.NewSecret(good.Certificate + good.Key), ClientKey: key}, []string{"/client_certificate"}},
		"AKeyWithAPassphrase": {
			webhook.TLS{ClientCertificate: certificate, ClientKey: webhook.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY"})))},
			[]string{"/client_key"},
		},
		"AnExpiredOne":      {webhook.TLS{ClientCertificate: webhook.NewSecret(old.Certificate), ClientKey: webhook.NewSecret(old.Key)}, []string{"/client_certificate"}},
		"OneThatComesLater": {webhook.TLS{ClientCertificate: webhook.NewSecret(early.Certificate), ClientKey: webhook.NewSecret(early.Key)}, []string{"/client_certificate"}},
		"ADamagedAuthority": {webhook.TLS{CACertificates: webhook.NewSecret(ca.PEM + strings.Replace(ca.PEM, "\nMII", "\nMIJ", 1))}, []string{"/ca_certificates"}},
		"ACutAuthority":     {webhook.TLS{CACertificates: webhook.NewSecret(ca.PEM + ca.PEM[:100])}, []string{"/ca_certificates"}},
		"TooManyAuthorities": {
			webhook.TLS{CACertificates: webhook.NewSecret(strings.Repeat(ca.PEM, webhook.MaxCACertificates/len(ca.PEM)+1))}, []string{"/ca_certificates"},
		},
		"AnAddressAsAName": {webhook.TLS{ServerName: "127.0.0.1"}, []string{"/server_name"}},
		"AURLAsAName":      {webhook.TLS{ServerName: "https://a"}, []string{"/server_name"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := tc.tls.Check(now)
			if got := pointers(faults); !slices.Equal(got, tc.want) && len(got)+len(tc.want) > 0 {
				t.Errorf("faults %v, want at %q", faults, tc.want)
			}
			for _, f := range faults {
				if strings.Contains(f.Detail, "MII") || strings.Contains(f.Detail, "BEGIN") {
					t.Errorf("the fault repeats what was given: %s", f.Detail)
				}
			}
		})
	}
}

func TestTLSIsShownByWhatMayBeTold(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "The Authority")
	until := time.Now().Add(time.Minute).Truncate(time.Second).UTC()
	pair := ca.IssueFor(t, "client 7", time.Now().Add(-time.Minute), until)
	tls := &webhook.TLS{
		ClientCertificate: webhook.NewSecret(pair.Certificate + ca.PEM), ClientKey: webhook.NewSecret(pair.Key),
		CACertificates: webhook.NewSecret(ca.PEM), ServerName: "s",
	}
	text, err := json.Marshal(map[string]*webhook.TLS{"tls": tls})
	var shown struct {
		TLS struct {
			ClientCertificate string                `json:"client_certificate"`
			ClientKey         string                `json:"client_key"`
			CACertificates    string                `json:"ca_certificates"`
			ServerName        string                `json:"server_name"`
			Certificate       webhook.Certificate   `json:"certificate"`
			Authorities       []webhook.Certificate `json:"authorities"`
		} `json:"tls"`
	}
	if err != nil || json.Unmarshal(text, &shown) != nil {
		t.Fatalf("%s, %v", text, err)
	}
	s := shown.TLS
	if s.ClientCertificate != "***" || s.ClientKey != "***" || s.CACertificates != "***" || s.ServerName != "s" ||
		s.Certificate.Subject != "CN=client 7" || s.Certificate.Issuer != "CN=The Authority" || !s.Certificate.NotAfter.Equal(until) ||
		len(s.Certificate.SHA256) != 64 || len(s.Authorities) != 1 || s.Authorities[0].Subject != "CN=The Authority" {
		t.Errorf("shown as %s", text)
	}
	if strings.Contains(string(text), "MII") {
		t.Errorf("shows a certificate: %s", text)
	}
	if got := tls.NotAfter(); !got.Equal(until) {
		t.Errorf("expires at %s, want %s", got, until)
	}
	if got := (&webhook.TLS{ServerName: "s"}).NotAfter(); !got.IsZero() {
		t.Errorf("without a certificate it expires at %s", got)
	}
}

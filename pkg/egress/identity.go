package egress

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
)

// TLS is what one receiver's connections have of their own.
type TLS struct {
	// Certificate is shown to a receiver that asks for one, whichever authorities it
	// names: its refusal says more than our silence would. Nil: none is.
	Certificate *tls.Certificate
	// RootCAs are the authorities that the receiver's certificate must chain to,
	// instead of the Guard's. Nil: the Guard's.
	RootCAs *x509.CertPool
	// ServerName is whom the receiver's certificate must be for. Empty: the URL's host.
	ServerName string
}

// maxOwnIdleConns bounds the unused connections that a client of ClientFor keeps.
const maxOwnIdleConns = 64

// ClientFor is Client with connections of its own, which are made by the same rules
// and, but for config, in the same way.
func (g *Guard) ClientFor(config TLS) *http.Client {
	transport := g.newTransport(g.cfg)
	transport.MaxIdleConns = min(transport.MaxIdleConns, maxOwnIdleConns)
	transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	transport.TLSClientConfig.ServerName = config.ServerName
	if config.RootCAs != nil {
		transport.TLSClientConfig.RootCAs = config.RootCAs
	}
	if config.Certificate != nil {
		transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return config.Certificate, nil
		}
	}
	return g.client(transport)
}

package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"syscall"
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
const maxOwnIdleConns = 256

// ClientFor is Client with connections of its own, which are made by the same rules
// and, but for config, in the same way.
func (g *Guard) ClientFor(config TLS) *http.Client {
	transport := g.newTransport(g.cfg)
	transport.MaxIdleConns = min(transport.MaxIdleConns, maxOwnIdleConns)
	transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	transport.DialContext = dialPatiently(transport.DialContext)
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

// patient is a connection whose writes do not say that the other side has ended it.
//
// With TLS 1.3 a server judges the client's certificate after the client's handshake
// is over. Its alert, which says what is wrong, and the end of the connection arrive
// while the request is being written, and a write that fails first would be all that
// is heard. So that is left to reading, which gives the alert, or else the same end:
// whoever writes on such a connection reads from it too.
type patient struct{ net.Conn }

// dialPatiently makes connections that are patient.
func dialPatiently(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return patient{conn}, nil
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

func (c patient) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(p), nil
	}
	return n, err
}

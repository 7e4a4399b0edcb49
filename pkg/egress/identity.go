package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
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

// patient is a connection whose failing writes wait for what the other side has said.
//
// With TLS 1.3 a server judges the client's certificate after the client's handshake
// is over. Its alert, which says what is wrong, and the end of the connection arrive
// while the request is being written, and a write that fails first would be all that
// is heard. So on a new connection, and as long as nothing was read since the last
// write, a write that fails is not reported: reading gives the alert, or else the same
// end. A connection that was idle is no such case: there net/http takes another.
type patient struct {
	net.Conn
	newUntil time.Time
	written  atomic.Bool // and nothing read since
}

// newFor is how long a connection counts as new: reading the alert is no reason for the
// next write to say something else.
const newFor = 5 * time.Second

// dialPatiently makes connections that are patient.
func dialPatiently(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &patient{Conn: conn, newUntil: time.Now().Add(newFor)}, nil
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

func (c *patient) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.written.Store(false)
	}
	return n, err
}

func (c *patient) Write(p []byte) (int, error) {
	unanswered := c.written.Swap(true)
	n, err := c.Conn.Write(p)
	if (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) && (unanswered || time.Now().Before(c.newUntil)) {
		return len(p), nil
	}
	return n, err
}

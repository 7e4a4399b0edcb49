// Package egress guards what a webhook's URL can make this process connect to.
//
// It guarantees that a connection made through a Guard's client or transport
// goes to no address of the IANA special-purpose registries (loopback, private
// networks, link-local, cloud metadata and the rest) unless the operator's allow
// list names it. The address is judged when the socket is about to connect,
// after name resolution, so that a name that resolves to something else later
// (DNS rebinding) gains nothing. Redirects are never followed, proxies from the
// environment are never used, and headers, idle connections and the time of
// each phase of connecting are bounded.
//
// With a Proxy of the operator's, all of it holds too: names are resolved and
// judged here as before, and the proxy is asked for the address that was judged,
// never for the name. If any of a name's addresses is refused, the request is.
// The proxy's own address is exempt, as the proxy alone.
//
// It leaves to callers the deadline of a whole request, and how much of a body
// they read.
package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// ErrBlocked is in the chain of every error that a refused address causes, from
// CheckURL and from a request alike. Its text names no address.
var ErrBlocked = errors.New("the address is private or otherwise not allowed")

// ErrBadURL is in the chain of every error about a URL that breaks the rules by
// its form.
var ErrBadURL = errors.New("the URL is not allowed")

// Defaults of Config's limits.
const (
	DefaultDialTimeout            = 10 * time.Second
	DefaultTLSTimeout             = 10 * time.Second
	DefaultIdleTimeout            = 90 * time.Second
	DefaultMaxIdleConns           = 4096
	DefaultMaxIdleConnsPerHost    = 1024
	DefaultMaxResponseHeaderBytes = 64 << 10
)

// Config says what a Guard lets through. Its zero value is strict about
// addresses, allows http and https, and has the default limits.
type Config struct {
	// AllowPrivate are the networks that are let through although they are not
	// public, such as 127.0.0.0/8 for development. Empty by default.
	AllowPrivate []netip.Prefix
	// RequireHTTPS refuses http URLs. Off by default.
	RequireHTTPS bool

	// DialTimeout bounds name resolution and the TCP connection together. Zero
	// means DefaultDialTimeout.
	DialTimeout time.Duration
	// TLSTimeout bounds the TLS handshake. Zero means DefaultTLSTimeout.
	TLSTimeout time.Duration
	// IdleTimeout is how long an unused connection is kept. Zero means
	// DefaultIdleTimeout.
	IdleTimeout time.Duration
	// MaxIdleConns bounds the unused connections kept, over all hosts. Zero means
	// DefaultMaxIdleConns.
	MaxIdleConns int
	// MaxIdleConnsPerHost bounds the unused connections kept to one host. Zero
	// means DefaultMaxIdleConnsPerHost.
	MaxIdleConnsPerHost int
	// MaxConnsPerHost bounds all connections to one host; requests over it wait,
	// within their deadline. Zero means no bound.
	MaxConnsPerHost int
	// MaxResponseHeaderBytes bounds the header of an answer. Zero means
	// DefaultMaxResponseHeaderBytes.
	MaxResponseHeaderBytes int64

	// Proxy is what all connections go out through. Nil: directly.
	Proxy *Proxy

	// RootCAs are the authorities that receivers' certificates must chain to, and
	// that of an https proxy. Nil means the system's.
	RootCAs *x509.CertPool
	// Resolver looks host names up. Nil means the system's.
	Resolver *net.Resolver
}

// Guard judges URLs and addresses, and owns the one connection pool of what it
// lets through, but for what has a client of its own (ClientFor). It is safe for
// concurrent use.
type Guard struct {
	allow        []netip.Prefix // masked; IPv4-mapped ones unmapped
	requireHTTPS bool
	public       *ssrf.Guardian
	cfg          Config // of the transports
	transport    *http.Transport
}

// New makes a Guard. It reports everything that is wrong with the
// configuration at once.
func New(cfg Config) (*Guard, error) {
	var faults []error
	g := &Guard{
		requireHTTPS: cfg.RequireHTTPS,
		public: ssrf.New(
			ssrf.WithAnyPort(),
			ssrf.WithDeniedV4Prefixes(azureWireServer),
		),
	}
	for _, prefix := range cfg.AllowPrivate {
		if !prefix.IsValid() {
			faults = append(faults, fmt.Errorf("allowed network %s is not valid", prefix))
			continue
		}
		g.allow = append(g.allow, unmapPrefix(prefix.Masked()))
	}
	for name, value := range map[string]int64{
		"dial timeout": int64(cfg.DialTimeout), "TLS timeout": int64(cfg.TLSTimeout), "idle timeout": int64(cfg.IdleTimeout),
		"idle connections": int64(cfg.MaxIdleConns), "idle connections per host": int64(cfg.MaxIdleConnsPerHost),
		"connections per host": int64(cfg.MaxConnsPerHost), "response header bytes": cfg.MaxResponseHeaderBytes,
	} {
		if value < 0 {
			faults = append(faults, fmt.Errorf("limit on %s must not be negative", name))
		}
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("configure egress: %w", errors.Join(faults...))
	}
	g.cfg = cfg
	g.transport = g.newTransport(cfg)
	return g, nil
}

func (g *Guard) newTransport(cfg Config) *http.Transport {
	dialer := &net.Dialer{
		Timeout:  or(cfg.DialTimeout, DefaultDialTimeout),
		Resolver: cfg.Resolver,
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			return g.checkDial(network, address)
		},
	}
	dial := dialer.DialContext
	if cfg.Proxy != nil {
		dial = (&tunnel{
			proxy:    cfg.Proxy,
			dialer:   net.Dialer{Resolver: cfg.Resolver},
			tls:      &tls.Config{ServerName: cfg.Proxy.host, MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs},
			resolver: cfg.Resolver,
			timeout:  dialer.Timeout,
			admits:   g.admits,
		}).DialContext
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Transport{
		Proxy:               nil, // would hand a proxy names, which it resolves itself
		DialContext:         dial,
		TLSHandshakeTimeout: or(cfg.TLSTimeout, DefaultTLSTimeout),
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			RootCAs:            cfg.RootCAs,
			ClientSessionCache: tls.NewLRUClientSessionCache(1024),
		},
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			// What one receiver can make us hold before we read it. The defaults are
			// 4 MiB for a stream and 1 GiB for a connection.
			MaxReceiveBufferPerStream:     64 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			// Many requests share a connection: notice when it is dead.
			SendPingTimeout:  15 * time.Second,
			PingTimeout:      10 * time.Second,
			WriteByteTimeout: 30 * time.Second,
		},
		DisableCompression:     true, // the answer is kept as it came, and cannot unpack to more
		MaxIdleConns:           or(cfg.MaxIdleConns, DefaultMaxIdleConns),
		MaxIdleConnsPerHost:    or(cfg.MaxIdleConnsPerHost, DefaultMaxIdleConnsPerHost),
		MaxConnsPerHost:        cfg.MaxConnsPerHost,
		IdleConnTimeout:        or(cfg.IdleTimeout, DefaultIdleTimeout),
		MaxResponseHeaderBytes: or(cfg.MaxResponseHeaderBytes, DefaultMaxResponseHeaderBytes),
	}
}

// Transport is the Guard's transport, always the same one. It judges the
// addresses it dials, not the form of URLs; Client does both.
//
// A request can be sent again inside one round trip in these cases only, since
// net/http cannot be told otherwise. Over HTTP/1.1: when not a byte of it was
// written because the reused connection had been closed (a POST is never
// repeated after that, unless it has an Idempotency-Key or X-Idempotency-Key
// header in canonical spelling and a body that can be rewound). Over HTTP/2:
// when the receiver says that it did not process the stream (GOAWAY,
// REFUSED_STREAM, or PROTOCOL_ERROR on the stream) and the body can be rewound.
func (g *Guard) Transport() *http.Transport { return g.transport }

// Client is a client over Transport that also refuses, by CheckURL's rules, each
// request's URL before anything is resolved, and never follows a redirect. It
// has no timeout: give each request a deadline.
func (g *Guard) Client() *http.Client { return g.client(g.transport) }

func (g *Guard) client(transport *http.Transport) *http.Client {
	return &http.Client{
		Transport:     roundTripper{g, transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// roundTripper is a transport behind the rules for URLs.
type roundTripper struct {
	guard     *Guard
	transport *http.Transport
}

func (rt roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := rt.guard.checkURL(req.URL); err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // RoundTrip must close it, and nothing was read from it
		}
		return nil, err
	}
	return rt.transport.RoundTrip(req)
}

// CloseIdleConnections lets http.Client.CloseIdleConnections work.
func (rt roundTripper) CloseIdleConnections() { rt.transport.CloseIdleConnections() }

// checkDial judges the address that a socket is about to connect to.
func (g *Guard) checkDial(network, address string) error {
	if network != "tcp4" && network != "tcp6" {
		return ErrBlocked
	}
	target, err := netip.ParseAddrPort(address)
	if err != nil || !g.admits(target.Addr()) {
		return ErrBlocked
	}
	return nil
}

// azureWireServer is the virtual public address under which Azure's host answers
// its guests with credentials: public by registry, private by nature.
var azureWireServer = netip.MustParsePrefix("168.63.129.16/32")

// admits reports whether an address may be connected to: it is public, or the
// allow list has it.
//
// An IPv4-mapped address is the IPv4 address, and one of the well-known NAT64
// prefix (RFC 6052) stands for the IPv4 address in its last 32 bits: the
// translator connects there. 6to4, Teredo and the local-use NAT64 prefix
// 64:ff9b:1::/48 (RFC 8215), which carry an IPv4 address too, are not globally
// reachable by registry and are refused whatever they carry.
func (g *Guard) admits(addr netip.Addr) bool {
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	addr = addr.Unmap()
	if g.listed(addr) {
		return true
	}
	addr = embedded(addr)
	return g.listed(addr) || g.public.SafeAddr(addr) == nil
}

// embedded is the IPv4 address that one of the well-known NAT64 prefix stands for, and
// any other address itself.
func embedded(addr netip.Addr) netip.Addr {
	if !ssrf.IPv6NAT64Prefix.Contains(addr) {
		return addr
	}
	raw := addr.As16()
	return netip.AddrFrom4([4]byte(raw[12:]))
}

func (g *Guard) listed(addr netip.Addr) bool {
	return slices.ContainsFunc(g.allow, func(prefix netip.Prefix) bool { return prefix.Contains(addr) })
}

// unmapPrefix turns a prefix of IPv4-mapped addresses into the IPv4 prefix that
// addresses are compared with after Unmap.
func unmapPrefix(prefix netip.Prefix) netip.Prefix {
	if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
		return netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	return prefix
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

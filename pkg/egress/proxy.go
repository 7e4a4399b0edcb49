package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/proxy"
)

// ErrProxy is in the chain of every error that the operator's outbound proxy
// causes: it cannot be reached, refuses the request for a tunnel, or does not
// speak as it should. A receiver that the proxy cannot reach is no such error.
var ErrProxy = errors.New("the egress proxy failed")

// ProxyError says what is wrong with the outbound proxy, in words that may be
// shown to a webhook's owner: no address and no credentials. errors.Is recognises
// ErrProxy in it.
type ProxyError struct{ Detail string }

func (e *ProxyError) Error() string { return "the egress proxy " + e.Detail }

// Is makes errors.Is recognise ErrProxy.
func (e *ProxyError) Is(target error) bool { return target == ErrProxy }

// errUnreachable is about the receiver: the proxy has said that it got no
// connection to it.
var errUnreachable = errors.New("the egress proxy could not connect to the address")

const (
	// proxyTimeout is how long reaching the proxy itself may take, at most: it is
	// near, and what it takes is not there for the receiver.
	proxyTimeout = 5 * time.Second
	// maxTunnelHeader bounds a proxy's answer to CONNECT, in bytes.
	maxTunnelHeader = 16 << 10
)

// Proxy is an outbound proxy of the operator's. Its text has no credentials.
type Proxy struct {
	scheme string
	host   string // without a port
	port   string
	user   *url.Userinfo // nil: none
}

// proxyPorts are the schemes of proxies, and their default ports.
var proxyPorts = map[string]string{"http": "80", "https": "443", "socks5": "1080"}

// ParseProxy reads a proxy's URL: http or https for one that is asked with
// CONNECT (over TLS for the latter), socks5 for SOCKS version 5; user name and
// password may be in it. The error repeats nothing of the URL, which may hold a
// password.
func ParseProxy(text string) (*Proxy, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("must be a URL")
	}
	port, known := proxyPorts[u.Scheme]
	switch {
	case !known:
		return nil, errors.New("must begin with http://, https:// or socks5://")
	case u.Hostname() == "":
		return nil, errors.New("must have a host")
	case strings.TrimPrefix(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("must have nothing after the host and port")
	}
	if _, err := splitPort(u.Host); err != nil {
		return nil, err
	}
	if u.Port() != "" {
		port = u.Port()
	}
	return &Proxy{scheme: u.Scheme, host: u.Hostname(), port: port, user: u.User}, nil
}

func (p *Proxy) address() string { return net.JoinHostPort(p.host, p.port) }

// String is the proxy's URL without credentials.
func (p *Proxy) String() string { return p.scheme + "://" + p.address() }

// tunnel dials through a proxy. The name is resolved and judged here, and the
// proxy is asked for one of the addresses that were judged: what the name
// resolves to for the proxy is of no account.
type tunnel struct {
	proxy    *Proxy
	dialer   net.Dialer // to the proxy, whose own address is the operator's choice and not judged
	tls      *tls.Config
	resolver *net.Resolver
	timeout  time.Duration // of all together
	admits   func(netip.Addr) bool
}

// DialContext connects to a target through the proxy. If any of a name's
// addresses is refused, all of it is.
//
// Between name resolution and TLS a trace sees one phase, that of connecting.
func (t *tunnel) DialContext(ctx context.Context, _, address string) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	targets, err := t.resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.ConnectStart != nil && trace.ConnectDone != nil {
		trace.ConnectStart("tcp", address)
		defer func() { trace.ConnectDone("tcp", address, err) }()
	}
	deadline, _ := ctx.Deadline()
	for i, target := range targets {
		// An address that leads nowhere must leave time for those after it.
		share := time.Until(deadline) / time.Duration(len(targets)-i)
		one, stop := context.WithTimeout(ctx, share)
		conn, err = t.connect(one, target.String())
		stop()
		if err == nil || errors.Is(err, ErrProxy) || ctx.Err() != nil {
			break
		}
	}
	return conn, err
}

// resolve is the addresses of a target, all of them judged.
func (t *tunnel) resolve(ctx context.Context, address string) ([]netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial through the egress proxy: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("dial through the egress proxy: %w", err)
	}
	addrs := []netip.Addr{}
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, addr)
	} else if addrs, err = t.resolver.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	targets := make([]netip.AddrPort, 0, len(addrs))
	for _, addr := range addrs {
		if !t.admits(addr) {
			return nil, ErrBlocked
		}
		if target := netip.AddrPortFrom(addr.Unmap(), uint16(port)); !slices.Contains(targets, target) {
			targets = append(targets, target)
		}
	}
	return targets, nil
}

// connect has the proxy connect to one address.
func (t *tunnel) connect(ctx context.Context, target string) (net.Conn, error) {
	conn, err := t.reach(ctx)
	if err != nil {
		return nil, err
	}
	// The proxy's part ends with ctx; what is said through the tunnel later does not.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	ready, err := t.ask(ctx, conn, target)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return ready, nil
}

// reach connects to the proxy itself. Every error is the proxy's, unless the dial
// was called off.
func (t *tunnel) reach(ctx context.Context) (net.Conn, error) {
	reaching, cancel := context.WithTimeout(untraced{ctx}, proxyTimeout)
	defer cancel()
	conn, err := t.dialer.DialContext(reaching, "tcp", t.proxy.address())
	if err != nil {
		return nil, unlessCancelled(ctx, "cannot be reached")
	}
	if t.proxy.scheme != "https" {
		return conn, nil
	}
	secure := tls.Client(conn, t.tls)
	if err := secure.HandshakeContext(reaching); err != nil {
		_ = conn.Close()
		return nil, unlessCancelled(ctx, "cannot be reached: the TLS handshake with it failed")
	}
	return secure, nil
}

func unlessCancelled(ctx context.Context, detail string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return &ProxyError{detail}
}

// untraced is a context without the trace of the request, which would take the
// proxy's name and address for the receiver's.
type untraced struct{ context.Context }

func (untraced) Value(any) any { return nil }

// ask asks for a tunnel over a connection to the proxy.
func (t *tunnel) ask(ctx context.Context, conn net.Conn, target string) (net.Conn, error) {
	if t.proxy.scheme == "socks5" {
		return t.askSOCKS(ctx, conn, target)
	}
	req := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Opaque: target},
		Host:   target,
		Header: http.Header{"User-Agent": {"Fairhook"}},
	}
	if user := t.proxy.user; user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, &ProxyError{"closed the connection"}
	}
	limited := &io.LimitedReader{R: conn, N: maxTunnelHeader}
	reader := bufio.NewReader(limited)
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		return nil, silence(err, "closed the connection or does not speak HTTP")
	}
	switch resp.StatusCode {
	case http.StatusOK:
		limited.N = math.MaxInt64
		return &tunnelled{conn, reader}, nil
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return nil, errUnreachable
	}
	return nil, &ProxyError{fmt.Sprintf("refused the connection with status %d", resp.StatusCode)}
}

// tunnelled is a connection whose first bytes may have come with the proxy's
// answer.
type tunnelled struct {
	net.Conn
	reader io.Reader
}

func (c *tunnelled) Read(p []byte) (int, error) { return c.reader.Read(p) }

// silence is the error of a proxy that gave no answer. That it took too long is
// no fault of its own: it waits for the receiver.
func silence(err error, otherwise string) error {
	if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
		return err
	}
	return &ProxyError{otherwise}
}

// askSOCKS is ask for SOCKS version 5.
func (t *tunnel) askSOCKS(ctx context.Context, conn net.Conn, target string) (net.Conn, error) {
	var auth *proxy.Auth
	if user := t.proxy.user; user != nil {
		password, _ := user.Password()
		auth = &proxy.Auth{User: user.Username(), Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", t.proxy.address(), auth, connected{conn})
	if err != nil {
		return nil, &ProxyError{"cannot be used"}
	}
	ready, err := dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", target)
	switch {
	case err == nil:
		return ready, nil
	case slices.ContainsFunc(socksUnreachable, func(reply string) bool { return strings.HasSuffix(err.Error(), reply) }):
		return nil, errUnreachable
	}
	return nil, silence(err, "refused the connection or does not speak SOCKS 5")
}

// socksUnreachable are the replies that are about the receiver (RFC 1928, section
// 6). The library keeps their codes to itself.
var socksUnreachable = []string{"network unreachable", "host unreachable", "connection refused", "TTL expired"}

// connected is a dialer whose connection is there already.
type connected struct{ conn net.Conn }

func (c connected) Dial(string, string) (net.Conn, error) { return c.conn, nil }

func (c connected) DialContext(context.Context, string, string) (net.Conn, error) { return c.conn, nil }

package egress_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/egress/dnstest"
)

// testProxy is a proxy of the operator's: on loopback, which no webhook may
// reach here but under 127.0.0.1. It writes down what it is asked for.
type testProxy struct {
	url  string
	mu   sync.Mutex
	asks []string // targets
	auth []string
}

func (p *testProxy) note(target, auth string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asks, p.auth = append(p.asks, target), append(p.auth, auth)
}

func (p *testProxy) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.asks...)
}

// connectProxy is a proxy for CONNECT. refuse, unless nil, answers instead of
// connecting where it is not 0.
func connectProxy(t *testing.T, secure bool, refuse func(target string) int) (*testProxy, *httptest.Server) {
	t.Helper()
	p := &testProxy{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.note(r.Method+" "+r.RequestURI, r.Header.Get("Proxy-Authorization"))
		if refuse != nil {
			if status := refuse(r.RequestURI); status != 0 {
				w.WriteHeader(status)
				return
			}
		}
		target, err := net.Dial("tcp", r.RequestURI)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
		splice(conn, target)
	}))
	server.Config.ErrorLog = quiet()
	if secure {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	p.url = server.URL
	return p, server
}

// splice joins two connections until one ends.
func splice(a, b net.Conn) {
	go func() {
		_, _ = io.Copy(a, b)
		_ = a.Close()
	}()
	_, _ = io.Copy(b, a)
	_ = b.Close()
}

// socksProxy speaks SOCKS 5 (RFC 1928, RFC 1929). It answers with reply where
// that is not 0.
func socksProxy(t *testing.T, reply byte) *testProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	p := &testProxy{url: "socks5://" + listener.Addr().String()}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serveSOCKS(conn, reply)
		}
	}()
	return p
}

func (p *testProxy) serveSOCKS(conn net.Conn, reply byte) {
	defer conn.Close()
	read := func(n int) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(conn, b)
		return b
	}
	methods := read(int(read(2)[1]))
	auth := ""
	if len(methods) > 1 || methods[0] == 2 {
		_, _ = conn.Write([]byte{5, 2})
		user := string(read(int(read(2)[1])))
		auth = user + ":" + string(read(int(read(1)[0])))
		_, _ = conn.Write([]byte{1, 0})
	} else {
		_, _ = conn.Write([]byte{5, 0})
	}
	head := read(4)
	var host string
	switch head[3] {
	case 1:
		host = netip.AddrFrom4([4]byte(read(4))).String()
	case 3:
		host = "name:" + string(read(int(read(1)[0])))
	case 4:
		host = netip.AddrFrom16([16]byte(read(16))).String()
	}
	port := read(2)
	target := net.JoinHostPort(host, strconv.Itoa(int(port[0])<<8|int(port[1])))
	p.note("CONNECT "+target, auth)
	if reply != 0 {
		_, _ = conn.Write([]byte{5, reply, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	out, err := net.Dial("tcp", target)
	if err != nil {
		_, _ = conn.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	_, _ = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	splice(conn, out)
}

func parseProxy(t *testing.T, text string) *egress.Proxy {
	t.Helper()
	p, err := egress.ParseProxy(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// names resolves each name to its addresses, and no other.
func names(all map[string]string) *net.Resolver {
	return dnstest.Resolver(func(name string) []netip.Addr {
		var addrs []netip.Addr
		for _, text := range strings.Fields(all[name]) {
			addrs = append(addrs, netip.MustParseAddr(text))
		}
		return addrs
	})
}

func TestRequestsGoOutThroughTheProxy(t *testing.T) {
	t.Parallel()
	for scheme, receiver := range map[string]func(*httptest.Server){
		"PlainTarget": (*httptest.Server).Start,
		"TLSTarget":   func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() },
	} {
		for kind, start := range map[string]func(*testing.T) *testProxy{
			"HTTP":  func(t *testing.T) *testProxy { p, _ := connectProxy(t, false, nil); return p },
			"HTTPS": func(t *testing.T) *testProxy { p, _ := connectProxy(t, true, nil); return p },
			"SOCKS": func(t *testing.T) *testProxy { return socksProxy(t, 0) },
		} {
			t.Run(scheme+"Over"+kind, func(t *testing.T) {
				t.Parallel()
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.TLS != nil {
						_, _ = io.WriteString(w, r.TLS.ServerName+" ")
					}
					_, _ = io.WriteString(w, r.Host+" "+r.RequestURI)
				}))
				receiver(server)
				t.Cleanup(server.Close)
				p := start(t)
				tlsServer := server
				if server.Certificate() == nil {
					_, tlsServer = connectProxy(t, true, nil) // all test servers have one certificate
				}
				cfg := trusting(tlsServer)
				// Only the receiver's name leads to an address that is allowed; the proxy's
				// own is not, on purpose.
				cfg.AllowPrivate = prefixes("127.0.0.2/32")
				cfg.Resolver = names(map[string]string{"example.com": "127.0.0.2"})
				_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
				relay(t, "127.0.0.2:"+port, server.Listener.Addr().String())
				cfg.Proxy = parseProxy(t, withUser(p.url))

				url := strings.Split(server.URL, "://")[0] + "://example.com:" + port + "/hook?a=b"
				status, answer, err := post(t, newGuard(t, cfg).Client(), url, "x")
				if err != nil || status != http.StatusOK {
					t.Fatalf("%d, %v", status, err)
				}
				if want := "example.com:" + port + " /hook?a=b"; !strings.HasSuffix(answer, want) || server.TLS != nil && !strings.HasPrefix(answer, "example.com ") {
					t.Errorf("the receiver saw %q, want %q and the name in the handshake", answer, want)
				}
				if asked := p.asked(); len(asked) != 1 || asked[0] != "CONNECT 127.0.0.2:"+port {
					t.Errorf("the proxy was asked for %q, want the address that was judged", asked)
				}
				if auth := p.auth[0]; auth != "Basic "+base64.StdEncoding.EncodeToString([]byte("ann:s3cret")) && auth != "ann:s3cret" {
					t.Errorf("the proxy was shown the credentials %q", auth)
				}
			})
		}
	}
}

func withUser(proxyURL string) string { return strings.Replace(proxyURL, "://", "://ann:s3cret@", 1) }

// relay listens on one address and passes on to another.
func relay(t *testing.T, from, to string) {
	t.Helper()
	listener, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = conn.Close()
				return
			}
			go splice(conn, out)
		}
	}()
}

func TestAProxyIsAskedForNoAddressThatIsRefused(t *testing.T) {
	t.Parallel()
	resolver := names(map[string]string{
		"metadata.example": "169.254.169.254",
		"mixed.example":    "127.0.0.1 10.1.2.3", // one good address does not make up for a bad one
		"mixed6.example":   "127.0.0.1 fd00:ec2::254",
		"proxy.example":    "127.0.0.3", // the proxy is the operator's; its neighbours are not a webhook's
	})
	for name, start := range map[string]func(*testing.T) *testProxy{
		"CONNECT": func(t *testing.T) *testProxy { p, _ := connectProxy(t, false, nil); return p },
		"SOCKS":   func(t *testing.T) *testProxy { return socksProxy(t, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t)
			proxy := parseProxy(t, p.url)
			client := newGuard(t, egress.Config{AllowPrivate: prefixes("127.0.0.1/32"), Resolver: resolver, Proxy: proxy}).Client()
			strict := newGuard(t, egress.Config{Resolver: resolver, Proxy: proxy}).Client()
			for _, host := range []string{"metadata.example", "mixed.example", "mixed6.example", "proxy.example", "10.0.0.1", "[::ffff:10.0.0.1]"} {
				if _, _, err := post(t, client, "http://"+host+"/", "x"); !errors.Is(err, egress.ErrBlocked) {
					t.Errorf("%s: got %v, want ErrBlocked", host, err)
				}
			}
			_, proxyPort, _ := net.SplitHostPort(strings.Split(p.url, "://")[1])
			if _, _, err := post(t, strict, "http://127.0.0.1:"+proxyPort+"/", "x"); !errors.Is(err, egress.ErrBlocked) {
				t.Errorf("a webhook with the proxy's own address: got %v, want ErrBlocked", err)
			}
			if asked := p.asked(); len(asked) != 0 {
				t.Errorf("the proxy was asked for %q", asked)
			}
		})
	}
}

func TestANameThatIsReboundGainsNothingAtTheProxy(t *testing.T) {
	t.Parallel()
	server, count := counting(t)
	server.Config.SetKeepAlivesEnabled(false) // each request dials
	p, _ := connectProxy(t, false, nil)
	var questions atomic.Int64
	resolver := dnstest.Resolver(func(string) []netip.Addr {
		if questions.Add(1) > 2 { // one look-up asks once for each family
			return []netip.Addr{netip.MustParseAddr("169.254.169.254")}
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	})
	cfg := egress.Config{AllowPrivate: prefixes("127.0.0.1/32"), Resolver: resolver, Proxy: parseProxy(t, p.url)}
	client := newGuard(t, cfg).Client()
	url := "http://rebind.example:" + port(t, server) + "/"
	if status, _, err := post(t, client, url, "x"); status != http.StatusOK || questions.Load() != 2 {
		t.Fatalf("before: %d, %v after %d questions, want one look-up for one dial", status, err, questions.Load())
	}
	if _, _, err := post(t, client, url, "x"); !errors.Is(err, egress.ErrBlocked) {
		t.Errorf("after: got %v, want ErrBlocked", err)
	}
	if asked := p.asked(); len(asked) != 1 || asked[0] != "CONNECT 127.0.0.1:"+port(t, server) || count.Load() != 1 {
		t.Errorf("the proxy was asked for %q, and the receiver got %d requests", asked, count.Load())
	}
}

func TestAProxysFailureIsToldApartFromTheReceivers(t *testing.T) {
	t.Parallel()
	answering := func(status int) func(*testing.T) string {
		return func(t *testing.T) string {
			p, _ := connectProxy(t, false, func(string) int { return status })
			return p.url
		}
	}
	replying := func(reply byte) func(*testing.T) string {
		return func(t *testing.T) string { return socksProxy(t, reply).url }
	}
	raw := func(answer string) func(*testing.T) string {
		return func(t *testing.T) string {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = listener.Close() })
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Read(make([]byte, 1<<10))
					_, _ = io.WriteString(conn, answer)
					_ = conn.Close()
				}
			}()
			return "http://" + listener.Addr().String()
		}
	}
	for name, c := range map[string]struct {
		proxy func(*testing.T) string
		ours  bool
	}{
		"NobodyListens":           {func(*testing.T) string { return "http://127.0.0.1:1" }, true},
		"NameDoesNotExist":        {func(*testing.T) string { return "http://nowhere.example:3128" }, true},
		"CertificateIsNotTrusted": {func(t *testing.T) string { p, _ := connectProxy(t, true, nil); return p.url }, true},
		"WantsCredentials":        {answering(407), true},
		"Forbids":                 {answering(403), true},
		"FailsItself":             {answering(500), true},
		"AnswersNonsense":         {raw("SSH-2.0-OpenSSH_9.9\r\n"), true},
		"HangsUp":                 {raw(""), true},
		"AnswersWithoutEnd":       {raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20)), true},
		"SOCKSGeneralFailure":     {replying(1), true},
		"SOCKSForbids":            {replying(2), true},
		"SOCKSIsHTTP": {func(t *testing.T) string {
			return strings.Replace(raw("HTTP/1.1 400 Bad Request\r\n\r\n")(t), "http", "socks5", 1)
		}, true},
		"CannotReachIt":           {answering(502), false},
		"CannotReachItNow":        {answering(503), false},
		"CannotReachItInTime":     {answering(504), false},
		"SOCKSNetworkUnreachable": {replying(3), false},
		"SOCKSHostUnreachable":    {replying(4), false},
		"SOCKSRefused":            {replying(5), false},
		"SOCKSTTLExpired":         {replying(6), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := egress.Config{Resolver: names(map[string]string{"receiver.example": "1.2.3.4"}), Proxy: parseProxy(t, withUser(c.proxy(t)))}
			_, _, err := post(t, newGuard(t, cfg).Client(), "http://receiver.example/", "x")
			if err == nil || errors.Is(err, egress.ErrProxy) != c.ours {
				t.Errorf("got %v; is it the proxy's: want %v", err, c.ours)
			}
			if proxyErr, ok := errors.AsType[*egress.ProxyError](err); ok && strings.ContainsAny(proxyErr.Detail, "@[") || strings.Contains(fmt.Sprint(err), "s3cret") {
				t.Errorf("the error shows too much: %v", err)
			}
		})
	}
}

func TestAProxyThatNeverAnswersIsBoundedInTime(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	for _, scheme := range []string{"http", "socks5"} {
		cfg := egress.Config{
			DialTimeout: 100 * time.Millisecond, Resolver: names(map[string]string{"receiver.example": "1.2.3.4 1.2.3.5"}),
			Proxy: parseProxy(t, scheme+"://"+listener.Addr().String()),
		}
		_, _, err := post(t, newGuard(t, cfg).Client(), "http://receiver.example/", "x")
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || errors.Is(err, egress.ErrProxy) {
			t.Errorf("%s: got %v, want a timeout", scheme, err)
		}
	}
}

func TestAProxyIsAskedForTheNextAddressWhenOneCannotBeReached(t *testing.T) {
	t.Parallel()
	server, count := counting(t)
	p, _ := connectProxy(t, false, func(target string) int {
		if strings.HasPrefix(target, "1.2.3.4:") {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	cfg := egress.Config{
		AllowPrivate: prefixes("127.0.0.1/32"), Proxy: parseProxy(t, p.url),
		Resolver: names(map[string]string{"receiver.example": "1.2.3.4 127.0.0.1"}),
	}
	if _, _, err := post(t, newGuard(t, cfg).Client(), "http://receiver.example:"+port(t, server), "x"); err != nil || count.Load() != 1 {
		t.Errorf("%v after %d requests", err, count.Load())
	}
}

func TestWhatComesWithTheProxysAnswerIsNotLost(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			// A receiver that speaks first comes in one packet with the proxy's answer.
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nhello, and "+strings.Repeat("more", 1<<16))
		}
	}()
	guard := newGuard(t, egress.Config{Proxy: parseProxy(t, "http://"+listener.Addr().String())})
	conn, err := guard.Transport().DialContext(t.Context(), "tcp", "1.2.3.4:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := io.ReadAll(conn)
	if want := "hello, and " + strings.Repeat("more", 1<<16); err != nil || string(got) != want {
		t.Errorf("%d bytes came through, %v; want %d", len(got), err, len(want))
	}
}

func TestATraceSeesTheReceiverAndNothingOfTheProxy(t *testing.T) {
	t.Parallel()
	p, server := connectProxy(t, false, func(string) int { return http.StatusServiceUnavailable })
	guard := newGuard(t, egress.Config{
		Proxy:    parseProxy(t, "http://proxy.example:"+port(t, server)),
		Resolver: names(map[string]string{"receiver.example": "1.2.3.4", "proxy.example": "127.0.0.1"}),
	})
	var seen []string // in the order of one dial, which has one address to try
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		DNSStart:     func(info httptrace.DNSStartInfo) { seen = append(seen, "look up "+info.Host) },
		ConnectStart: func(_, address string) { seen = append(seen, "connect to "+address) },
		ConnectDone:  func(_, address string, err error) { seen = append(seen, fmt.Sprint("connected: ", err == nil)) },
	})
	if conn, err := guard.Transport().DialContext(ctx, "tcp", "receiver.example:80"); err == nil {
		_ = conn.Close()
		t.Error("a receiver that cannot be reached was connected to")
	}
	if want := []string{"look up receiver.example", "connect to receiver.example:80", "connected: false"}; !slices.Equal(seen, want) || len(p.asked()) != 1 {
		t.Errorf("the trace saw %q, want %q; the proxy was asked for %q", seen, want, p.asked())
	}
}

func TestParseProxy(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"http://proxy.example":              "http://proxy.example:80",
		"https://ann:s3cret@proxy.example/": "https://proxy.example:443",
		"socks5://[::1]:9050":               "socks5://[::1]:9050",
		"socks5://proxy.example":            "socks5://proxy.example:1080",
		"":                                  "",
		"proxy.example:3128":                "",
		"ftp://proxy.example":               "",
		"http://":                           "",
		"http://proxy.example:0":            "",
		"http://proxy.example:99999":        "",
		"http://proxy.example/path":         "",
		"http://proxy.example?q=s3cret":     "",
		"http://ann:s3cret@proxy exam/":     "",
		"http://ann:s3cr%zzet@proxy":        "",
	} {
		p, err := egress.ParseProxy(text)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q was taken for %s", text, p)
		case want == "" && strings.Contains(err.Error(), "s3cr"):
			t.Errorf("%q: the error shows the password: %v", text, err)
		case want != "" && (err != nil || p.String() != want || strings.Contains(fmt.Sprintf("%+v", p), "s3cret")):
			t.Errorf("%q was read as %+v, %v, want %s", text, p, err, want)
		}
	}
}

func TestADialThroughAProxyEndsWithItsContext(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	guard := newGuard(t, egress.Config{Proxy: parseProxy(t, "http://"+listener.Addr().String())})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := guard.Transport().DialContext(ctx, "tcp", "1.2.3.4:80")
		done <- err
	}()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

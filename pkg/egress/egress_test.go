package egress_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/egress/dnstest"
)

var loopback = egress.Config{AllowPrivate: prefixes("127.0.0.0/8", "::1/128")}

// post sends a body to a URL, and returns the status and body of the answer.
func post(t *testing.T, client *http.Client, url, body string) (int, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(answer), err
}

// counting is a receiver that counts the requests it gets.
func counting(t *testing.T) (*httptest.Server, *atomic.Int64) {
	t.Helper()
	var count atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { count.Add(1) }))
	t.Cleanup(server.Close)
	return server, &count
}

func port(t *testing.T, server *httptest.Server) string {
	t.Helper()
	return strconv.Itoa(server.Listener.Addr().(*net.TCPAddr).Port)
}

func TestANameThatResolvesToAPrivateAddressIsBlocked(t *testing.T) {
	t.Parallel()
	server, count := counting(t)
	cfg := egress.Config{Resolver: dnstest.Resolver(func(string) []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	})}
	url := "http://receiver.example:" + port(t, server) + "/"

	if _, _, err := post(t, newGuard(t, cfg).Client(), url, "x"); !errors.Is(err, egress.ErrBlocked) {
		t.Errorf("got %v, want ErrBlocked", err)
	}
	if got := count.Load(); got != 0 {
		t.Errorf("the receiver got %d requests", got)
	}

	// The same is let through by the allow list: it was the guard that refused.
	cfg.AllowPrivate = loopback.AllowPrivate
	if status, _, err := post(t, newGuard(t, cfg).Client(), url, "x"); status != http.StatusOK {
		t.Errorf("with an allow list: %d, %v", status, err)
	}
}

func TestANameThatIsReboundAfterTheCheckIsBlocked(t *testing.T) {
	t.Parallel()
	server, count := counting(t)
	server.Config.SetKeepAlivesEnabled(false) // each request dials
	var rebound atomic.Bool
	cfg := egress.Config{
		AllowPrivate: prefixes("127.0.0.1/32"), // stands for the public address of the name
		Resolver: dnstest.Resolver(func(string) []netip.Addr {
			if rebound.Load() {
				return []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::ffff:127.0.0.2")}
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}),
	}
	guard := newGuard(t, cfg)
	url := "http://rebind.example:" + port(t, server) + "/"
	if err := guard.CheckURL(url); err != nil {
		t.Fatal(err)
	}
	if status, _, err := post(t, guard.Client(), url, "x"); status != http.StatusOK {
		t.Fatalf("before: %d, %v", status, err)
	}
	rebound.Store(true)
	if err := guard.CheckURL(url); err != nil {
		t.Fatal(err)
	}
	if _, _, err := post(t, guard.Client(), url, "x"); !errors.Is(err, egress.ErrBlocked) {
		t.Errorf("after: got %v, want ErrBlocked", err)
	}
	if got := count.Load(); got != 1 {
		t.Errorf("the receiver got %d requests, want 1", got)
	}
}

// A dial that tries one address after another, or two at once (RFC 8305), tries
// none that nobody judged.
func TestEveryAddressThatADialTriesIsJudged(t *testing.T) {
	t.Parallel()
	refused, count := counting(t) // on 127.0.0.1 and, by the relay, on ::1
	accepted := make(chan struct{}, 100)
	six, err := net.Listen("tcp6", "[::1]:"+port(t, refused))
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	t.Cleanup(func() { _ = six.Close() })
	go func() {
		for {
			conn, err := six.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
			accepted <- struct{}{}
		}
	}()
	cfg := egress.Config{
		AllowPrivate: prefixes("127.0.0.2/32"), // where nobody listens
		Resolver: dnstest.Resolver(func(string) []netip.Addr {
			return []netip.Addr{
				netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"),
			}
		}),
	}
	if status, _, err := post(t, newGuard(t, cfg).Client(), "http://receiver.example:"+port(t, refused)+"/", "x"); err == nil {
		t.Errorf("got %d from an address that is refused", status)
	}
	if n := int(count.Load()) + len(accepted); n != 0 {
		t.Errorf("refused addresses were connected to %d times", n)
	}
}

func TestANameIsResolvedOnceForEachConnection(t *testing.T) {
	t.Parallel()
	server, count := counting(t)
	server.Config.SetKeepAlivesEnabled(false)
	var questions atomic.Int64
	cfg := egress.Config{
		AllowPrivate: prefixes("127.0.0.1/32"),
		Resolver: dnstest.Resolver(func(string) []netip.Addr {
			if questions.Add(1)%4 > 2 { // each second look-up, of which each asks once for a family
				return []netip.Addr{netip.MustParseAddr("127.0.0.9")}
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}),
	}
	if status, _, err := post(t, newGuard(t, cfg).Client(), "http://receiver.example:"+port(t, server)+"/", "x"); status != http.StatusOK {
		t.Fatalf("%d, %v", status, err)
	}
	if questions.Load() != 2 || count.Load() != 1 {
		t.Errorf("%d questions for %d requests: what was judged and what was dialled may differ", questions.Load(), count.Load())
	}
}

func TestConnectionsKeptToAHostAreBounded(t *testing.T) {
	t.Parallel()
	const together, kept = 12, 3
	all := make(chan struct{})
	var here atomic.Int64
	open := map[net.Conn]bool{}
	var mu sync.Mutex
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if here.Add(1) == together {
			close(all)
		}
		<-all
	}))
	server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if state == http.StateClosed {
			delete(open, conn)
		} else {
			open[conn] = true
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	cfg := loopback
	cfg.MaxIdleConnsPerHost = kept
	client := newGuard(t, cfg).Client()
	var group sync.WaitGroup
	for range together {
		group.Go(func() {
			if status, _, err := post(t, client, server.URL, "x"); status != http.StatusOK {
				t.Errorf("%d, %v", status, err)
			}
		})
	}
	group.Wait()
	deadline := time.After(10 * time.Second)
	for {
		mu.Lock()
		n := len(open)
		mu.Unlock()
		if n == kept {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%d connections stay open after %d requests at once, want %d", n, together, kept)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestTheClientRefusesABadURLBeforeResolvingIt(t *testing.T) {
	t.Parallel()
	guard := newGuard(t, egress.Config{RequireHTTPS: true, Resolver: dnstest.Resolver(func(name string) []netip.Addr {
		t.Errorf("%s was looked up", name)
		return nil
	})})
	for url, want := range map[string]error{
		"http://receiver.example/":       egress.ErrBadURL,
		"https://user:pw@receiver.test/": egress.ErrBadURL,
		"https://0x7f.0.0.1/":            egress.ErrBadURL,
		"https://localhost/":             egress.ErrBlocked,
		"https://169.254.169.254/":       egress.ErrBlocked,
	} {
		body := &closeRecorder{Reader: strings.NewReader("x")}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := guard.Client().Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", url, err, want)
		}
		if !body.closed.Load() {
			t.Errorf("%s: the request's body was not closed", url)
		}
	}
}

type closeRecorder struct {
	io.Reader
	closed atomic.Bool
}

func (c *closeRecorder) Close() error { c.closed.Store(true); return nil }

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	target, count := counting(t)
	for _, status := range []int{301, 302, 303, 307, 308} {
		redirecting := httptest.NewServer(http.RedirectHandler(target.URL, status))
		got, _, err := post(t, newGuard(t, loopback).Client(), redirecting.URL, "x")
		redirecting.Close()
		if err != nil || got != status {
			t.Errorf("%d: got %d, %v", status, got, err)
		}
	}
	if got := count.Load(); got != 0 {
		t.Errorf("the target got %d requests", got)
	}
}

// No environment variable can be tried here: net/http reads them once in a
// process and never uses a proxy for loopback.
func TestNoProxyIsUsed(t *testing.T) {
	t.Parallel()
	if newGuard(t, loopback).Transport().Proxy != nil {
		t.Error("the transport has a proxy function")
	}
}

func TestCompressedAnswersStayAsTheyCame(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	zipper := gzip.NewWriter(&packed)
	if _, err := zipper.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := zipper.Close(); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Error("compression was asked for")
		}
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(packed.Bytes())
	}))
	t.Cleanup(server.Close)
	_, answer, err := post(t, newGuard(t, loopback).Client(), server.URL, "x")
	if err != nil || answer != packed.String() {
		t.Errorf("%d bytes, %v; want the %d that were sent", len(answer), err, packed.Len())
	}
}

func TestAnAnswersHeaderIsBounded(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*httptest.Server){
		"HTTP1": (*httptest.Server).Start,
		"HTTP2": func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				size, _ := strconv.Atoi(r.URL.Query().Get("size"))
				w.Header().Set("X-Large", strings.Repeat("a", size))
			}))
			start(server)
			t.Cleanup(server.Close)
			client := newGuard(t, trusting(server)).Client()
			if status, _, err := post(t, client, server.URL+"?size=1000", "x"); status != http.StatusOK {
				t.Errorf("small header: %d, %v", status, err)
			}
			if status, _, err := post(t, client, server.URL+"?size=100000", "x"); err == nil {
				t.Errorf("a header of 100 kB was accepted: %d", status)
			}
		})
	}
}

// trusting is the loopback configuration with a test server's own certificate.
func trusting(server *httptest.Server) egress.Config {
	cfg := loopback
	if certificate := server.Certificate(); certificate != nil {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AddCert(certificate)
	}
	return cfg
}

func TestHTTPSSpeaksHTTP2(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	if _, answer, err := post(t, newGuard(t, trusting(server)).Client(), server.URL, "x"); answer != "HTTP/2.0" {
		t.Errorf("got %q, %v", answer, err)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	server.Config.ErrorLog = quiet()
	server.StartTLS()
	t.Cleanup(server.Close)
	if status, _, err := post(t, newGuard(t, trusting(server)).Client(), server.URL, "x"); err == nil {
		t.Errorf("TLS 1.1 was accepted: %d", status)
	}
}

func TestAConnectionThatBreaksDoesNotRepeatAPost(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	var requests atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				reader := bufio.NewReader(conn)
				for answered := range 2 {
					req, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					requests.Add(1)
					if answered == 0 { // the first one of a connection is answered, the next is not
						_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			}()
		}
	}()
	client := newGuard(t, loopback).Client()
	url := "http://" + listener.Addr().String()
	if status, _, err := post(t, client, url, "first"); status != http.StatusOK {
		t.Fatalf("%d, %v", status, err)
	}
	if status, _, err := post(t, client, url, "second"); err == nil {
		t.Errorf("got an answer, %d, that was not given", status)
	}
	if got := requests.Load(); got != 2 {
		t.Errorf("the receiver got %d requests for 2 that were made", got)
	}
}

func TestConnectingIsBoundedInTime(t *testing.T) {
	t.Parallel()
	t.Run("NameResolution", func(t *testing.T) {
		t.Parallel()
		guard := newGuard(t, egress.Config{DialTimeout: 50 * time.Millisecond, Resolver: dnstest.Silent()})
		_, _, err := post(t, guard.Client(), "http://receiver.example/", "x")
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v, want a timeout", err)
		}
	})
	t.Run("Handshake", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, and says nothing
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		cfg := loopback
		cfg.TLSTimeout = 50 * time.Millisecond
		_, _, err = post(t, newGuard(t, cfg).Client(), "https://"+listener.Addr().String(), "x")
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v, want a timeout", err)
		}
	})
}

// quiet drops what a test server says about a client that breaks off on purpose.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

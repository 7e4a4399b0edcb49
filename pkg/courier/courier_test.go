package courier_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/egress/dnstest"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// patience is the deadline of requests that are expected to end by themselves.
const patience = 20 * time.Second

// newSigner signs with testSecret, as Standard Webhooks describe unless the test
// asks for other schemes.
func newSigner(t testing.TB, schemes ...webhook.Scheme) *signature.Signer {
	t.Helper()
	if len(schemes) == 0 {
		schemes = []webhook.Scheme{webhook.SchemeStandard}
	}
	signer, err := signature.NewSigner(schemes, nil, []signature.Secret{{Kind: webhook.SecretSymmetric, Text: testSecret}})
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func newRequest(t *testing.T, url string) *courier.Request {
	t.Helper()
	return &courier.Request{
		URL:         url,
		EventID:     webhook.NewID(time.Now()),
		EventType:   "order.paid",
		ContentType: webhook.ContentTypeJSON,
		Body:        []byte(`{"a":1}`),
		Number:      1,
		Timestamp:   time.Now(),
		Signer:      newSigner(t),
		Timeout:     patience,
	}
}

// newClient is a guarded client that may reach this machine, and trusts a test
// server's certificate if there is one.
func newClient(t *testing.T, server *httptest.Server) *http.Client {
	t.Helper()
	cfg := egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	if server != nil && server.Certificate() != nil {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AddCert(server.Certificate())
	}
	return clientOf(t, cfg)
}

func clientOf(t *testing.T, cfg egress.Config) *http.Client {
	t.Helper()
	guard, err := egress.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client := guard.Client()
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// receiver is an HTTP server that speaks as it should.
func receiver(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

// want is what a test expects of a Result.
type want struct {
	reason webhook.Reason
	status int
}

func check(t *testing.T, got courier.Result, w want) {
	t.Helper()
	if got.Reason != w.reason || got.StatusCode != w.status || got.Interrupted {
		t.Errorf("got %s with status %d (%s), want %s with status %d", got.Reason, got.StatusCode, got.Detail, w.reason, w.status)
	}
	if got.Timings.Total == nil || *got.Timings.Total < 0 {
		t.Errorf("no total time: %+v", got.Timings)
	}
	if len(got.Detail) > 256 || len(got.Response) > webhook.MaxResponseSnippet || !utf8.ValidString(got.Response) || strings.Contains(got.Response, "\x00") {
		t.Errorf("detail %q, response %q", got.Detail, got.Response)
	}
	if strings.Contains(got.Detail, "127.0.0") {
		t.Errorf("the detail shows an address: %q", got.Detail)
	}
}

func TestSendMakesASignedRequest(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body []byte
	server := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		body, _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "thanks")
	})
	req := newRequest(t, server.URL+"/hooks?a=b")
	req.Body = []byte("{\"b\" : 1,\"b\":1e400,\n\"s\":\"\\ud800\x00\xff\"}")
	req.Number = 7
	req.UserAgent = courier.UserAgent("1.2.3")
	req.Headers = secretly(map[string]string{
		"X-Tenant": "t1", "Authorization": "Bearer abc", "Idempotency-Key": "k",
		"Webhook-Id": "forged", "webhook-signature": "forged", "FAIRHOOK-ATTEMPT": "99", "Content-Type": "text/forged",
		"user-agent": "forged", "Content-Length": "1", "Transfer-Encoding": "chunked", "Host": "forged.example", "Connection": "close",
	})
	result := courier.Send(t.Context(), newClient(t, server), req)
	check(t, result, want{webhook.ReasonDelivered, 202})
	if result.Response != "thanks" || result.Detail != "" || !result.StartedAt.Equal(req.Timestamp) {
		t.Errorf("%+v", result)
	}

	if got.Method != http.MethodPost || got.URL.String() != "/hooks?a=b" || got.Host == "forged.example" {
		t.Errorf("%s %s to %s", got.Method, got.URL, got.Host)
	}
	if !bytes.Equal(body, req.Body) {
		t.Errorf("body %q, want %q", body, req.Body)
	}
	if got.ContentLength != int64(len(req.Body)) || len(got.TransferEncoding) > 0 {
		t.Errorf("length %d, transfer encoding %v", got.ContentLength, got.TransferEncoding)
	}
	for name, value := range map[string]string{
		"Webhook-Id": req.EventID.String(), "Webhook-Timestamp": fmt.Sprint(req.Timestamp.Unix()),
		"Fairhook-Event-Type": "order.paid", "Fairhook-Attempt": "7", "User-Agent": "Fairhook/1.2.3",
		"Content-Type": "application/json", "X-Tenant": "t1", "Authorization": "Bearer abc", "Idempotency-Key": "k",
		"Connection": "", "Accept-Encoding": "",
	} {
		if values := got.Header.Values(name); strings.Join(values, "|") != value {
			t.Errorf("%s: %q, want %q", name, values, value)
		}
	}
	verifier, err := standardwebhooks.NewWebhook(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.Verify(body, got.Header); err != nil {
		t.Errorf("an independent verifier: %v", err)
	}
}

func TestSendFillsInWhatARequestLeavesOut(t *testing.T) {
	t.Parallel()
	var got *http.Request
	server := receiver(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Clone(context.Background()) })
	req := newRequest(t, server.URL)
	req.Body, req.ContentType, req.Timeout = nil, "", 0
	check(t, courier.Send(t.Context(), newClient(t, server), req), want{webhook.ReasonDelivered, 200})
	if got.Header.Get("Content-Length") != "0" && got.ContentLength != 0 || len(got.TransferEncoding) > 0 {
		t.Errorf("length %d, transfer encoding %v", got.ContentLength, got.TransferEncoding)
	}
	if got.Header.Get("Content-Type") != webhook.ContentTypeJSON || !strings.HasPrefix(got.Header.Get("User-Agent"), "Fairhook/") {
		t.Errorf("headers %v", got.Header)
	}
}

func TestAnEmptyBodyCarriesContentLength(t *testing.T) {
	t.Parallel()
	var head string
	url := rawReceiver(t, func(conn net.Conn, received string) {
		head = received
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	req := newRequest(t, url)
	req.Body = nil
	check(t, courier.Send(t.Context(), newClient(t, nil), req), want{webhook.ReasonDelivered, 200})
	if !strings.Contains(head, "\r\nContent-Length: 0\r\n") {
		t.Errorf("sent %q", head)
	}
}

func TestSendJudgesACompleteAnswerByItsStatus(t *testing.T) {
	t.Parallel()
	server := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		var status int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.WriteHeader(status)
	})
	client := newClient(t, server)
	for status, reason := range map[int]webhook.Reason{
		200: webhook.ReasonDelivered, 201: webhook.ReasonDelivered, 202: webhook.ReasonDelivered, 204: webhook.ReasonDelivered, 299: webhook.ReasonDelivered,
		300: webhook.ReasonRedirect, 304: webhook.ReasonRedirect, 399: webhook.ReasonRedirect,
		400: webhook.ReasonClientError, 401: webhook.ReasonClientError, 404: webhook.ReasonClientError, 408: webhook.ReasonClientError, 499: webhook.ReasonClientError,
		410: webhook.ReasonGone, 429: webhook.ReasonRateLimited,
		500: webhook.ReasonServerError, 501: webhook.ReasonServerError, 505: webhook.ReasonServerError, 599: webhook.ReasonServerError,
		502: webhook.ReasonBadGateway, 503: webhook.ReasonUnavailable, 504: webhook.ReasonGatewayTimeout,
		600: webhook.ReasonBadResponse, 999: webhook.ReasonBadResponse,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			check(t, courier.Send(t.Context(), client, newRequest(t, fmt.Sprintf("%s/%d", server.URL, status))), want{reason, status})
		})
	}
}

func TestSendReadsRetryAfter(t *testing.T) {
	t.Parallel()
	req := newRequest(t, "")
	date := req.Timestamp.Add(10 * time.Minute).UTC().Format(http.TimeFormat)
	for name, c := range map[string]struct {
		header    string
		low, high time.Duration
	}{
		"InSeconds":  {"90", 90 * time.Second, 90 * time.Second},
		"AsADate":    {date, 9*time.Minute + 30*time.Second, 10 * time.Minute},
		"AndCutsIt":  {"86400", time.Hour, time.Hour},
		"UnlessBad":  {"soon", 0, 0},
		"UnlessNone": {"", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
				if c.header != "" {
					w.Header().Set("Retry-After", c.header)
				}
				w.WriteHeader(http.StatusTooManyRequests)
			})
			req := *req
			req.URL = server.URL
			result := courier.Send(t.Context(), newClient(t, server), &req)
			check(t, result, want{webhook.ReasonRateLimited, 429})
			if result.HasRetryAfter != (c.high > 0) || result.RetryAfter < c.low || result.RetryAfter > c.high {
				t.Errorf("got %v, %t; want %v to %v", result.RetryAfter, result.HasRetryAfter, c.low, c.high)
			}
		})
	}
}

func TestRedirectsAreNeverFollowed(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	target := receiver(t, func(http.ResponseWriter, *http.Request) { reached.Store(true) })
	for name, location := range map[string]string{
		"ToCloudMetadata":    "http://169.254.169.254/latest/meta-data/",
		"ToAReachableServer": target.URL,
		"ToNonsense":         "http://[::bad/%zz",
		"ToNowhere":          "",
	} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			t.Run(fmt.Sprintf("%s%d", name, status), func(t *testing.T) {
				t.Parallel()
				server := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Location", location)
					w.WriteHeader(status)
				})
				check(t, courier.Send(t.Context(), newClient(t, server), newRequest(t, server.URL)), want{webhook.ReasonRedirect, status})
				// Not even by a client that would follow.
				check(t, courier.Send(t.Context(), http.DefaultClient, newRequest(t, server.URL)), want{webhook.ReasonRedirect, status})
			})
		}
	}
	t.Cleanup(func() {
		if reached.Load() {
			t.Error("the target of a redirect got a request")
		}
	})
}

// rawReceiver is a TCP server that reads one HTTP request of each connection,
// hands its header over, and closes the connection when answer returns.
func rawReceiver(t *testing.T, answer func(conn net.Conn, received string)) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if received, ok := readRequest(conn); ok {
					answer(conn, received)
				}
			})
		}
	})
	return "http://" + listener.Addr().String()
}

// readRequest reads one request and returns its header.
func readRequest(conn io.Reader) (string, bool) {
	var received []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(received, []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(conn, one); err != nil {
			return "", false
		}
		received = append(received, one...)
	}
	_, after, _ := strings.Cut(string(received), "Content-Length: ")
	var length int64
	_, _ = fmt.Sscan(after, &length)
	_, err := io.CopyN(io.Discard, conn, length)
	return string(received), err == nil
}

// trickle writes text again and again, in small pieces, until the other side has
// had enough.
func trickle(conn net.Conn, text string) {
	for {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
		time.Sleep(time.Millisecond) // the receiver's misbehaviour, not the test's waiting
	}
}

// reset closes a connection with RST.
func reset(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// untilClosed waits for the other side to close.
func untilClosed(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func TestSendTellsMisbehavingReceiversApart(t *testing.T) {
	t.Parallel()
	const (
		ok   = "HTTP/1.1 200 OK\r\n"
		soon = time.Second
	)
	say := func(text string) func(net.Conn, string) {
		return func(conn net.Conn, _ string) { _, _ = io.WriteString(conn, text) }
	}
	for name, c := range map[string]struct {
		timeout  time.Duration // 0: patience
		answer   func(net.Conn, string)
		want     want
		response string
	}{
		"HangsBeforeTheAnswer":         {soon, func(conn net.Conn, _ string) { untilClosed(conn) }, want{webhook.ReasonTimeout, 0}, ""},
		"TricklesTheHeader":            {soon, func(conn net.Conn, _ string) { say(ok)(conn, ""); trickle(conn, "X-A: b\r\n") }, want{webhook.ReasonTimeout, 0}, ""},
		"TricklesInformationalAnswers": {soon, func(conn net.Conn, _ string) { say("HTTP/1.1 102 P\r\n\r\n")(conn, ""); untilClosed(conn) }, want{webhook.ReasonTimeout, 0}, ""},
		"HangsInTheBody":               {soon, func(conn net.Conn, _ string) { say(ok+"Content-Length: 9\r\n\r\nabc")(conn, ""); untilClosed(conn) }, want{webhook.ReasonSlowBody, 200}, "abc"},
		"TricklesTheBody":              {soon, func(conn net.Conn, _ string) { say(ok+"Content-Length: 99999\r\n\r\n")(conn, ""); trickle(conn, "a") }, want{webhook.ReasonSlowBody, 200}, "a..."},
		"TricklesTheBodyOfA503": {soon, func(conn net.Conn, _ string) {
			say("HTTP/1.1 503 No\r\nContent-Length: 99999\r\n\r\n")(conn, "")
			trickle(conn, "a")
		}, want{webhook.ReasonUnavailable, 503}, "a..."},
		"ClosesWithoutAnAnswer":          {0, func(net.Conn, string) {}, want{webhook.ReasonReset, 0}, ""},
		"ResetsWithoutAnAnswer":          {0, func(conn net.Conn, _ string) { reset(conn) }, want{webhook.ReasonReset, 0}, ""},
		"ClosesInTheStatusLine":          {0, say("HTTP/1.1 20"), want{webhook.ReasonBadResponse, 0}, ""},
		"ClosesInTheHeader":              {0, say(ok + "X-A: b\r\n"), want{webhook.ReasonReset, 0}, ""},
		"ResetsInTheHeader":              {0, func(conn net.Conn, _ string) { say(ok+"X-A: b\r\n")(conn, ""); reset(conn) }, want{webhook.ReasonReset, 0}, ""},
		"ClosesInTheBody":                {0, say(ok + "Content-Length: 9\r\n\r\nabc"), want{webhook.ReasonReset, 200}, "abc"},
		"ClosesInTheBodyOfA410":          {0, say("HTTP/1.1 410 Gone\r\nContent-Length: 9\r\n\r\nabc"), want{webhook.ReasonGone, 410}, "abc"},
		"ClosesInAChunk":                 {0, say(ok + "Transfer-Encoding: chunked\r\n\r\n9\r\nabc"), want{webhook.ReasonReset, 200}, "abc"},
		"ClosesBetweenChunks":            {0, say(ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), want{webhook.ReasonReset, 200}, "abc"},
		"SendsMoreThanItsContentLength":  {0, say(ok + "Content-Length: 3\r\n\r\nabcdef"), want{webhook.ReasonDelivered, 200}, "abc"},
		"EndsTheBodyByClosing":           {0, say(ok + "\r\nabc"), want{webhook.ReasonDelivered, 200}, "abc"},
		"SendsBrokenChunks":              {0, say(ok + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"), want{webhook.ReasonBadResponse, 200}, "abc"},
		"SendsANegativeContentLength":    {0, say(ok + "Content-Length: -1\r\n\r\n"), want{webhook.ReasonBadResponse, 0}, ""},
		"SendsTwoContentLengths":         {0, say(ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), want{webhook.ReasonBadResponse, 0}, ""},
		"AnswersInAnotherProtocol":       {0, say("SSH-2.0-OpenSSH_9.9\r\n"), want{webhook.ReasonBadResponse, 0}, ""},
		"AnswersGarbage":                 {0, say("\x00\x01\x02\xff\xfe\r\n\r\n"), want{webhook.ReasonBadResponse, 0}, ""},
		"AnswersAStatusThatIsNoNumber":   {0, say("HTTP/1.1 abc OK\r\n\r\n"), want{webhook.ReasonBadResponse, 0}, ""},
		"AnswersAStatusOfZeros":          {0, say("HTTP/1.1 000 Nothing\r\nContent-Length: 2\r\n\r\nab"), want{webhook.ReasonBadResponse, 0}, ""},
		"AnswersAStatusBelow100":         {0, say("HTTP/1.1 042 No\r\nContent-Length: 2\r\n\r\nab"), want{webhook.ReasonBadResponse, 0}, ""},
		"AnswersAMalformedHeader":        {0, say(ok + "no colon here\r\n\r\n"), want{webhook.ReasonBadResponse, 0}, ""},
		"SwitchesProtocols":              {0, say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), want{webhook.ReasonBadResponse, 101}, ""},
		"SendsInformationalAnswersFirst": {0, say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok"), want{webhook.ReasonDelivered, 200}, "ok"},
		"SendsOneGiantHeaderLine":        {0, say(ok + "X-Large: " + strings.Repeat("a", 200<<10) + "\r\n\r\n"), want{webhook.ReasonTooLarge, 0}, ""},
		"SendsAHeaderWithoutEnd":         {0, func(conn net.Conn, _ string) { say(ok)(conn, ""); endless(conn, "X-A: b\r\n") }, want{webhook.ReasonTooLarge, 0}, ""},
		"SendsABodyWithoutEnd":           {0, func(conn net.Conn, _ string) { say(ok+"\r\n")(conn, ""); endless(conn, "a") }, want{webhook.ReasonDelivered, 200}, strings.Repeat("a", 1024)},
		"SendsChunksWithoutEnd": {0, func(conn net.Conn, _ string) {
			say(ok+"Transfer-Encoding: chunked\r\n\r\n")(conn, "")
			endless(conn, "4\r\naaaa\r\n")
		}, want{webhook.ReasonDelivered, 200}, strings.Repeat("a", 1024)},
		"SendsTheBodyOfA500WithoutEnd":        {0, func(conn net.Conn, _ string) { say("HTTP/1.1 500 No\r\n\r\n")(conn, ""); endless(conn, "a") }, want{webhook.ReasonServerError, 500}, strings.Repeat("a", 1024)},
		"SendsInformationalAnswersWithoutEnd": {0, func(conn net.Conn, _ string) { endless(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n") }, want{webhook.ReasonTooLarge, 0}, ""},
		"SendsNULAndBytesThatAreNotUTF8":      {0, say(ok + "Content-Length: 6\r\n\r\na\x00\xff\xfeb\n"), want{webhook.ReasonDelivered, 200}, "a\uFFFDb\n"},
		"SendsTextOverTheLimitOfTheRecord":    {0, say(ok + "\r\n" + strings.Repeat("€", 1000)), want{webhook.ReasonDelivered, 200}, strings.Repeat("€", 341)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req := newRequest(t, rawReceiver(t, c.answer))
			if c.timeout > 0 {
				req.Timeout = c.timeout
			}
			start := time.Now()
			result := courier.Send(t.Context(), newClient(t, nil), req)
			check(t, result, c.want)
			if took := time.Since(start); took > patience/2 {
				t.Errorf("took %v", took)
			}
			if prefix, some := strings.CutSuffix(c.response, "..."); some {
				if !strings.HasPrefix(result.Response, prefix) {
					t.Errorf("response %q", result.Response)
				}
			} else if result.Response != c.response {
				t.Errorf("response %q, want %q", result.Response, c.response)
			}
			if result.Reason != webhook.ReasonDelivered && result.Reason != webhook.ReasonServerError && result.Detail == "" {
				t.Error("no detail says what went wrong")
			}
		})
	}
}

// A receiver that takes most of the time for its header has only the rest of it
// for the body.
func TestOneDeadlineHoldsForTheWholeAttemptItsBodyIncluded(t *testing.T) {
	t.Parallel()
	const timeout = 4 * time.Second
	req := newRequest(t, rawReceiver(t, func(conn net.Conn, _ string) {
		late := time.NewTimer(timeout * 3 / 4)
		defer late.Stop()
		<-late.C
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
		trickle(conn, "a")
	}))
	req.Timeout = timeout
	result := courier.Send(t.Context(), newClient(t, nil), req)
	check(t, result, want{webhook.ReasonSlowBody, 200})
	if took := time.Duration(*result.Timings.Total) * time.Microsecond; took < timeout || took > timeout*3/2 {
		t.Errorf("took %s, want about %s in all", took, timeout)
	}
}

// roundTrip answers without a receiver.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// countedBody is a body without end that counts what is read of it.
type countedBody struct {
	read   int
	closed bool
}

func (b *countedBody) Read(p []byte) (int, error) { b.read += len(p); return len(p), nil }

func (b *countedBody) Close() error { b.closed = true; return nil }

func TestNoMoreOfAnAnswerIsReadThanTheLimit(t *testing.T) {
	t.Parallel()
	body := &countedBody{}
	client := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: body, Header: http.Header{}}, nil
	})}
	check(t, courier.Send(t.Context(), client, newRequest(t, "http://receiver.example/")), want{webhook.ReasonDelivered, 200})
	if body.read > courier.MaxResponseBody+1 || !body.closed { // one byte more tells whether there is more
		t.Errorf("%d bytes were read of a body without end, the limit is %d; closed: %t", body.read, courier.MaxResponseBody, body.closed)
	}
}

// A body that unpacks to far more than the limit is kept as it came.
func TestACompressedAnswerIsNotUnpacked(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	zipper := gzip.NewWriter(&bomb)
	for range 64 {
		if _, err := zipper.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := zipper.Close(); err != nil {
		t.Fatal(err)
	}
	server := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb.Bytes()) // 64 kB that stand for 64 MiB
	})
	result := courier.Send(t.Context(), newClient(t, server), newRequest(t, server.URL))
	check(t, result, want{webhook.ReasonDelivered, 200})
	if strings.Contains(result.Response, strings.Repeat("\x00", 8)) || !strings.HasPrefix(result.Response, "\x1f\uFFFD\b") {
		t.Errorf("response %q is not the beginning of what was sent", result.Response)
	}
}

// What a receiver does before it has read all of a large request.
func TestSendOfALargeBody(t *testing.T) {
	t.Parallel()
	const refused, accepted = "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 202 Yes\r\nContent-Length: 0\r\n\r\n"
	say := func(text string) func(net.Conn) { return func(conn net.Conn) { _, _ = io.WriteString(conn, text) } }
	for name, c := range map[string]struct {
		answer func(net.Conn)
		then   string // what comes then: it is read on, left unread, or the connection closed
		want   want
	}{
		"IsRefusedEarly":         {say(refused), "read", want{webhook.ReasonClientError, 413}},
		"IsAcceptedEarly":        {say(accepted), "read", want{webhook.ReasonDelivered, 202}},
		"IsRefusedUnread":        {say(refused), "unread", want{webhook.ReasonClientError, 413}},
		"IsAcceptedUnread":       {say(accepted), "unread", want{webhook.ReasonDelivered, 202}},
		"IsNeverReadNorAnswered": {say(""), "unread", want{webhook.ReasonTimeout, 0}},
		"MeetsAClosedConnection": {say(""), "closed", want{webhook.ReasonReset, 0}},
		"MeetsAResetConnection":  {reset, "closed", want{webhook.ReasonReset, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			over := make(chan struct{})
			var wg sync.WaitGroup
			t.Cleanup(func() {
				close(over)
				_ = listener.Close()
				wg.Wait()
			})
			wg.Go(func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					return
				}
				c.answer(conn)
				switch c.then {
				case "read":
					untilClosed(conn)
				case "unread":
					<-over
				}
			})
			req := newRequest(t, "http://"+listener.Addr().String())
			req.Body = bytes.Repeat([]byte("1"), 32<<20) // more than the sockets' buffers hold
			if c.want.reason == webhook.ReasonTimeout {
				req.Timeout = time.Second
			}
			check(t, courier.Send(t.Context(), newClient(t, nil), req), c.want)
		})
	}
}

// endless writes text as fast as it is taken.
func endless(conn net.Conn, text string) {
	block := []byte(strings.Repeat(text, 1+4096/len(text)))
	for {
		if _, err := conn.Write(block); err != nil {
			return
		}
	}
}

func TestSendTellsFailuresToConnectApart(t *testing.T) {
	t.Parallel()
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	resolveTo := func(addrs ...netip.Addr) *net.Resolver {
		return dnstest.Resolver(func(string) []netip.Addr { return addrs })
	}
	unused := func(t *testing.T) string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		return listener.Addr().String()
	}
	for name, c := range map[string]struct {
		cfg     egress.Config
		url     string // empty: a port of 127.0.0.1 on which nobody listens
		timeout time.Duration
		want    webhook.Reason
		detail  string
	}{
		"NobodyListens":           {egress.Config{AllowPrivate: loopback}, "", 0, webhook.ReasonConnect, "no connection to the host: connection refused"},
		"NameDoesNotExist":        {egress.Config{Resolver: resolveTo()}, "http://nowhere.example/", 0, webhook.ReasonDNS, "the host name does not exist"},
		"NameHasNoAddress":        {egress.Config{Resolver: resolveTo([]netip.Addr{}...)}, "http://nowhere.example/", 0, webhook.ReasonDNS, "the host name does not exist"},
		"ResolverIsSilent":        {egress.Config{Resolver: dnstest.Silent()}, "http://silent.example/", 300 * time.Millisecond, webhook.ReasonDNS, "the host name was not resolved in time"},
		"ResolverIsSilentTooLong": {egress.Config{Resolver: dnstest.Silent(), DialTimeout: 100 * time.Millisecond}, "http://silent.example/", 0, webhook.ReasonDNS, "the host name was not resolved in time"},
		"NameIsPrivate":           {egress.Config{Resolver: resolveTo(netip.MustParseAddr("10.1.2.3"))}, "http://inside.example/", 0, webhook.ReasonBlocked, "the address is private or otherwise not allowed"},
		"NameIsMetadata":          {egress.Config{Resolver: resolveTo(netip.MustParseAddr("169.254.169.254"))}, "https://inside.example/", 0, webhook.ReasonBlocked, "the address is private or otherwise not allowed"},
		"AddressIsPrivate":        {egress.Config{}, "http://10.1.2.3/", 0, webhook.ReasonBlocked, "the address is private or otherwise not allowed"},
		"HostIsLocalhost":         {egress.Config{}, "http://localhost/", 0, webhook.ReasonBlocked, "the address is private or otherwise not allowed"},
		"SchemeIsNotAllowed":      {egress.Config{RequireHTTPS: true}, "http://a.example/", 0, webhook.ReasonBadURL, "the URL must be an https URL"},
		"URLHasAUser":             {egress.Config{}, "http://user:pw@a.example/", 0, webhook.ReasonBadURL, "the URL must not contain a user name or password"},
		"URLIsTooLong":            {egress.Config{}, "http://a.example/" + strings.Repeat("a", webhook.MaxURLLength), 0, webhook.ReasonBadURL, "the URL must be at most 2048 bytes long"},
		"URLCannotBeParsed":       {egress.Config{}, "http://a b/", 0, webhook.ReasonBadURL, "the URL is not allowed: it cannot be parsed"},
		"HostIsADecimalAddress":   {egress.Config{}, "http://2130706433/", 0, webhook.ReasonBadURL, "the URL must write an IPv4 address as four decimal numbers without leading zeros"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.url == "" {
				c.url = "http://" + unused(t)
			}
			req := newRequest(t, c.url)
			if c.timeout > 0 {
				req.Timeout = c.timeout
			}
			result := courier.Send(t.Context(), clientOf(t, c.cfg), req)
			check(t, result, want{c.want, 0})
			if result.Detail != c.detail {
				t.Errorf("detail %q, want %q", result.Detail, c.detail)
			}
			if result.Response != "" {
				t.Errorf("response %q", result.Response)
			}
		})
	}
}

func TestSendTellsOurProxysFailureApart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer int // of the proxy
		want   webhook.Reason
		detail string
	}{
		"ItRefuses":                   {http.StatusProxyAuthRequired, webhook.ReasonProxy, "the egress proxy refused the connection with status 407"},
		"ItCannotConnectToTheAddress": {http.StatusBadGateway, webhook.ReasonConnect, "no connection to the host"},
		"ItConnectsAndTheAnswerIsNot": {http.StatusOK, webhook.ReasonReset, "the connection ended before an answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Connection", "close")
				w.WriteHeader(c.answer)
			})
			through, err := egress.ParseProxy(proxy.URL)
			if err != nil {
				t.Fatal(err)
			}
			result := courier.Send(t.Context(), clientOf(t, egress.Config{Proxy: through}), newRequest(t, "http://1.1.1.1/"))
			check(t, result, want{c.want, 0})
			if !strings.HasPrefix(result.Detail, c.detail) {
				t.Errorf("detail %q, want %q", result.Detail, c.detail)
			}
		})
	}
}

func TestSendTellsTLSFailuresApart(t *testing.T) {
	t.Parallel()
	quiet := log.New(io.Discard, "", 0)
	start := func(t *testing.T, cfg *tls.Config) *httptest.Server {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		server.TLS, server.Config.ErrorLog = cfg, quiet
		server.StartTLS()
		t.Cleanup(server.Close)
		return server
	}
	expect := func(t *testing.T, result courier.Result, detail string) {
		t.Helper()
		check(t, result, want{webhook.ReasonTLS, 0})
		if !strings.Contains(result.Detail, detail) {
			t.Errorf("detail %q, want %q in it", result.Detail, detail)
		}
	}

	t.Run("AnUnknownAuthority", func(t *testing.T) {
		t.Parallel()
		server := start(t, nil)
		expect(t, courier.Send(t.Context(), newClient(t, nil), newRequest(t, server.URL)), "unknown authority")
	})
	t.Run("AnotherHostsCertificate", func(t *testing.T) {
		t.Parallel()
		server := start(t, nil)
		cfg := egress.Config{
			AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
			RootCAs:      x509.NewCertPool(),
			Resolver:     dnstest.Resolver(func(string) []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} }),
		}
		cfg.RootCAs.AddCert(server.Certificate())
		url := strings.Replace(server.URL, "127.0.0.1", "other.test", 1)
		expect(t, courier.Send(t.Context(), clientOf(t, cfg), newRequest(t, url)), "for another host")
	})
	t.Run("AReceiverWithoutTLS", func(t *testing.T) {
		t.Parallel()
		server := receiver(t, func(http.ResponseWriter, *http.Request) {})
		url := strings.Replace(server.URL, "http:", "https:", 1)
		expect(t, courier.Send(t.Context(), newClient(t, nil), newRequest(t, url)), "does not speak TLS")
	})
	t.Run("ATooOldVersion", func(t *testing.T) {
		t.Parallel()
		server := start(t, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		expect(t, courier.Send(t.Context(), newClient(t, server), newRequest(t, server.URL)), "protocol version")
	})
	t.Run("ADemandedClientCertificate", func(t *testing.T) {
		t.Parallel()
		server := start(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert})
		expect(t, courier.Send(t.Context(), newClient(t, server), newRequest(t, server.URL)), "certificate required")
	})
	t.Run("AHandshakeThatHangs", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, and says nothing
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		req := newRequest(t, "https://"+listener.Addr().String())
		req.Timeout = 500 * time.Millisecond
		expect(t, courier.Send(t.Context(), newClient(t, nil), req), "timed out")
	})
	t.Run("AHandshakeThatBreaks", func(t *testing.T) {
		t.Parallel()
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
				_ = conn.Close()
			}
		}()
		expect(t, courier.Send(t.Context(), newClient(t, nil), newRequest(t, "https://"+listener.Addr().String())), "TLS handshake failed")
	})
}

func TestWhatCannotBeSentIsAnInternalError(t *testing.T) {
	t.Parallel()
	server := receiver(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	client := newClient(t, server)

	unsigned := newRequest(t, server.URL)
	unsigned.Signer = newSigner(t, webhook.SchemeStandardEd25519) // for which it has no key
	result := courier.Send(t.Context(), client, unsigned)
	check(t, result, want{webhook.ReasonInternalError, 0})
	if result.Detail != "no signing secret of the webhook is valid" {
		t.Errorf("detail %q", result.Detail)
	}

	split := newRequest(t, server.URL)
	split.Headers = secretly(map[string]string{"X-A": "b\r\nX-Forged: c"})
	check(t, courier.Send(t.Context(), client, split), want{webhook.ReasonInternalError, 0})
}

// secretly is headers as a webhook has them.
func secretly(headers map[string]string) map[string]webhook.Secret {
	secret := map[string]webhook.Secret{}
	for name, value := range headers {
		secret[name] = webhook.NewSecret(value)
	}
	return secret
}

func TestShutdownIsNotAnOutcome(t *testing.T) {
	t.Parallel()
	interrupted := func(t *testing.T, result courier.Result) {
		t.Helper()
		if !result.Interrupted || result.Reason != "" || result.StatusCode != 0 {
			t.Errorf("got %+v, want an interruption", result)
		}
	}

	t.Run("BeforeTheRequest", func(t *testing.T) {
		t.Parallel()
		server := receiver(t, func(http.ResponseWriter, *http.Request) {})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		interrupted(t, courier.Send(ctx, newClient(t, server), newRequest(t, server.URL)))
	})
	t.Run("WhileWaitingForTheAnswer", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		url := rawReceiver(t, func(conn net.Conn, _ string) { cancel(); untilClosed(conn) })
		interrupted(t, courier.Send(ctx, newClient(t, nil), newRequest(t, url)))
	})
	t.Run("ByTheCallersDeadline", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		url := rawReceiver(t, func(conn net.Conn, _ string) { untilClosed(conn) })
		interrupted(t, courier.Send(ctx, newClient(t, nil), newRequest(t, url)))
	})
	t.Run("WhileResolving", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		silent := dnstest.Silent()
		dial := silent.Dial
		silent.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			cancel()
			return dial(ctx, network, address)
		}
		interrupted(t, courier.Send(ctx, clientOf(t, egress.Config{Resolver: silent}), newRequest(t, "http://a.example/")))
	})
	t.Run("AfterTheAnswerBeganItsStatusDecides", func(t *testing.T) {
		t.Parallel()
		for status, reason := range map[int]webhook.Reason{200: webhook.ReasonDelivered, 500: webhook.ReasonServerError} {
			// The transport is wrapped to end the context exactly between header and body.
			ctx, cancel := context.WithCancel(t.Context())
			url := rawReceiver(t, func(conn net.Conn, _ string) {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d X\r\nContent-Length: 9\r\n\r\nabc", status)
				untilClosed(conn)
			})
			client := &http.Client{Transport: afterHeader{newClient(t, nil).Transport, cancel}}
			check(t, courier.Send(ctx, client, newRequest(t, url)), want{reason, status})
		}
	})
}

// afterHeader calls a function when an answer's header has arrived.
type afterHeader struct {
	http.RoundTripper
	do func()
}

func (a afterHeader) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := a.RoundTripper.RoundTrip(req)
	a.do()
	return resp, err
}

func TestTimings(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok")
	}))
	server.StartTLS()
	t.Cleanup(server.Close)
	cfg := egress.Config{
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		RootCAs:      x509.NewCertPool(),
		Resolver:     dnstest.Resolver(func(string) []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} }),
	}
	cfg.RootCAs.AddCert(server.Certificate())
	client := clientOf(t, cfg)
	url := strings.Replace(server.URL, "127.0.0.1", "example.com", 1) // httptest's certificate is for it

	first := courier.Send(t.Context(), client, newRequest(t, url))
	check(t, first, want{webhook.ReasonDelivered, 200})
	phases := first.Timings
	if phases.DNS == nil || phases.Connect == nil || phases.TLS == nil || phases.FirstByte == nil || phases.QueueWait != nil {
		shown, _ := json.Marshal(phases)
		t.Fatalf("a new connection has %s", shown)
	}
	if sum := *phases.DNS + *phases.Connect + *phases.TLS; sum > *phases.FirstByte+3 || *phases.FirstByte > *phases.Total {
		t.Errorf("phases add up to %d, first byte after %d of %d", sum, *phases.FirstByte, *phases.Total)
	}

	second := courier.Send(t.Context(), client, newRequest(t, url))
	check(t, second, want{webhook.ReasonDelivered, 200})
	phases = second.Timings
	if phases.DNS != nil || phases.Connect != nil || phases.TLS != nil || phases.FirstByte == nil {
		shown, _ := json.Marshal(phases)
		t.Errorf("a reused connection has %s", shown)
	}
}

func TestAConnectionIsUsedAgainAfterABodyUpToTheLimit(t *testing.T) {
	t.Parallel()
	for size, reused := range map[int]bool{
		0: true, 1: true, webhook.MaxResponseSnippet: true, webhook.MaxResponseSnippet + 4: true,
		courier.MaxResponseBody: true, courier.MaxResponseBody + 1: false,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			var connections atomic.Int64
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write(bytes.Repeat([]byte("a"), size))
			}))
			server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateNew {
					connections.Add(1)
				}
			}
			server.Start()
			t.Cleanup(server.Close)
			client := newClient(t, server)
			for range 3 {
				result := courier.Send(t.Context(), client, newRequest(t, server.URL))
				check(t, result, want{webhook.ReasonDelivered, 200})
				if got := len(result.Response); got != min(size, webhook.MaxResponseSnippet) {
					t.Errorf("%d bytes of response kept", got)
				}
				if (result.Detail == "") != reused {
					t.Errorf("detail %q", result.Detail)
				}
			}
			if got := connections.Load(); (got == 1) != reused {
				t.Errorf("3 requests took %d connections", got)
			}
		})
	}
}

// net/http would repeat a POST that carries an idempotency key in canonical
// spelling.
func TestABrokenConnectionDoesNotRepeatARequest(t *testing.T) {
	t.Parallel()
	for name, headers := range map[string]map[string]string{
		"Plain":                 nil,
		"WithIdempotencyKey":    {"Idempotency-Key": "a"},
		"WithXIdempotencyKey":   {"X-Idempotency-Key": "a"},
		"WithOddlySpelledKey":   {"IDEMPOTENCY-key": "a"},
		"EmptyWithTheKey":       {"Idempotency-Key": "a"},
		"EmptyWithoutTheHeader": nil,
	} {
		for way, end := range map[string]func(net.Conn){"Close": func(conn net.Conn) { _ = conn.Close() }, "Reset": reset} {
			t.Run(name+way, func(t *testing.T) {
				t.Parallel()
				var requests atomic.Int64
				url := rawReceiver(t, func(conn net.Conn, _ string) {
					requests.Add(1)
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					if _, ok := readRequest(conn); ok { // on the same connection, which is reused
						requests.Add(1)
						end(conn)
					}
				})
				client := newClient(t, nil)
				req := newRequest(t, url)
				req.Headers = secretly(headers)
				if strings.HasPrefix(name, "Empty") {
					req.Body = nil
				}
				check(t, courier.Send(t.Context(), client, req), want{webhook.ReasonDelivered, 200})
				check(t, courier.Send(t.Context(), client, req), want{webhook.ReasonReset, 0})
				if got := requests.Load(); got != 2 {
					t.Errorf("the receiver got %d requests for 2 attempts", got)
				}
			})
		}
	}
}

// A receiver that closes its idle connections costs at most the attempts that
// were on their way, and never makes one request into two.
func TestEachAttemptReachesAReceiverThatClosesIdleConnectionsAtMostOnce(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[string]int{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.Header.Get("fairhook-attempt")]++
	}))
	server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateIdle {
			_ = conn.Close()
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	client := newClient(t, server)
	delivered := 0
	const attempts = 300
	for i := range attempts {
		req := newRequest(t, server.URL)
		req.Number = i + 1
		switch result := courier.Send(t.Context(), client, req); result.Reason {
		case webhook.ReasonDelivered:
			delivered++
		case webhook.ReasonReset:
		default:
			t.Errorf("attempt %d: %s (%s)", i+1, result.Reason, result.Detail)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for number, times := range seen {
		if times != 1 {
			t.Errorf("attempt %s arrived %d times", number, times)
		}
	}
	if delivered == 0 || delivered > len(seen) {
		t.Errorf("%d of %d attempts delivered, %d arrived", delivered, attempts, len(seen))
	}
}

func BenchmarkSend(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer server.Close()
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		b.Fatal(err)
	}
	client := guard.Client()
	req := &courier.Request{
		URL: server.URL, EventID: webhook.NewID(time.Now()), EventType: "a", Body: make([]byte, 1024), Number: 1,
		Timestamp: time.Now(), Signer: newSigner(b), Timeout: patience,
	}
	b.ReportAllocs()
	for b.Loop() {
		if result := courier.Send(b.Context(), client, req); result.Reason != webhook.ReasonDelivered {
			b.Fatal(result.Reason, result.Detail)
		}
	}
}

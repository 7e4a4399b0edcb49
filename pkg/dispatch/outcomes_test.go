package dispatch

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/egress/dnstest"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// outcome is a receiver, and what a dispatcher makes of it: the row of the first
// attempt, and what becomes of the delivery.
type outcome struct {
	url  func(t *testing.T) string
	slow bool // the receiver takes longer than it may: give it a second

	reason  webhook.Reason
	status  webhook.Status // default: retrying
	code    int            // 0: no answer
	timings string         // those that are there, besides the queue wait and the total

	// wait is until the next attempt. Where it is the schedule's, jitter moves it.
	wait time.Duration
	due  time.Time // instead of wait, where the receiver names it
	// free: the attempt used no step of the schedule.
	free bool
	// check looks further; nil: no further.
	check func(t *testing.T, b *testBundle, w *webhook.Webhook, a webhook.Attempt)
}

const (
	scheduled = 1000 * time.Second // the wait of the schedule
	// slack is how late the decision may come after the answer.
	slack = 20 * time.Second
)

// answering is a receiver that answers with a status and headers.
func answering(status int, header ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		return newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}).URL
	}
}

// talking is a receiver that reads a request and then does what it likes with the
// connection, which is closed when it returns.
func talking(talk func(conn net.Conn)) func(*testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
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
				go func() {
					defer conn.Close()
					req, err := http.ReadRequest(bufio.NewReader(conn))
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					talk(conn)
				}()
			}
		}()
		return "http://" + listener.Addr().String()
	}
}

// saying is talking that says a text and hangs up.
func saying(text string) func(*testing.T) string {
	return talking(func(conn net.Conn) { _, _ = io.WriteString(conn, text) })
}

// trickling is talking that says a text and then another again and again, slowly,
// for as long as it is listened to.
func trickling(text, again string) func(*testing.T) string {
	return talking(func(conn net.Conn) {
		_, err := io.WriteString(conn, text)
		for err == nil {
			_, err = io.WriteString(conn, again)
			time.Sleep(20 * time.Millisecond) // the receiver's misbehaviour, not the test's waiting
		}
	})
}

func at(url string) func(*testing.T) string { return func(*testing.T) string { return url } }

// TestDispatcherTellsOutcomesApart is the whole way from a receiver to the row of
// its attempt.
func TestDispatcherTellsOutcomesApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// An HTTP date has whole seconds, and is by the clock that attempts are timed by.
	date := b.clock.Now().Add(30 * time.Minute).UTC().Truncate(time.Second)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	secure.EnableHTTP2 = true
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	_, securePort, _ := net.SplitHostPort(secure.Listener.Addr().String())
	var inside atomic.Int64
	private := newReceiver(t, func(http.ResponseWriter, *http.Request) { inside.Add(1) })
	_, privatePort, _ := net.SplitHostPort(private.Listener.Addr().String())

	var rebound atomic.Bool
	guard, err := egress.New(egress.Config{
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		RootCAs:      func() *x509.CertPool { p := x509.NewCertPool(); p.AddCert(secure.Certificate()); return p }(),
		Resolver: dnstest.Resolver(func(name string) []netip.Addr {
			switch name {
			case "metadata.example":
				return []netip.Addr{netip.MustParseAddr("169.254.169.254")}
			case "rebind.example": // was good when the webhook was made
				rebound.Store(true)
				return []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::ffff:127.0.0.2")}
			case "example.com", "wrong.test":
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
			}
			return nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.start(func(c *Config) { c.Guard = guard })
	hang := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	reset := func(conn net.Conn) { _ = conn.(*net.TCPConn).SetLinger(0) }
	isDisabled := func(t *testing.T, b *testBundle, w *webhook.Webhook, _ webhook.Attempt) {
		if now, err := postgres.Webhook(t.Context(), b.db, w.ID); err != nil || now.State != webhook.StateDisabled {
			t.Errorf("the webhook is %+v, %v", now, err)
		}
	}

	for name, o := range map[string]outcome{
		"A200IsDelivered":                   {url: answering(200), reason: webhook.ReasonDelivered, status: webhook.StatusDelivered, code: 200, timings: "connect first_byte"},
		"A204IsDelivered":                   {url: answering(204), reason: webhook.ReasonDelivered, status: webhook.StatusDelivered, code: 204, timings: "connect first_byte"},
		"AnHTTP2AnswerIsDelivered":          {url: at("https://example.com:" + securePort), reason: webhook.ReasonDelivered, status: webhook.StatusDelivered, code: 200, timings: "dns connect tls first_byte"},
		"InformationalAnswersAreNoAnswer":   {url: saying("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"), reason: webhook.ReasonDelivered, status: webhook.StatusDelivered, code: 202, timings: "connect first_byte"},
		"A302ToCloudMetadataIsNotFollowed":  {url: answering(302, "Location", "http://169.254.169.254/latest/meta-data/"), reason: webhook.ReasonRedirect, code: 302, timings: "connect first_byte", wait: scheduled},
		"A308ToAnotherReceiverIsNot":        {url: answering(308, "Location", private.URL), reason: webhook.ReasonRedirect, code: 308, timings: "connect first_byte", wait: scheduled},
		"A400IsAClientError":                {url: answering(400), reason: webhook.ReasonClientError, code: 400, timings: "connect first_byte", wait: scheduled},
		"A404IsAClientError":                {url: answering(404), reason: webhook.ReasonClientError, code: 404, timings: "connect first_byte", wait: scheduled},
		"A410DisablesTheWebhook":            {url: answering(410), reason: webhook.ReasonGone, code: 410, timings: "connect first_byte", free: true, check: isDisabled},
		"A429RestsForFiveSeconds":           {url: answering(429), reason: webhook.ReasonRateLimited, code: 429, timings: "connect first_byte", wait: courier.MinGate, free: true},
		"A429RestsForTheSecondsAskedFor":    {url: answering(429, "Retry-After", "120"), reason: webhook.ReasonRateLimited, code: 429, timings: "connect first_byte", wait: 120 * time.Second, free: true},
		"A429RestsUntilTheDateAskedFor":     {url: answering(429, "Retry-After", date.Format(http.TimeFormat)), reason: webhook.ReasonRateLimited, code: 429, timings: "connect first_byte", due: date, free: true},
		"A429RestsForAnHourAtMost":          {url: answering(429, "Retry-After", "86400"), reason: webhook.ReasonRateLimited, code: 429, timings: "connect first_byte", wait: courier.MaxRetryAfter, free: true},
		"A500IsAServerError":                {url: answering(500), reason: webhook.ReasonServerError, code: 500, timings: "connect first_byte", wait: scheduled},
		"A500CanAskForMoreTime":             {url: answering(500, "Retry-After", "3000"), reason: webhook.ReasonServerError, code: 500, timings: "connect first_byte", wait: 3000 * time.Second},
		"A501IsAServerError":                {url: answering(501), reason: webhook.ReasonServerError, code: 501, timings: "connect first_byte", wait: scheduled},
		"A502IsABadGateway":                 {url: answering(502), reason: webhook.ReasonBadGateway, code: 502, timings: "connect first_byte", wait: scheduled},
		"A503CostsAStep":                    {url: answering(503), reason: webhook.ReasonUnavailable, code: 503, timings: "connect first_byte", wait: scheduled},
		"A503ThatAsksForSecondsCostsNone":   {url: answering(503, "Retry-After", "120"), reason: webhook.ReasonUnavailable, code: 503, timings: "connect first_byte", wait: 120 * time.Second, free: true},
		"A503ThatNamesADateCostsNone":       {url: answering(503, "Retry-After", date.Format(http.TimeFormat)), reason: webhook.ReasonUnavailable, code: 503, timings: "connect first_byte", due: date, free: true},
		"A504IsAGatewayTimeout":             {url: answering(504), reason: webhook.ReasonGatewayTimeout, code: 504, timings: "connect first_byte", wait: scheduled},
		"ANameThatDoesNotExist":             {url: at("http://nowhere.example/"), reason: webhook.ReasonDNS, wait: scheduled},
		"APortWhereNobodyListens":           {url: at("http://127.0.0.1:1/"), reason: webhook.ReasonConnect, wait: scheduled},
		"AnotherHostsCertificate":           {url: at("https://wrong.test:" + securePort), reason: webhook.ReasonTLS, timings: "dns connect", wait: scheduled},
		"AReceiverWithoutTLS":               {url: func(t *testing.T) string { return strings.Replace(answering(200)(t), "http", "https", 1) }, reason: webhook.ReasonTLS, timings: "connect", wait: scheduled},
		"AReceiverThatHangs":                {url: talking(hang), slow: true, reason: webhook.ReasonTimeout, timings: "connect", wait: scheduled},
		"AHeaderThatTrickles":               {url: trickling("HTTP/1.1 200 OK\r\n", "X: y\r\n"), slow: true, reason: webhook.ReasonTimeout, timings: "connect first_byte", wait: scheduled},
		"InformationalAnswersThatTrickle":   {url: trickling("", "HTTP/1.1 102 Processing\r\n\r\n"), slow: true, reason: webhook.ReasonTimeout, timings: "connect first_byte", wait: scheduled},
		"ABodyThatTrickles":                 {url: trickling("HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", "a"), slow: true, reason: webhook.ReasonSlowBody, code: 200, timings: "connect first_byte", wait: scheduled},
		"ABodyOfA503ThatTrickles":           {url: trickling("HTTP/1.1 503 No\r\nRetry-After: 120\r\nContent-Length: 99999\r\n\r\n", "a"), slow: true, reason: webhook.ReasonUnavailable, code: 503, timings: "connect first_byte", wait: 120 * time.Second, free: true},
		"AConnectionThatIsReset":            {url: talking(reset), reason: webhook.ReasonReset, timings: "connect", wait: scheduled},
		"AConnectionThatIsClosed":           {url: saying(""), reason: webhook.ReasonReset, timings: "connect", wait: scheduled},
		"ALengthThatIsALie":                 {url: saying("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), reason: webhook.ReasonReset, code: 200, timings: "connect first_byte", wait: scheduled},
		"AHeaderThatIsOversized":            {url: saying("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n"), reason: webhook.ReasonTooLarge, timings: "connect first_byte", wait: scheduled},
		"ABodyThatIsOversizedIsNotReadOn":   {url: saying("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("a", 1<<20)), reason: webhook.ReasonDelivered, status: webhook.StatusDelivered, code: 200, timings: "connect first_byte", check: hasSnippet},
		"AnotherProtocol":                   {url: saying("SSH-2.0-OpenSSH_9.9\r\n"), reason: webhook.ReasonBadResponse, timings: "connect first_byte", wait: scheduled},
		"ANameThatLeadsToCloudMetadata":     {url: at("http://metadata.example/latest/meta-data/"), reason: webhook.ReasonBlocked, timings: "dns", wait: scheduled},
		"ANameThatWasReboundToAPrivateHost": {url: at("http://rebind.example:" + privatePort + "/"), reason: webhook.ReasonBlocked, timings: "dns", wait: scheduled},
		"AURLThatTodaysRulesForbid":         {url: at("http://2130706433/"), reason: webhook.ReasonBadURL, wait: scheduled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &testBundle{t: t, db: b.db, url: b.url, clock: b.clock, box: b.box}
			o.verify(t, b)
		})
	}
	t.Cleanup(func() {
		if inside.Load() != 0 {
			t.Errorf("a receiver that only a redirect or a rebound name leads to got %d requests", inside.Load())
		}
		if !rebound.Load() {
			t.Error("the name that is rebound was never looked up")
		}
	})
}

func hasSnippet(t *testing.T, _ *testBundle, _ *webhook.Webhook, a webhook.Attempt) {
	if a.Response == nil || len(*a.Response) != webhook.MaxResponseSnippet {
		t.Error("its beginning, and no more, must be on record")
	}
}

// verify sends one event and looks at what is on record.
func (o outcome) verify(t *testing.T, b *testBundle) {
	t.Helper()
	w := b.hook(o.url(t), func(w *webhook.Webhook) {
		w.RetrySchedule, w.TimeoutSeconds = []int{int(scheduled / time.Second)}, 60
		if o.slow {
			w.TimeoutSeconds = 1
		}
	})
	event := b.submit(w, 1)[0]
	var attempts []webhook.Attempt
	b.eventually("the attempt is on record", func() bool {
		attempts = b.attempts(event)
		return len(attempts) > 0
	})
	a := attempts[0]
	if o.status == "" {
		o.status = webhook.StatusRetrying
	}
	code := 0
	if a.StatusCode != nil {
		code = *a.StatusCode
	}
	detail := ""
	if a.Detail != nil {
		detail = *a.Detail
	}
	if len(attempts) != 1 && (o.wait > slack || !o.due.IsZero()) || a.Number != 1 || a.Reason != o.reason || a.Status != o.status || code != o.code {
		t.Errorf("%d attempts, the first as %s, %s, status %d (%s); want one as %s, %s, status %d", len(attempts), a.Reason, a.Status, code, detail, o.reason, o.status, o.code)
	}
	if strings.Contains(detail, "127.0.0") || strings.Contains(detail, "169.254") {
		t.Errorf("the detail shows an address: %s", detail)
	}
	if got := timingsThere(a.Timings); got != strings.TrimSpace("queue_wait "+o.timings)+" total" {
		t.Errorf("timings of %q, want those of %q beside the queue wait and the total", got, o.timings)
	}
	if a.Timings.Total != nil && a.Timings.FirstByte != nil && *a.Timings.Total < *a.Timings.FirstByte {
		t.Errorf("the end came %d µs after the first byte", *a.Timings.Total-*a.Timings.FirstByte)
	}
	switch {
	case o.status.Terminal():
		if a.NextAttemptAt != nil {
			t.Errorf("the next attempt is due %s", a.NextAttemptAt)
		}
	case a.NextAttemptAt == nil:
		t.Error("no next attempt is due")
	default:
		low, high := o.wait, o.wait
		if o.wait == scheduled {
			low, high = o.wait-o.wait/10, o.wait+o.wait/10
		}
		if !o.due.IsZero() {
			low, high = o.due.Sub(a.StartedAt)-time.Second, o.due.Sub(a.StartedAt)
		}
		if wait := a.NextAttemptAt.Sub(a.StartedAt); wait < low || wait > high+slack {
			t.Errorf("the next attempt is due %s after this one, want %s to %s", wait, low, high)
		}
		steps := 1
		if o.free {
			steps = 0
		}
		b.eventually(fmt.Sprintf("the delivery waits, with %d steps used", steps), func() bool {
			return b.count(`SELECT count(*) FROM fairhook.river_job WHERE unique_key = $1 AND state <> 'running' AND attempt = $2`,
				slices.Concat(event[:], w.ID[:]), steps) == 1
		})
	}
	if o.check != nil {
		o.check(t, b, w, a)
	}
}

// timingsThere names the phases that have a time.
func timingsThere(timings webhook.Timings) string {
	var there []string
	for _, phase := range []struct {
		name  string
		micro *int64
	}{
		{"queue_wait", timings.QueueWait},
		{"dns", timings.DNS},
		{"connect", timings.Connect},
		{"tls", timings.TLS},
		{"first_byte", timings.FirstByte},
		{"total", timings.Total},
	} {
		if phase.micro != nil {
			there = append(there, phase.name)
		}
	}
	return strings.Join(there, " ")
}

// Our own proxy's failure is nobody's fault but ours: the delivery keeps its
// steps, and the rest of the lane waits instead of running against it.
func TestDispatcherRestsAWebhookWhileOurOwnProxyFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var down atomic.Bool
	down.Store(true)
	asked := make(chan string, 1000)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.RequestURI
		if down.Load() {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		req, err := http.ReadRequest(bufio.NewReader(conn)) // the proxy plays the receiver too
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
	}))
	t.Cleanup(proxy.Close)
	through, err := egress.ParseProxy(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := egress.New(egress.Config{Proxy: through})
	if err != nil {
		t.Fatal(err)
	}
	w := b.hook("http://1.2.3.4/", func(w *webhook.Webhook) { w.RetrySchedule, w.MaxInFlight = []int{}, 1 }) // any step used would end it
	events := b.submit(w, 5)
	b.start(func(c *Config) { c.Guard = guard })
	b.eventually("an attempt is on record", func() bool { return b.count(`SELECT count(*) FROM fairhook.attempts`) == 1 })
	if n := b.count(`SELECT count(*) FROM fairhook.attempts WHERE reason = 'proxy' AND status = 'retrying' AND status_code IS NULL
		AND next_attempt_at - started_at >= interval '5 seconds'`); n != 1 {
		t.Errorf("%d attempts are on record as a failure of the proxy that rests the webhook, want 1", n)
	}
	down.Store(false)
	for _, event := range events {
		attempts := b.ended(event)
		if last := attempts[len(attempts)-1]; last.Status != webhook.StatusDelivered {
			t.Errorf("event %s ended as %+v", event, last)
		}
	}
	if first := <-asked; first != "1.2.3.4:80" {
		t.Errorf("the proxy was asked for %s", first)
	}
}

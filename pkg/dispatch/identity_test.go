package dispatch

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
	"github.com/fairhook/fairhook/pkg/webhook/certtest"
)

// credentials changes those of a webhook as the API does.
func (b *testBundle) credentials(w *webhook.Webhook, change func(w *webhook.Webhook)) {
	b.t.Helper()
	change(w)
	err := pgx.BeginFunc(b.t.Context(), b.db, func(tx pgx.Tx) error {
		if err := identity.Seal(b.box, w, true); err != nil {
			return err
		}
		if _, err := postgres.LockWebhook(b.t.Context(), tx, w.ID); err != nil {
			return err
		}
		if err := postgres.StoreCredentials(b.t.Context(), tx, w); err != nil {
			return err
		}
		return postgres.UpdateWebhook(b.t.Context(), tx, w)
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// told waits until a dispatcher has heard of a webhook's credentials, as they are.
func (b *testBundle) told(p *process, w *webhook.Webhook) {
	b.t.Helper()
	b.eventually("the dispatcher has heard of it", func() bool {
		entry, err := p.catalog.Webhook(b.t.Context(), w.ID)
		return err == nil && reflect.DeepEqual(entry.Webhook.Auth, w.Auth) && reflect.DeepEqual(entry.Webhook.TLS, w.TLS)
	})
}

// secureReceiver wants a client certificate of an authority's.
func secureReceiver(t *testing.T, ca *certtest.Authority, http2 bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName+" "+r.Proto)
	}))
	s.TLS = &tls.Config{
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(), Certificates: []tls.Certificate{ca.Issue(t, "server").TLS},
	}
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func withCertificate(pair certtest.Pair, ca *certtest.Authority) func(w *webhook.Webhook) {
	return func(w *webhook.Webhook) {
		w.TLS = &webhook.TLS{
			ClientCertificate: webhook.NewSecret(pair.Certificate), ClientKey: webhook.NewSecret(pair.Key), CACertificates: webhook.NewSecret(ca.PEM),
		}
	}
}

// tokenServer issues "issued-token-1", "issued-token-2" and so on, or says what status is set.
type tokenServer struct {
	*httptest.Server
	status atomic.Int64  // 0: it issues
	hold   chan struct{} // nil: it answers at once
	asked  atomic.Int64
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	s := &tokenServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := s.asked.Add(1)
		if s.hold != nil {
			<-s.hold
		}
		if status := s.status.Load(); status != 0 {
			w.WriteHeader(int(status))
			return
		}
		if _, secret, _ := r.BasicAuth(); secret != "good" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
			return
		}
		fmt.Fprintf(w, `{"access_token":"issued-token-%d","token_type":"Bearer","expires_in":3600}`, n)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *tokenServer) auth(secret string) func(w *webhook.Webhook) {
	return func(w *webhook.Webhook) {
		w.Auth = &webhook.Auth{
			Type: webhook.AuthOAuth2, TokenURL: s.URL, ClientID: "me", ClientSecret: webhook.NewSecret(secret), Scopes: []string{},
			AuthStyle: webhook.AuthStyleBasic,
		}
	}
}

func TestDispatcherSaysWhoSends(t *testing.T) {
	t.Parallel()

	t.Run("WithHeadersAndAuthThatAreSealed", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		for want, auth := range map[string]*webhook.Auth{
			"Basic c2hvcDpwOnc=": {Type: webhook.AuthBasic, Username: "shop", Password: webhook.NewSecret("p:w")},
			"Bearer abc":         {Type: webhook.AuthBearer, Token: webhook.NewSecret("abc")},
		} {
			w := b.hook(r.URL)
			b.credentials(w, func(w *webhook.Webhook) {
				w.Headers, w.Auth = map[string]webhook.Secret{"X-Shop": webhook.NewSecret(want)}, auth
			})
			b.submit(w, 1)
		}
		b.start()
		b.eventually("both arrive", func() bool { return r.count() == 2 })
		seen := map[string]bool{}
		for _, req := range r.got {
			if req.Header.Get("Authorization") != req.Header.Get("X-Shop") {
				t.Errorf("the receiver saw %v", req.Header)
			}
			seen[req.Header.Get("X-Shop")] = true
		}
		if len(seen) != 2 {
			t.Errorf("the receiver saw %v", seen)
		}
	})

	for name, protocol := range map[string]string{"OverHTTP1": "HTTP/1.1", "OverHTTP2": "HTTP/2.0"} {
		t.Run("ByACertificateThatMayChangeAnyTime"+name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			ca := certtest.New(t, "ca")
			r := secureReceiver(t, ca, name == "OverHTTP2")
			p := b.start()

			bare := b.hook(r.URL)
			b.credentials(bare, func(w *webhook.Webhook) { w.TLS = &webhook.TLS{CACertificates: webhook.NewSecret(ca.PEM)} })
			wrong := b.hook(r.URL)
			b.credentials(wrong, withCertificate(certtest.New(t, "other").Issue(t, "stranger"), ca))
			good := b.hook(r.URL)
			b.credentials(good, withCertificate(ca.Issue(t, "good"), ca))
			plain := b.hook(r.URL) // nobody told it of the authority

			events := map[*webhook.Webhook]webhook.ID{}
			for _, w := range []*webhook.Webhook{bare, wrong, good, plain} {
				events[w] = b.submit(w, 1)[0]
			}
			for w, detail := range map[*webhook.Webhook]string{
				bare: "tls: certificate required", wrong: "tls: unknown certificate authority", plain: "signed by an unknown authority",
			} {
				a := b.ended(events[w])
				for _, a := range a {
					if a.Reason != webhook.ReasonTLS || a.StatusCode != nil || a.Detail == nil || !strings.Contains(*a.Detail, detail) {
						t.Errorf("recorded %s, %v, want tls with %s", a.Reason, *a.Detail, detail)
					}
				}
			}
			if a := b.ended(events[good]); a[0].Response == nil || *a[0].Response != "good "+protocol {
				t.Errorf("recorded %+v", a[0])
			}
			b.credentials(good, withCertificate(ca.Issue(t, "rotated"), ca))
			b.told(p, good)
			if a := b.ended(b.submit(good, 1)[0]); a[0].Response == nil || *a[0].Response != "rotated "+protocol {
				t.Errorf("after the change recorded %+v", a[0])
			}
			b.credentials(wrong, withCertificate(ca.Issue(t, "mended"), ca))
			b.told(p, wrong)
			if a := b.ended(b.submit(wrong, 1)[0]); a[0].Response == nil || *a[0].Response != "mended "+protocol {
				t.Errorf("after it was mended recorded %+v", a[0])
			}
		})
	}

	t.Run("ByATokenThatIsAskedForOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		tokens := newTokenServer(t)
		tokens.hold = make(chan struct{})
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		b.credentials(w, tokens.auth("good"))
		events := b.submit(w, 30)
		p := b.start()
		b.eventually("all wait for it", func() bool { return p.queue.Held() == 30 && tokens.asked.Load() == 1 })
		close(tokens.hold)
		waited := 0
		for _, event := range events {
			if a := b.ended(event); a[0].Timings.Auth != nil {
				waited++
			}
		}
		if n := tokens.asked.Load(); n != 1 {
			t.Errorf("%d tokens for 30 deliveries", n)
		}
		for _, req := range r.got {
			if req.Header.Get("Authorization") != "Bearer issued-token-1" {
				t.Fatalf("the receiver saw %v", req.Header)
			}
		}
		if waited == 0 {
			t.Error("no attempt tells of the wait")
		}
	})

	t.Run("ByAnotherTokenWhenTheReceiverRefusesTheOld", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		tokens := newTokenServer(t)
		r := newReceiver(t, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") == "Bearer issued-token-1" {
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = io.WriteString(w, "expired: issued-token-1")
			}
		})
		w := b.hook(r.URL)
		b.credentials(w, tokens.auth("good"))
		event := b.submit(w, 1)[0]
		b.start()
		a := b.ended(event)
		if len(a) != 2 || a[0].Reason != webhook.ReasonClientError || *a[0].Response != "expired: ***" || a[1].Reason != webhook.ReasonDelivered {
			t.Errorf("recorded %+v", a)
		}
		if n := tokens.asked.Load(); n != 2 {
			t.Errorf("%d tokens", n)
		}
	})

	t.Run("AndRestsAtNoCostWhileThereIsNoToken", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		tokens := newTokenServer(t)
		tokens.status.Store(http.StatusServiceUnavailable)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		b.credentials(w, tokens.auth("good"))
		events := b.submit(w, 20)
		p := b.start()
		b.eventually("the gate closes", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.lane_gates WHERE cause = 'auth' AND webhook_id = $1`, w.ID) == 1
		})
		b.eventually("what was under way is on record", func() bool { return p.queue.Held() == 0 })
		if n := b.count(`SELECT count(*) FROM fairhook.attempts WHERE reason <> 'auth_unavailable' OR uses_step OR status <> 'retrying'`); n != 0 {
			t.Errorf("%d attempts are something else", n)
		}
		if n := b.count(`SELECT count(*) FROM fairhook.attempts`); n == 0 || n > 20 {
			t.Errorf("%d attempts", n)
		}
		if r.count() != 0 {
			t.Errorf("the receiver got %d requests", r.count())
		}
		// Once it is mended, and its owner says so, nothing waits for the gate.
		tokens.status.Store(0)
		b.credentials(w, func(w *webhook.Webhook) { w.Auth.Scopes = []string{"a"} })
		for _, event := range events {
			b.ended(event)
		}
		if n := b.count(`SELECT count(*) FROM fairhook.lane_gates`); n != 0 {
			t.Errorf("%d gates are left", n)
		}
	})

	t.Run("AndUsesAStepWhenItsCredentialsAreRefused", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		tokens := newTokenServer(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.RetrySchedule = []int{1, 600} })
		b.credentials(w, tokens.auth("wrong"))
		event := b.submit(w, 1)[0]
		p := b.start()
		b.eventually("two attempts", func() bool { return len(b.attempts(event)) == 2 })
		for _, a := range b.attempts(event) {
			if a.Reason != webhook.ReasonAuthRejected || a.Status != webhook.StatusRetrying || *a.Detail != "the token endpoint answered 401: invalid_client" ||
				a.StatusCode != nil || a.Response != nil {
				t.Errorf("recorded %+v", a)
			}
		}
		if b.count(`SELECT count(*) FROM fairhook.attempts WHERE uses_step`) != 2 || b.count(`SELECT count(*) FROM fairhook.lane_gates`) != 0 {
			t.Error("no step was used, or a gate closed")
		}
		b.credentials(w, tokens.auth("good"))
		b.told(p, w)
		if a := b.ended(b.submit(w, 1)[0]); a[0].Reason != webhook.ReasonDelivered {
			t.Errorf("with the right ones recorded %+v", a[0])
		}
	})

	t.Run("AndAHangingTokenEndpointHoldsNobodyElse", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		release := make(chan struct{})
		var hanging atomic.Int64
		tokens := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hanging.Add(1); <-release }))
		t.Cleanup(tokens.Close)
		defer close(release)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight, w.TimeoutSeconds = 5, 60 })
		b.credentials(w, (&tokenServer{Server: tokens}).auth("good"))
		b.submit(w, 50)
		p := b.start(func(c *Config) { c.Workers = 20 })
		b.eventually("it hangs", func() bool { return p.queue.Held() == 5 && hanging.Load() == 1 })
		other := b.hook(r.URL)
		for _, event := range b.submit(other, 100) {
			b.ended(event)
		}
		b.eventually("only its own are held", func() bool { return p.queue.Held() == 5 })
		if n := hanging.Load(); n != 1 {
			t.Errorf("%d requests for a token", n)
		}
	})
}

func TestDispatcherSealsHeadersThatAreInTheOpen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, answer(200))
	w := b.hook(r.URL, func(w *webhook.Webhook) { w.Headers = map[string]webhook.Secret{"X-Shop": webhook.NewSecret("hidden")} })
	both := b.hook(r.URL, func(w *webhook.Webhook) { w.Headers = map[string]webhook.Secret{"X-Shop": webhook.NewSecret("newer")} })
	// An ingest of the release before changed headers that were sealed already.
	sealed := *both
	sealed.Headers = map[string]webhook.Secret{"X-Old": webhook.NewSecret("old")}
	sealed.Auth = &webhook.Auth{Type: webhook.AuthBearer, Token: webhook.NewSecret("kept")}
	err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
		if err := identity.Seal(b.box, &sealed, true); err != nil {
			return err
		}
		return postgres.StoreCredentials(t.Context(), tx, &sealed)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.db.Exec(t.Context(), `INSERT INTO fairhook.instances (id, role, version, host) VALUES ('old', 'dispatcher', 'x', 'h')`); err != nil {
		t.Fatal(err)
	}
	duty := newSealing(b.db, b.box, b.config().Logger, prometheus.NewRegistry())
	open := func() int { return b.count(`SELECT count(*) FROM fairhook.webhooks WHERE headers <> '{}'`) }

	if err := duty.Run(t.Context()); err != nil || open() != 2 {
		t.Fatalf("while a dispatcher of the release before lives: %v, %d are open", err, open())
	}
	if _, err := b.db.Exec(t.Context(), `DELETE FROM fairhook.instances WHERE id = 'old'`); err != nil {
		t.Fatal(err)
	}
	updated := b.count(`SELECT count(*) FROM fairhook.webhooks WHERE updated_at = $1`, w.UpdatedAt)
	for _, hook := range []*webhook.Webhook{w, both} {
		now := time.Now()
		gate := postgres.GateChange{WebhookID: hook.ID, Cause: postgres.GateReceiver, At: now, Until: now, StartedAt: now}
		if err := postgres.RecordAttempts(t.Context(), b.db, nil, nil, []postgres.GateChange{gate}); err != nil {
			t.Fatal(err)
		}
	}
	if err := duty.Run(t.Context()); err != nil || open() != 0 || testutil.ToFloat64(duty.sealed) != 2 {
		t.Fatalf("then: %v, %d are open", err, open())
	}
	if n := b.count(`SELECT count(*) FROM fairhook.webhooks WHERE updated_at = $1`, w.UpdatedAt); n != updated {
		t.Error("sealing moved updated_at")
	}
	if n := b.count(`SELECT count(*) FROM fairhook.lane_gates`); n != 2 {
		t.Errorf("sealing kept %d gates of 2", n)
	}
	b.start()
	for _, hook := range []*webhook.Webhook{w, both} {
		b.ended(b.submit(hook, 1)[0])
	}
	for _, req := range r.got {
		token := req.Header.Get("Authorization")
		switch req.Header.Get("X-Shop") {
		case "hidden":
			if token != "" {
				t.Errorf("the receiver saw %v", req.Header)
			}
		case "newer":
			if token != "Bearer kept" || req.Header.Get("X-Old") != "" {
				t.Errorf("the receiver saw %v", req.Header)
			}
		default:
			t.Errorf("the receiver saw %v", req.Header)
		}
	}
}

func TestCertificatesThatExpireAreCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ca := certtest.New(t, "ca")
	now := time.Now()
	for _, until := range []time.Duration{-time.Hour, time.Hour, 29 * 24 * time.Hour, 31 * 24 * time.Hour} {
		b.credentials(b.hook("https://example.com"), withCertificate(ca.IssueFor(t, "c", now.Add(-2*time.Hour), now.Add(until)), ca))
	}
	b.credentials(b.hook("https://example.com"), func(w *webhook.Webhook) { w.TLS = &webhook.TLS{ServerName: "a"} })
	p := b.start()
	shown := func(state string) float64 { return testutil.ToFloat64(p.sealing.certificates.WithLabelValues(state)) }
	b.eventually("the leader counts them", func() bool { return shown("expiring") == 2 && shown("expired") == 1 })
	p.sealing.Lost()
	if shown("expiring") != 0 || shown("expired") != 0 {
		t.Error("they stay on show where nobody counts")
	}
}

// Tokens and certificates go through the egress proxy as everything does.
func TestDispatcherSaysWhoSendsThroughAProxy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var asked atomic.Int64
	proxy := newConnectProxy(t, &asked)
	parsed, err := egress.ParseProxy(proxy)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Proxy: parsed})
	if err != nil {
		t.Fatal(err)
	}
	ca := certtest.New(t, "ca")
	tokens := newTokenServer(t)
	w := b.hook(secureReceiver(t, ca, true).URL)
	b.credentials(w, func(w *webhook.Webhook) {
		withCertificate(ca.Issue(t, "good"), ca)(w)
		tokens.auth("good")(w)
	})
	event := b.submit(w, 1)[0]
	b.start(func(c *Config) { c.Guard = guard })
	if a := b.ended(event); a[0].Response == nil || *a[0].Response != "good HTTP/2.0" {
		t.Errorf("recorded %+v", a[0])
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the proxy was asked for %d connections, want one to each", n)
	}
}

// newConnectProxy is a proxy that does as it is asked, and counts.
func newConnectProxy(t *testing.T, asked *atomic.Int64) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		target, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", r.Host)
		if r.Method != http.MethodConnect || err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer target.Close()
		w.WriteHeader(http.StatusOK)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		go func() {
			_, _ = io.Copy(target, buffered)
			_ = target.Close()
		}()
		_, _ = io.Copy(conn, target)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

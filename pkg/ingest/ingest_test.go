package ingest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/openapi/openapitest"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const testKey = "test-key"

// testBundle is a whole ingest server, on a private database, behind a real
// listener.
type testBundle struct {
	db       *pgxpool.Pool
	server   *Server
	http     *httptest.Server
	registry *prometheus.Registry
	logs     *logBuffer
}

type options struct {
	pool           *pgxpool.Pool // nil: a database from pgtest
	key            string
	requestTimeout time.Duration
	bufferEvents   int
	noCommitters   bool // nothing that is submitted is ever committed
	quiet          bool // the log is as in production
	trustedProxies []netip.Prefix

	strictEventTypes bool
	maxJSONKeys      int

	acceptPerSecond, tenantAcceptPerSecond float64
	webhookFloor                           float64
	jobView                                bool
}

func setup(t *testing.T) *testBundle { return setupWith(t, options{key: testKey}) }

func setupWith(t testing.TB, o options) *testBundle {
	t.Helper()
	if o.pool == nil {
		o.pool = pgtest.DB(t)
	}
	b := &testBundle{db: o.pool, registry: prometheus.NewRegistry(), logs: &logBuffer{}}
	clock, err := postgres.NewClock(t.Context(), b.db)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	box := seal.New(seal.Key{})
	cat := catalog.New(catalog.Config{Pool: b.db, KeyBox: box})
	logger := slog.New(slog.NewJSONHandler(b.logs, &slog.HandlerOptions{Level: logLevel(o.quiet)}))
	keyUse := NewKeyUse(b.db, clock, logger)
	in := intake.New(intake.Config{Pool: b.db, Clock: clock, BufferEvents: o.bufferEvents})
	limits := NewLimits(LimitsConfig{
		Pool: b.db, Intake: in, Logger: logger, Registerer: b.registry,
		AcceptPerSecond: o.acceptPerSecond, TenantAcceptPerSecond: o.tenantAcceptPerSecond,
		WebhookFloor: o.webhookFloor,
	})
	health := daemon.NewHealth()
	health.Add("database", b.db.Ping)
	health.Add("buffer", in.Ready)
	var jobView http.Handler
	runJobView := func(context.Context) error { return nil }
	if o.jobView {
		if jobView, runJobView, err = NewJobView(b.db, logger); err != nil {
			t.Fatal(err)
		}
	}
	const maxBody = 20_000
	b.server, err = New(Config{
		Catalog:        cat,
		Intake:         in,
		API:            api.New(api.Config{Pool: b.db, Clock: clock, Box: box, Guard: guard, Catalog: cat, MaxBodyBytes: maxBody, TestWait: 200 * time.Millisecond}),
		Clock:          clock,
		Pool:           b.db,
		Livez:          health.Livez(),
		Readyz:         health.Readyz(),
		Metrics:        daemon.MetricsHandler(b.registry),
		BootstrapKey:   o.key,
		MaxBodyBytes:   maxBody,
		RequestTimeout: o.requestTimeout,
		KeyUse:         keyUse,
		Limits:         limits,
		TrustedProxies: o.trustedProxies,
		JobView:        jobView,

		StrictEventTypes: o.strictEventTypes,
		MaxJSONKeys:      o.maxJSONKeys,

		Logger:     logger,
		Registerer: b.registry,
	})
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	run := func(loop func(context.Context) error) {
		loops.Go(func() {
			if err := loop(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	run(cat.Run)
	run(limits.Run)
	run(runJobView)
	if !o.noCommitters {
		run(in.Run)
	}
	b.http = httptest.NewUnstartedServer(nil)
	none := http.NotFoundHandler() // the server has them itself
	front := NewFront(none, none, none, cmp.Or(o.requestTimeout, DefaultRequestTimeout), logger)
	front.Open(b.server)
	b.http.Config = front.HTTPServer()
	b.http.Config.Handler = openapitest.Load().Watch(t, b.http.Config.Handler)
	b.http.Start()
	t.Cleanup(func() {
		b.http.Close()
		cancel()
		loops.Wait()
	})
	return b
}

func logLevel(quiet bool) slog.Level {
	if quiet {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// logBuffer is a log to look into.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// lines are the log lines with this message and request id.
func (l *logBuffer) lines(t *testing.T, message, requestID string) (lines []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.text.Bytes()) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("log line %s: %v", line, err)
		}
		if fields["msg"] == message && fields["request_id"] == requestID {
			lines = append(lines, fields)
		}
	}
	return lines
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a *answer) decode(t testing.TB, into any) {
	t.Helper()
	if err := json.Unmarshal(a.body, into); err != nil {
		t.Fatalf("answer %d %s: %v", a.status, a.body, err)
	}
}

// request makes a request. header is pairs of names and values; the key is sent
// unless they say otherwise.
func (b *testBundle) request(t testing.TB, method, path, body string, header ...string) *answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, b.http.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+testKey)
	for i := 0; i < len(header); i += 2 {
		r.Header.Del(header[i])
		if header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	response, err := b.http.Client().Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	a := &answer{status: response.StatusCode, header: response.Header}
	if a.body, err = io.ReadAll(response.Body); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if a.header.Get("X-Request-Id") == "" {
		t.Errorf("%s %s: the answer has no X-Request-Id", method, path)
	}
	return a
}

// want makes a request and decodes its answer, which must have this status.
func want[T any](t testing.TB, b *testBundle, status int, method, path, body string, header ...string) (T, http.Header) {
	t.Helper()
	a := b.request(t, method, path, body, header...)
	if a.status != status {
		t.Fatalf("%s %s: %d %s, want %d", method, path, a.status, a.body, status)
	}
	var decoded T
	if len(a.body) > 0 {
		a.decode(t, &decoded)
	}
	return decoded, a.header
}

// problemAnswer is a problem document as clients read it.
type problemAnswer struct {
	Type      string               `json:"type"`
	Title     string               `json:"title"`
	Status    int                  `json:"status"`
	Detail    string               `json:"detail"`
	RequestID string               `json:"request_id"`
	Errors    []webhook.FieldError `json:"errors"`
}

// fields are the errors as "pointer or parameter: detail".
func (p *problemAnswer) fields() []string {
	fields := []string{}
	for _, e := range p.Errors {
		fields = append(fields, e.Pointer+e.Parameter+": "+e.Detail)
	}
	return fields
}

// refused makes a request and reads the problem document that it must get.
func refused(t *testing.T, b *testBundle, status int, code, method, path, body string, header ...string) (*problemAnswer, http.Header) {
	t.Helper()
	a := b.request(t, method, path, body, header...)
	return a.problem(t, status, code), a.header
}

// problem checks that an answer is a problem document of this kind.
func (a *answer) problem(t *testing.T, status int, code string) *problemAnswer {
	t.Helper()
	if a.status != status || a.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("answer is %d %s %s, want %d and a problem document", a.status, a.header.Get("Content-Type"), a.body, status)
	}
	var p problemAnswer
	a.decode(t, &p)
	if p.Type != "https://fairhook.dev/problems/"+code || p.Status != status || p.Title == "" ||
		p.RequestID == "" || p.RequestID != a.header.Get("X-Request-Id") {
		t.Errorf("problem is %s, want code %s and the request id %s", a.body, code, a.header.Get("X-Request-Id"))
	}
	return &p
}

// newWebhook creates a webhook of this tenant; more are further members.
func newWebhook(t testing.TB, b *testBundle, tenant, more string) webhook.Webhook {
	t.Helper()
	w, _ := want[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks",
		`{"tenant":"`+tenant+`","url":"http://127.0.0.1:1/"`+more+`}`)
	return w
}

package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// routes are all routes, with what each can be wrong about. $ stands for the id
// of an event, webhook or API key that exists, or the name of an event type, and $$
// for that of a webhook's secret which can be deleted.
var routes = []struct {
	method, path string
	body         string // one that is accepted; empty: the route reads none
	raw          bool   // any body is accepted
	batch        bool   // the body is no object, and has limits of its own: TestSubmitBatch
	other        string // a method that is not allowed
	allow        string
	public       bool
}{
	{method: "GET", path: "/livez", public: true, other: "POST", allow: "OPTIONS, GET, HEAD"},
	{method: "HEAD", path: "/livez", public: true, other: "POST", allow: "OPTIONS, GET, HEAD"},
	{method: "GET", path: "/readyz", public: true, other: "DELETE", allow: "OPTIONS, GET, HEAD"},
	{method: "HEAD", path: "/readyz", public: true, other: "DELETE", allow: "OPTIONS, GET, HEAD"},
	{method: "GET", path: "/metrics", public: true, other: "PUT", allow: "OPTIONS, GET, HEAD"},
	{method: "HEAD", path: "/metrics", public: true, other: "PUT", allow: "OPTIONS, GET, HEAD"},
	{method: "GET", path: "/openapi.json", public: true, other: "POST", allow: "OPTIONS, GET, HEAD"},
	{method: "HEAD", path: "/openapi.json", public: true, other: "POST", allow: "OPTIONS, GET, HEAD"},
	{method: "GET", path: "/docs", public: true, other: "POST", allow: "OPTIONS, GET, HEAD"},
	{method: "HEAD", path: "/docs", public: true, other: "POST", allow: "OPTIONS, GET, HEAD"},
	{method: "POST", path: "/v1/events", body: `{"tenant":"acme","type":"a","payload":1}`, other: "PUT", allow: "OPTIONS, GET, POST"},
	{method: "GET", path: "/v1/events", other: "DELETE", allow: "OPTIONS, GET, POST"},
	{method: "POST", path: "/v1/events/batch", body: `[{"tenant":"acme","type":"a","payload":1}]`, batch: true, other: "PUT", allow: "OPTIONS, POST"},
	{method: "POST", path: "/v1/webhooks/$/events?type=a", body: `x`, raw: true, other: "GET", allow: "OPTIONS, POST"},
	{method: "GET", path: "/v1/events/$", other: "DELETE", allow: "OPTIONS, GET"},
	{method: "GET", path: "/v1/events/$/attempts", other: "POST", allow: "OPTIONS, GET"},
	{method: "GET", path: "/v1/events/$/explain", other: "POST", allow: "OPTIONS, GET"},
	{method: "GET", path: "/v1/deliveries", other: "POST", allow: "OPTIONS, GET"},
	{method: "POST", path: "/v1/webhooks", body: `{"tenant":"acme","url":"http://127.0.0.1/"}`, other: "PUT", allow: "OPTIONS, GET, POST"},
	{method: "GET", path: "/v1/webhooks", other: "DELETE", allow: "OPTIONS, GET, POST"},
	{method: "GET", path: "/v1/webhooks/$", other: "PUT", allow: "OPTIONS, DELETE, GET, PATCH"},
	{method: "PATCH", path: "/v1/webhooks/$", body: `{}`, other: "POST", allow: "OPTIONS, DELETE, GET, PATCH"},
	{method: "POST", path: "/v1/webhooks/$/pause", other: "GET", allow: "OPTIONS, POST"},
	{method: "POST", path: "/v1/webhooks/$/resume", other: "PATCH", allow: "OPTIONS, POST"},
	{method: "POST", path: "/v1/webhooks/$/test", other: "GET", allow: "OPTIONS, POST"},
	{method: "GET", path: "/v1/webhooks/$/tests/$", other: "DELETE", allow: "OPTIONS, GET"},
	{method: "GET", path: "/v1/webhooks/$/secrets", other: "PUT", allow: "OPTIONS, GET, POST"},
	{method: "POST", path: "/v1/webhooks/$/secrets", body: `{}`, other: "PATCH", allow: "OPTIONS, GET, POST"},
	{method: "DELETE", path: "/v1/webhooks/$/secrets/$$", other: "GET", allow: "OPTIONS, DELETE"},
	{method: "GET", path: "/v1/webhooks/$/public-keys", public: true, other: "POST", allow: "OPTIONS, GET"},
	{method: "GET", path: "/v1/webhooks/$/deliveries", other: "POST", allow: "OPTIONS, GET"},
	{method: "GET", path: "/v1/webhooks/$/stats", other: "PUT", allow: "OPTIONS, GET"},
	{method: "DELETE", path: "/v1/webhooks/$", other: "FOO", allow: "OPTIONS, DELETE, GET, PATCH"},
	{method: "POST", path: "/v1/keys", body: `{"tenant":"acme","scopes":["read"]}`, other: "DELETE", allow: "OPTIONS, GET, POST"},
	{method: "GET", path: "/v1/keys", other: "PATCH", allow: "OPTIONS, GET, POST"},
	{method: "GET", path: "/v1/keys/$", other: "PUT", allow: "OPTIONS, DELETE, GET"},
	{method: "POST", path: "/v1/keys/$/secrets", body: `{}`, other: "GET", allow: "OPTIONS, POST"},
	{method: "DELETE", path: "/v1/keys/$", other: "PATCH", allow: "OPTIONS, DELETE, GET"},
	{method: "GET", path: "/v1/instances", other: "POST", allow: "OPTIONS, GET"},
	{method: "GET", path: "/v1/event-types", other: "POST", allow: "OPTIONS, GET"},
	{method: "PUT", path: "/v1/event-types/$", body: `{}`, other: "POST", allow: "OPTIONS, DELETE, GET, PUT"},
	{method: "GET", path: "/v1/event-types/$", other: "PATCH", allow: "OPTIONS, DELETE, GET, PUT"},
	{method: "DELETE", path: "/v1/event-types/$", other: "POST", allow: "OPTIONS, DELETE, GET, PUT"},
}

func TestEveryRoute(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, route := range routes {
		t.Run(route.method+" "+route.path, func(t *testing.T) {
			t.Parallel()
			id, secret := newWebhook(t, b, "acme", `,"signatures":["standard","standard_ed25519"]`).ID, webhook.ID{}
			if strings.Contains(route.path, "$$") {
				secret = oldSecret(t, b, id)
			}
			if strings.HasPrefix(route.path, "/v1/events/") {
				accepted, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/webhooks/"+id.String()+"/events?type=a", "x")
				id = accepted.ID
			}
			if strings.HasPrefix(route.path, "/v1/keys/") {
				id = newKey(t, b, "acme", `,"require_signature":true`, webhook.ScopeRead).ID
			}
			if strings.HasPrefix(route.path, "/v1/event-types/") {
				want[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/"+id.String(), `{}`)
			}
			if strings.HasSuffix(route.path, "/tests/$") { // one with the id of its webhook
				if _, err := b.db.Exec(t.Context(), `INSERT INTO fairhook.webhook_tests (id, webhook_id) VALUES ($1, $1)`, id); err != nil {
					t.Fatal(err)
				}
			}
			path := strings.NewReplacer("$$", secret.String(), "$", id.String()).Replace(route.path)

			if !route.public {
				for _, header := range []string{"", "Bearer wrong", "Bearer", "Basic " + testKey, testKey, "Bearer " + testKey + "x"} {
					_, got := refused(t, b, http.StatusUnauthorized, "unauthorized", route.method, path, route.body, "Authorization", header)
					if got.Get("WWW-Authenticate") != "Bearer" {
						t.Errorf("WWW-Authenticate is %q", got.Get("WWW-Authenticate"))
					}
				}
				refused(t, b, http.StatusUnauthorized, "unauthorized", route.other, path, "", "Authorization", "")
			}
			_, header := refused(t, b, http.StatusMethodNotAllowed, "method-not-allowed", route.other, path, "")
			allowed := strings.Split(header.Get("Allow"), ", ")
			slices.Sort(allowed)
			expected := strings.Split(route.allow, ", ")
			slices.Sort(expected)
			if !slices.Equal(allowed, expected) {
				t.Errorf("Allow is %q, want %q", allowed, expected)
			}
			if route.body != "" && !route.batch {
				large := strings.Repeat(" ", 20_001)
				p, _ := refused(t, b, http.StatusRequestEntityTooLarge, "too-large", route.method, path, large)
				if !strings.Contains(p.Detail, "20000 bytes") {
					t.Errorf("%q does not name the limit", p.Detail)
				}
				refused(t, b, http.StatusUnsupportedMediaType, "unsupported-media-type", route.method, path, route.body, "Content-Encoding", "gzip")
			}
			if route.body != "" && !route.raw && !route.batch {
				for body, field := range map[string]string{
					`{"url": nope}`: ": invalid character 'o' in literal null (expecting 'u') at byte offset 9",
					`{}{}`:          ": invalid character '{' after top-level value at byte offset 2",
					``:              ": ends too early, at byte offset 0",
					`{"foo/":1}`:    "/foo~1: is not a known field",
				} {
					p, _ := refused(t, b, http.StatusBadRequest, "malformed-request", route.method, path, body)
					if !slices.Equal(p.fields(), []string{field}) {
						t.Errorf("errors of %s are %q, want %q", body, p.fields(), field)
					}
				}
			}
			if !route.public {
				mark := "?"
				if strings.Contains(path, "?") {
					mark = "&"
				}
				p, _ := refused(t, b, http.StatusBadRequest, "malformed-request", route.method, path+mark+"foo=1", route.body)
				if !slices.Equal(p.fields(), []string{"foo: is not a known parameter"}) {
					t.Errorf("errors of an unknown parameter are %q", p.fields())
				}
			}
			if a := b.request(t, route.method, path, route.body); a.status >= 300 {
				t.Errorf("a good request gets %d %s", a.status, a.body)
			}
		})
	}
	t.Run("EachIsInThisTable", func(t *testing.T) {
		t.Parallel()
		tested := map[string]bool{}
		for _, route := range routes {
			parameter := ":id"
			if strings.HasPrefix(route.path, "/v1/event-types/") {
				parameter = ":name"
			}
			path, _, _ := strings.Cut(strings.NewReplacer("$$", ":secret_id", "/tests/$", "/tests/:test", "$", parameter).Replace(route.path), "?")
			tested[route.method+" "+path] = true
		}
		for _, route := range b.server.echo.Routes() {
			if !tested[route.Method+" "+route.Path] {
				t.Errorf("%s %s is not in the table", route.Method, route.Path)
			}
		}
	})
	t.Run("ThatDoesNotExistIs404WithAKeyOnly", func(t *testing.T) {
		t.Parallel()
		for _, path := range []string{"/", "/v1", "/v2/events", "/v1/events/", "/livez/x", "/v1/%zz%00"[:4]} {
			refused(t, b, http.StatusNotFound, "not-found", "GET", path, "")
			refused(t, b, http.StatusUnauthorized, "unauthorized", "GET", path, "", "Authorization", "")
		}
	})
}

// oldSecret rotates a webhook's secret, and returns the one that was before.
func oldSecret(t *testing.T, b *testBundle, hook webhook.ID) webhook.ID {
	t.Helper()
	path := "/v1/webhooks/" + hook.String() + "/secrets"
	secrets, _ := want[struct {
		Data []struct{ ID webhook.ID }
	}](t, b, http.StatusOK, "GET", path, "")
	want[any](t, b, http.StatusCreated, "POST", path, `{"kind":"ed25519"}`)
	return secrets.Data[0].ID
}

func TestWithoutAConfiguredKeyEveryCallIsRefused(t *testing.T) {
	t.Parallel()
	b := setupWith(t, options{})
	for _, header := range []string{"Bearer ", "Bearer", "Bearer x", ""} {
		refused(t, b, http.StatusUnauthorized, "unauthorized", "GET", "/v1/webhooks", "", "Authorization", header)
	}
	if a := b.request(t, "GET", "/livez", ""); a.status != http.StatusOK {
		t.Errorf("/livez answers %d", a.status)
	}
}

func TestTheSchemeOfAKeyHasNoCase(t *testing.T) {
	t.Parallel()
	key := newBootstrapKey("secret")
	for header, admitted := range map[string]bool{
		"Bearer secret": true, "bearer secret": true, "BEARER  secret": true,
		"Bearer Secret": false, "Bearer secret ": false, "Bearer": false, "secret": false, "": false, "Basic secret": false,
	} {
		if got := key.is(bearer(header)); got != admitted {
			t.Errorf("%q is the key: %v", header, got)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"abc-123", strings.Repeat("~", 128), "!"} {
		_, header := refused(t, b, http.StatusNotFound, "not-found", "GET", "/nowhere", "", "X-Request-Id", id)
		if got := header.Get("X-Request-Id"); got != id {
			t.Errorf("X-Request-Id %q became %q", id, got)
		}
	}
	for _, id := range []string{"", strings.Repeat("x", 129), "with space", "tab\tbed", "é"} {
		_, header := refused(t, b, http.StatusNotFound, "not-found", "GET", "/nowhere", "", "X-Request-Id", id)
		made, err := webhook.ParseID(header.Get("X-Request-Id"))
		if err != nil || time.Since(made.Time()).Abs() > time.Minute {
			t.Errorf("X-Request-Id %q became %q, want a new UUIDv7", id, header.Get("X-Request-Id"))
		}
	}
}

func TestInternalErrorsAreLoggedOnceAndShowNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, handler := range map[string]echo.HandlerFunc{
		"/v1/test/error":  func(echo.Context) error { return errors.New("the password is hunter2") },
		"/v1/test/panic":  func(echo.Context) error { panic("the password is hunter2") },
		"/v1/test/panics": func(echo.Context) error { panic(webhook.Errorf(webhook.CodeNotFound, "the password is hunter2")) },
		"/v1/test/echo":   func(echo.Context) error { return echo.NewHTTPError(http.StatusTeapot, "the password is hunter2") },
		"/v1/test/code":   func(echo.Context) error { return webhook.Errorf("new-code", "the password is hunter2") },
	} {
		b.server.echo.GET(path, handler)
		a := b.request(t, "GET", path, "")
		a.problem(t, http.StatusInternalServerError, "internal-error")
		if bytes.Contains(a.body, []byte("hunter2")) {
			t.Errorf("%s shows %s", path, a.body)
		}
		lines := b.logs.lines(t, "request failed", a.header.Get("X-Request-Id"))
		if len(lines) != 1 || lines[0]["level"] != "ERROR" || !strings.Contains(fmt.Sprint(lines[0]["error"]), "hunter2") || lines[0]["route"] != path {
			t.Errorf("%s is logged as %v", path, lines)
		}
		_, hasStack := lines[0]["stack"]
		if hasStack != strings.Contains(path, "panic") {
			t.Errorf("%s is logged with a stack: %v", path, hasStack)
		}
	}
}

func TestRequestsAreLoggedWithTheirIDs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWebhook(t, b, "acme", "")
	accepted, header := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/webhooks/"+w.ID.String()+"/events?type=a", "x")
	lines := b.logs.lines(t, "request", header.Get("X-Request-Id"))
	if len(lines) != 1 || lines[0]["event_id"] != accepted.ID.String() || lines[0]["webhook_id"] != w.ID.String() ||
		lines[0]["status"] != 202.0 || lines[0]["level"] != "DEBUG" || lines[0]["route"] != "/v1/webhooks/:id/events" {
		t.Errorf("logged as %v", lines)
	}
	_, header = want[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+accepted.ID.String(), "")
	if lines := b.logs.lines(t, "request", header.Get("X-Request-Id")); len(lines) != 1 || lines[0]["event_id"] != accepted.ID.String() {
		t.Errorf("logged as %v", lines)
	}
}

func TestRetryAfterIsWholeSecondsOfAtLeastOne(t *testing.T) {
	t.Parallel()
	for wait, header := range map[time.Duration]string{0: "1", time.Nanosecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", time.Hour: "3600"} {
		if got := retryAfter(wait); got != header {
			t.Errorf("retryAfter(%v) = %q, want %q", wait, got, header)
		}
	}
}

func TestEveryCodeHasAProblem(t *testing.T) {
	t.Parallel()
	for _, code := range []webhook.Code{
		webhook.CodeMalformed, webhook.CodeInvalid, webhook.CodeUnauthorized, webhook.CodeForbidden, webhook.CodeNotFound,
		webhook.CodeConflict, webhook.CodeTooLarge, webhook.CodeRateLimited, webhook.CodeUnavailable,
	} {
		p, internal := problemOf(fmt.Errorf("while testing: %w", webhook.Errorf(code, "Look.")))
		if internal || p.Type != problemBase+string(code) || p.Title == "" || p.Status < 400 || p.Detail != "Look." {
			t.Errorf("problem of %s is %+v", code, p)
		}
	}
}

func TestASlowBodyIsCutOff(t *testing.T) {
	t.Parallel()
	b := setupWith(t, options{key: testKey, requestTimeout: 150 * time.Millisecond})
	conn, err := net.Dial("tcp", b.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+testKey+"\r\nContent-Length: 10\r\n\r\n{")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 408 ")) || !bytes.Contains(got, []byte("problems/request-timeout")) {
		t.Errorf("answer is %q, %v", got, err)
	}
}

func TestABodyThatBreaksOffIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, body := range []string{"Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\"\r\n"} {
		conn, err := net.Dial("tcp", b.http.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+testKey+"\r\n"+body)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.HasPrefix(got, []byte("HTTP/1.1 400 ")) || !bytes.Contains(got, []byte("could not be read to its end")) {
			t.Errorf("answer is %q, %v", got, err)
		}
	}
}

func TestMetricsCountRoutesAndNotPaths(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := newWebhook(t, b, "acme", "").ID.String()
	for range 3 {
		b.request(t, "GET", "/v1/webhooks/"+id, "")
	}
	b.request(t, "GET", "/v1/webhooks/"+webhook.NewID(time.Now()).String(), "")
	b.request(t, "GET", "/v1/nowhere", "")
	b.request(t, "BREW", "/v1/events", "")
	expected := `
		# HELP fairhook_http_requests_total Requests to the REST API, by route pattern, method and status code of the answer. 499 is a client that left before it.
		# TYPE fairhook_http_requests_total counter
		fairhook_http_requests_total{code="200",method="GET",route="/v1/webhooks/:id"} 3
		fairhook_http_requests_total{code="201",method="POST",route="/v1/webhooks"} 1
		fairhook_http_requests_total{code="404",method="GET",route="/v1/webhooks/:id"} 1
		fairhook_http_requests_total{code="404",method="GET",route="none"} 1
		fairhook_http_requests_total{code="405",method="other",route="/v1/events"} 1
		# HELP fairhook_http_requests_in_flight Requests to the REST API that have not been answered yet.
		# TYPE fairhook_http_requests_in_flight gauge
		fairhook_http_requests_in_flight 0
	`
	if err := testutil.GatherAndCompare(b.registry, strings.NewReader(expected), "fairhook_http_requests_total", "fairhook_http_requests_in_flight"); err != nil {
		t.Error(err)
	}
	a := b.request(t, "GET", "/metrics", "")
	if !bytes.Contains(a.body, []byte(`fairhook_http_request_duration_seconds_count{method="GET",route="/v1/webhooks/:id"} 4`)) {
		t.Errorf("/metrics answers %s", a.body)
	}
}

func TestWithTheDatabaseAwayAnswersAre503WithinASecondAndComeBack(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	pool, err := postgres.Open(t.Context(), server.URL("fairhook"), "test", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b := setupWith(t, options{key: testKey, pool: pool})
	w := newWebhook(t, b, "acme", "")
	submit := `{"webhook_id":"` + w.ID.String() + `","type":"a","payload":1}`
	want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submit)

	server.Kill()
	// The commit that finds the connection broken cannot know whether it reached
	// the server, and tries for a while to find out. It is not among those below.
	refused(t, b, http.StatusServiceUnavailable, "unavailable", "POST", "/v1/events", submit)
	for _, call := range []struct{ method, path, body string }{
		{"POST", "/v1/events", submit},
		{"POST", "/v1/events", `{"tenant":"unseen","type":"a","payload":1}`},
		{"GET", "/v1/events/" + w.ID.String(), ""},
		{"GET", "/v1/webhooks", ""},
		{"POST", "/v1/webhooks", `{"tenant":"acme","url":"http://127.0.0.1/"}`},
		{"PATCH", "/v1/webhooks/" + w.ID.String(), `{}`},
		{"POST", "/v1/webhooks/" + w.ID.String() + "/pause", ""},
		{"DELETE", "/v1/webhooks/" + w.ID.String(), ""},
	} {
		began := time.Now()
		p, header := refused(t, b, http.StatusServiceUnavailable, "unavailable", call.method, call.path, call.body)
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("%s %s took %v", call.method, call.path, took)
		}
		if header.Get("Retry-After") == "" || strings.Contains(p.Detail, "127.0.0.1") {
			t.Errorf("%s %s: Retry-After %q, %q", call.method, call.path, header.Get("Retry-After"), p.Detail)
		}
	}
	if a := b.request(t, "GET", "/readyz", ""); a.status != http.StatusServiceUnavailable || !bytes.Contains(a.body, []byte(`"database":"unreachable"`)) {
		t.Errorf("/readyz answers %d %s", a.status, a.body)
	}
	if a := b.request(t, "GET", "/livez", ""); a.status != http.StatusOK {
		t.Errorf("/livez answers %d", a.status)
	}

	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		a := b.request(t, "POST", "/v1/events", submit)
		if a.status == http.StatusAccepted {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("5 s after the database came back a submit gets %d %s", a.status, a.body)
		}
	}
}

package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

const (
	webhookID = "01890a5d-ac96-774b-bcce-b302099a8057"
	eventID   = "01890a5d-ac96-774b-bcce-b302099a8058"
	apiKey    = "fh_the-key-nobody-may-see"
)

// request is what a server got.
type request struct {
	method, path, query string
	header              http.Header
	body                []byte
	length              int64
	at                  time.Time
}

// fakeFairhook answers with the given handlers, one after the other, the last
// of them for ever, and keeps the requests.
type fakeFairhook struct {
	*httptest.Server
	mu       sync.Mutex // guards requests
	requests []request
}

func newFake(t *testing.T, answers ...http.HandlerFunc) *fakeFairhook {
	t.Helper()
	fake := &fakeFairhook{}
	fake.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read the request: %v", err)
		}
		fake.mu.Lock()
		n := len(fake.requests)
		fake.requests = append(fake.requests, request{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Clone(), body, r.ContentLength, time.Now()})
		fake.mu.Unlock()
		answers[min(n, len(answers)-1)](w, r)
	}))
	t.Cleanup(fake.Close)
	return fake
}

func (f *fakeFairhook) got() []request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

// dial makes a client that does not wait long.
func dial(t *testing.T, f *fakeFairhook, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.New(f.URL, apiKey, append([]client.Option{
		client.WithRetryWait(time.Millisecond, 5*time.Second),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func answer(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if status >= 400 {
			w.Header().Set("Content-Type", "application/problem+json")
		}
		for pair := range slices.Chunk(header, 2) {
			w.Header().Set(pair[0], pair[1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// breakConnection ends a request with a reset in place of an answer.
func breakConnection(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

// breakAnswer promises more than it sends.
func breakAnswer(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		_, _ = buf.WriteString("HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\n{\"id\":")
		_ = buf.Flush()
		_ = conn.Close()
	}
}

const acceptedBody = `{"id":"` + eventID + `","tenant":"acme","type":"invoice.paid","created_at":"2026-11-23T10:00:00.123Z",
	"deliveries":[{"webhook_id":"` + webhookID + `","status":"pending","a_later_field":1}],"another_later_field":{}}`

const webhookBody = `{"id":"` + webhookID + `","tenant":"acme","url":"https://example.com/","event_types":["*"],"status":"active",
	"disabled_reason":null,"headers":{},"timeout_seconds":20,"max_in_flight":50,"retry_schedule_seconds":[5],"max_age_seconds":60,
	"created_at":"2026-11-23T10:00:00Z","updated_at":"2026-11-23T10:00:00Z","rate_per_second":7}`

var event = client.Event{Tenant: "acme", Type: "invoice.paid", Payload: json.RawMessage(`{"a":1}`)}

func TestNew(t *testing.T) {
	t.Parallel()

	for _, bad := range []string{
		"", "example.com", "ftp://example.com", "http://", "https://user:pw@example.com", "http://example.com?x=1",
		"http://example.com/#x", "http://exa mple.com", "http://[::1",
	} {
		if _, err := client.New(bad, apiKey); err == nil {
			t.Errorf("base URL %q was taken", bad)
		} else if strings.Contains(err.Error(), "pw") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	for _, bad := range []string{"", "a b", "a\r\nX-Evil: 1", "schlüssel"} {
		if _, err := client.New("http://example.com", bad); err == nil {
			t.Errorf("key %q was taken", bad)
		} else if bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	for name, opt := range map[string]client.Option{
		"negative retries":          client.WithRetryMax(-1),
		"negative wait":             client.WithRetryWait(-1, time.Second),
		"longest below shortest":    client.WithRetryWait(2*time.Second, time.Second),
		"negative request time-out": client.WithRequestTimeout(-1),
	} {
		if _, err := client.New("http://example.com", apiKey, opt); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestTheKeyIsNeverPrinted(t *testing.T) {
	t.Parallel()
	fake := newFake(t, answer(401, `{"type":"https://fairhook.dev/problems/unauthorized","title":"Unauthorized"}`))
	c := dial(t, fake)
	_, refused := c.Submit(t.Context(), event)
	if !client.IsUnauthorized(refused) {
		t.Fatalf("got %v", refused)
	}
	fake.Close()
	_, unreachable := c.Event(t.Context(), eventID)
	if unreachable == nil {
		t.Fatal("a closed server answered")
	}
	for _, shown := range []string{
		fmt.Sprintf("%v %+v %#v %s", c, c, c, c), fmt.Sprintf("%+v %#v", *c, *c), fmt.Sprintf("%+v %#v", c.Webhooks(), c.Webhooks()),
		fmt.Sprintf("%+v %#v", refused, refused), fmt.Sprintf("%+v %#v", unreachable, unreachable),
	} {
		if strings.Contains(shown, apiKey) {
			t.Errorf("shows the key: %s", shown)
		}
	}
	if got := fake.got()[0].header.Get("Authorization"); got != "Bearer "+apiKey {
		t.Errorf("Authorization: %q", got)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	for _, v := range []any{
		client.Secret{ID: "1", Secret: "whsec_x"},
		client.SecretRotation{Secret: "whsec_x"},
		&client.Secret{Secret: "whsec_x"},
		[]client.Secret{{Secret: "whsec_x"}},
		client.CreatedWebhook{Secret: "whsec_x"},
		&client.CreatedWebhook{Secret: "whsec_x"},
	} {
		if shown := fmt.Sprintf("%v %+v %#v", v, v, v); strings.Contains(shown, "whsec_x") {
			t.Errorf("shows the secret: %s", shown)
		}
	}
}

func TestSubmit(t *testing.T) {
	t.Parallel()

	t.Run("ReturnsWhatWasAccepted", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(202, acceptedBody))
		got, err := dial(t, fake).Submit(t.Context(), client.Event{
			WebhookID: webhookID, Type: "invoice.paid", Payload: json.RawMessage(`1`), IdempotencyKey: "mine",
			Timestamp: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Metadata: map[string]string{"a": "b"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != eventID || got.Tenant != "acme" || got.Type != "invoice.paid" || got.Replayed || got.IdempotencyKey != "mine" ||
			!got.CreatedAt.Equal(time.Date(2026, 11, 23, 10, 0, 0, 123e6, time.UTC)) ||
			!slices.Equal(got.Deliveries, []client.AcceptedDelivery{{WebhookID: webhookID, Status: client.DeliveryPending}}) {
			t.Errorf("got %+v", got)
		}
		sent := fake.got()[0]
		if sent.method != "POST" || sent.path != "/v1/events" || sent.header.Get("Content-Type") != "application/json" ||
			sent.header.Get("Idempotency-Key") != "mine" {
			t.Errorf("sent %+v", sent)
		}
		const want = `{"webhook_id":"` + webhookID + `","type":"invoice.paid","timestamp":"2026-01-02T03:04:05.000000006Z","metadata":{"a":"b"},"payload":1}`
		if string(sent.body) != want {
			t.Errorf("sent %s\nwant %s", sent.body, want)
		}
	})

	t.Run("KeepsThePayloadsBytes", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(202, acceptedBody))
		c := dial(t, fake)
		for _, payload := range []string{
			`{"z":1,"a":2}`, `{ "spaced" :  [ 1 ,2 ] }`, `{"twice":1,"twice":2}`, `1e400`, `9007199254740993`,
			`"\u0000"`, `"\ud800 lone"`, `"<&>"`, `"\/"`, `1.0`, `-0`, `null`, `""`, "\"\xff\xfe\"", "[\r\n\t]",
		} {
			submitted := event
			submitted.Payload = json.RawMessage(payload)
			if _, err := c.Submit(t.Context(), submitted); err != nil {
				t.Fatalf("%q: %v", payload, err)
			}
			sent := fake.got()
			want := `{"tenant":"acme","type":"invoice.paid","payload":` + payload + `}`
			if got := string(sent[len(sent)-1].body); got != want {
				t.Errorf("sent %q, want %q", got, want)
			}
		}
	})

	t.Run("RefusesAPayloadThatIsNotOneJSONValue", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(202, acceptedBody))
		for _, payload := range []string{``, `{`, `1,"tenant":"other"`, `1 2`, `{}}`, `nope`} {
			submitted := event
			submitted.Payload = json.RawMessage(payload)
			if _, err := dial(t, fake).Submit(t.Context(), submitted); err == nil {
				t.Errorf("%q was submitted", payload)
			}
		}
		if n := len(fake.got()); n != 0 {
			t.Errorf("%d requests were made", n)
		}
	})

	t.Run("RefusesTextThatEncodingWouldChange", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(202, acceptedBody))
		for _, bad := range []client.Event{
			{Tenant: "a\xff", Type: "t", Payload: json.RawMessage(`1`)},
			{Tenant: "a", Type: "t\xff", Payload: json.RawMessage(`1`)},
			{Tenant: "a", Type: "t", Payload: json.RawMessage(`1`), Metadata: map[string]string{"k": "\xff"}},
			{Tenant: "a", Type: "t", Payload: json.RawMessage(`1`), Metadata: map[string]string{"\xff": "v"}},
		} {
			if _, err := dial(t, fake).Submit(t.Context(), bad); err == nil {
				t.Errorf("%+v was submitted", bad)
			}
		}
	})

	t.Run("MakesAnotherKeyForEachCall", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(202, acceptedBody))
		c := dial(t, fake)
		first, err := c.Submit(t.Context(), event)
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.Submit(t.Context(), event)
		if err != nil {
			t.Fatal(err)
		}
		if first.IdempotencyKey == second.IdempotencyKey {
			t.Error("two events share a key")
		}
		if sent := fake.got(); sent[0].header.Get("Idempotency-Key") != first.IdempotencyKey {
			t.Errorf("sent %q, told %q", sent[0].header.Get("Idempotency-Key"), first.IdempotencyKey)
		}
	})

	t.Run("TellsAReplay", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(202, acceptedBody, "Idempotency-Replayed", "true"))
		got, err := dial(t, fake).Submit(t.Context(), event)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Replayed {
			t.Error("a replay is not told")
		}
	})

	t.Run("RawSendsBytesAndContentTypeAsTheyAre", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(202, acceptedBody))
		c := dial(t, fake)
		body := []byte("\x00<xml/>\xff")
		if _, err := c.SubmitRaw(t.Context(), webhookID, "a b&c.d", "application/xml; charset=latin1", body, client.WithIdempotencyKey("k")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.SubmitRaw(t.Context(), webhookID, "empty", "text/plain", nil); err != nil {
			t.Fatal(err)
		}
		sent := fake.got()
		if sent[0].path != "/v1/webhooks/"+webhookID+"/events" || sent[0].query != "type=a+b%26c.d" || !bytes.Equal(sent[0].body, body) ||
			sent[0].header.Get("Content-Type") != "application/xml; charset=latin1" || sent[0].header.Get("Idempotency-Key") != "k" {
			t.Errorf("sent %+v", sent[0])
		}
		if len(sent[1].body) != 0 || sent[1].length != 0 || sent[1].header.Get("Idempotency-Key") == "" {
			t.Errorf("sent %+v", sent[1])
		}
		if _, err := c.SubmitRaw(t.Context(), webhookID, "t", "", nil); err == nil {
			t.Error("no content type was taken")
		}
	})
}

func TestRetry(t *testing.T) {
	t.Parallel()

	busy := func(retryAfter string) http.HandlerFunc {
		return answer(503, `{"type":"https://fairhook.dev/problems/unavailable"}`, "Retry-After", retryAfter)
	}
	submit := func(c *client.Client, ctx context.Context) error {
		_, err := c.Submit(ctx, event)
		return err
	}
	create := func(c *client.Client, ctx context.Context) error {
		_, err := c.Webhooks().Create(ctx, client.NewWebhook{Tenant: "acme", URL: "https://example.com/"})
		return err
	}
	update := func(c *client.Client, ctx context.Context) error {
		_, err := c.Webhooks().Update(ctx, webhookID, client.WebhookUpdate{URL: new("https://example.com/")})
		return err
	}
	read := func(c *client.Client, ctx context.Context) error {
		_, err := c.Event(ctx, eventID)
		return err
	}
	pause := func(c *client.Client, ctx context.Context) error {
		_, err := c.Webhooks().Pause(ctx, webhookID)
		return err
	}
	success := answer(200, `{}`)

	for _, tc := range []struct {
		name  string
		call  func(*client.Client, context.Context) error
		first http.HandlerFunc
		tries int // 2 when the first outcome is worth another try
	}{
		{"SubmitAfter503", submit, busy("0"), 2},
		{"SubmitAfter503WithoutRetryAfter", submit, answer(503, ``), 2},
		{"SubmitAfter429", submit, answer(429, ``, "Retry-After", "0"), 2},
		{"SubmitAfter502", submit, answer(502, ``), 2},
		{"SubmitAfter504", submit, answer(504, ``), 2},
		{"SubmitAfterABrokenConnection", submit, breakConnection(t), 2},
		{"SubmitAfterABrokenAnswer", submit, breakAnswer(t), 2},
		{"SubmitWhileItsKeyIsInFlight", submit, answer(409, ``), 2},
		{"SubmitNotAfter500", submit, answer(500, ``), 1},
		{"SubmitNotAfter422", submit, answer(422, ``), 1},
		{"SubmitNotAfter401", submit, answer(401, ``), 1},
		{"ReadAfter503", read, answer(503, ``), 2},
		{"ReadAfterABrokenConnection", read, breakConnection(t), 2},
		{"ReadAfterABrokenAnswer", read, breakAnswer(t), 2},
		{"ReadNotAfter404", read, answer(404, ``), 1},
		{"ReadNotAfter409", read, answer(409, ``), 1},
		{"PauseAfter502", pause, answer(502, ``), 2},
		{"CreateAfter429", create, answer(429, ``, "Retry-After", "0"), 2},
		{"CreateNotAfter503", create, busy("0"), 1},
		{"UpdateNotAfter503", update, busy("0"), 1},
		{"CreateNotAfter502", create, answer(502, ``), 1},
		{"CreateNotAfter504", create, answer(504, ``), 1},
		{"CreateNotAfterABrokenConnection", create, breakConnection(t), 1},
		{"CreateNotAfterABrokenAnswer", create, breakAnswer(t), 1},
		{"UpdateNotAfterABrokenConnection", update, breakConnection(t), 1},
		{"UpdateNotAfter502", update, answer(502, ``), 1},
		{"UpdateAfter429", update, answer(429, ``), 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			fake := newFake(t, tc.first, success)
			err := tc.call(dial(t, fake), t.Context())
			sent := fake.got()
			if len(sent) != tc.tries {
				t.Fatalf("%d requests, want %d (%v)", len(sent), tc.tries, err)
			}
			if (err == nil) != (tc.tries == 2) {
				t.Fatalf("after %d requests: %v", tc.tries, err)
			}
			first, last := sent[0], sent[len(sent)-1]
			if !bytes.Equal(first.body, last.body) || first.header.Get("Idempotency-Key") != last.header.Get("Idempotency-Key") {
				t.Errorf("the tries differ:\n%+v\n%+v", first, last)
			}
			if _, ok := first.header["Idempotency-Key"]; ok != strings.HasPrefix(tc.name, "Submit") {
				t.Errorf("Idempotency-Key: %t", ok)
			}
		})
	}

	t.Run("WaitsAsLongAsRetryAfterSays", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, busy("1"), answer(202, acceptedBody))
		if _, err := dial(t, fake).Submit(t.Context(), event); err != nil {
			t.Fatal(err)
		}
		sent := fake.got()
		if waited := sent[1].at.Sub(sent[0].at); waited < time.Second {
			t.Errorf("came back after %s", waited)
		}
	})

	t.Run("DoesNotWaitForARetryAfterBeyondItsLongestWait", func(t *testing.T) {
		t.Parallel()
		for _, asked := range []string{"3600", "99999999999", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)} {
			fake := newFake(t, busy(asked))
			_, err := dial(t, fake).Submit(t.Context(), event)
			var refused *client.Error
			if !errors.As(err, &refused) || refused.RetryAfter < 59*time.Minute {
				t.Errorf("Retry-After %s: got %v", asked, err)
			}
			if n := len(fake.got()); n != 1 {
				t.Errorf("Retry-After %s: %d requests", asked, n)
			}
		}
	})

	t.Run("DoesNotWaitForARetryAfterBeyondTheDeadline", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, busy("4"))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := dial(t, fake).Submit(ctx, event)
		if !client.IsUnavailable(err) || ctx.Err() != nil {
			t.Errorf("got %v (context: %v)", err, ctx.Err())
		}
	})

	t.Run("StopsAtItsBoundAndReturnsTheLastAnswer", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(502, ``), answer(503, `{"type":"https://fairhook.dev/problems/unavailable","title":"Unavailable","detail":"the buffer is full"}`, "Retry-After", "0"))
		_, err := dial(t, fake, client.WithRetryMax(2)).Submit(t.Context(), event)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Detail != "the buffer is full" || refused.Code() != "unavailable" {
			t.Errorf("got %v", err)
		}
		if n := len(fake.got()); n != 3 {
			t.Errorf("%d requests, want 3", n)
		}
	})

	t.Run("NeverWhenTheMaximumIsZero", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, busy("0"))
		if _, err := dial(t, fake, client.WithRetryMax(0)).Submit(t.Context(), event); !client.IsUnavailable(err) {
			t.Errorf("got %v", err)
		}
		if n := len(fake.got()); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})

	t.Run("EndsWithTheContext", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		fake := newFake(t, func(w http.ResponseWriter, r *http.Request) {
			busy("5")(w, r)
			// The answer is on its way when the caller gives up.
			time.AfterFunc(50*time.Millisecond, cancel)
		})
		start := time.Now()
		_, err := dial(t, fake).Submit(ctx, event)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("took %s", took)
		}
		if err != nil && !strings.Contains(err.Error(), "503") {
			t.Errorf("does not say what it waited for: %v", err)
		}
		if n := len(fake.got()); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})

	t.Run("EndsAHangingRequestAndTriesAgain", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, answer(202, acceptedBody))
		if _, err := dial(t, fake, client.WithRequestTimeout(100*time.Millisecond)).Submit(t.Context(), event); err != nil {
			t.Errorf("got %v", err)
		}
		if n := len(fake.got()); n != 2 {
			t.Errorf("%d requests, want 2", n)
		}
	})

	t.Run("CreatesOnceTheServerIsThere", func(t *testing.T) {
		t.Parallel()
		// A port that refuses until the second try.
		reserved, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := reserved.Addr().String()
		_ = reserved.Close()
		var dials int
		transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			if dials++; dials == 2 {
				listener, err := net.Listen(network, address)
				if err != nil {
					return nil, err
				}
				server := &http.Server{Handler: answer(201, webhookBody), ReadHeaderTimeout: time.Second}
				t.Cleanup(func() { _ = server.Close() })
				go func() { _ = server.Serve(listener) }()
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}
		t.Cleanup(transport.CloseIdleConnections)
		c, err := client.New("http://"+address, apiKey, client.WithRetryWait(time.Millisecond, time.Second), client.WithHTTPClient(&http.Client{Transport: transport}))
		if err != nil {
			t.Fatal(err)
		}
		if err := create(c, t.Context()); err != nil {
			t.Fatal(err)
		}
		if dials != 2 {
			t.Errorf("%d dials, want 2", dials)
		}
	})

	t.Run("NotWhenTheCertificateIsNotTrusted", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewUnstartedServer(success)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		t.Cleanup(server.Close)
		var dials int
		transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}
		c, err := client.New(server.URL, apiKey, client.WithRetryWait(time.Millisecond, time.Millisecond), client.WithHTTPClient(&http.Client{Transport: transport}))
		if err != nil {
			t.Fatal(err)
		}
		if err := read(c, t.Context()); err == nil {
			t.Error("an unknown certificate was trusted")
		}
		if dials != 1 {
			t.Errorf("%d dials, want 1", dials)
		}
	})

	t.Run("DeleteIsDoneWhenAnEarlierTryDidIt", func(t *testing.T) {
		t.Parallel()
		notFound := answer(404, `{"type":"https://fairhook.dev/problems/not-found"}`)
		if err := dial(t, newFake(t, breakConnection(t), notFound)).Webhooks().Delete(t.Context(), webhookID); err != nil {
			t.Errorf("after a lost answer: %v", err)
		}
		if err := dial(t, newFake(t, notFound)).Webhooks().Delete(t.Context(), webhookID); !client.IsNotFound(err) {
			t.Errorf("of an unknown webhook: %v", err)
		}
		if err := dial(t, newFake(t, answer(204, ``))).Webhooks().Delete(t.Context(), webhookID); err != nil {
			t.Errorf("got %v", err)
		}
	})
}

func TestErrors(t *testing.T) {
	t.Parallel()

	t.Run("CarryTheProblemDocument", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(422, `{"type":"https://fairhook.dev/problems/invalid-request","title":"Invalid request","status":422,
			"detail":"the webhook breaks a rule","request_id":"req-1","errors":[{"pointer":"/url","detail":"must be http or https"},
			{"pointer":"","parameter":"limit","detail":"must be a number","later":1}],"later":2}`))
		_, err := dial(t, fake).Webhooks().Create(t.Context(), client.NewWebhook{})
		var refused *client.Error
		if !errors.As(err, &refused) {
			t.Fatalf("got %v", err)
		}
		if refused.Status != 422 || refused.Code() != "invalid-request" || refused.Title != "Invalid request" || refused.RequestID != "req-1" ||
			refused.Detail != "the webhook breaks a rule" || refused.RetryAfter != 0 ||
			!slices.Equal(refused.Errors, []client.FieldError{{Pointer: "/url", Detail: "must be http or https"}, {Parameter: "limit", Detail: "must be a number"}}) {
			t.Errorf("got %+v", refused)
		}
		const want = "fairhook: 422 Invalid request: the webhook breaks a rule (/url: must be http or https; limit: must be a number) [request req-1]"
		if refused.Error() != want {
			t.Errorf("says %q\nwant %q", refused, want)
		}
	})

	t.Run("AreMadeOfAnyAnswer", func(t *testing.T) {
		t.Parallel()
		for _, handler := range []http.HandlerFunc{
			answer(500, `<html>`, "Content-Type", "text/html", "X-Request-Id", "req-2"),
			answer(500, `{"title":`, "X-Request-Id", "req-2"),
			answer(500, ``, "X-Request-Id", "req-2"),
		} {
			_, err := dial(t, newFake(t, handler)).Event(t.Context(), eventID)
			var refused *client.Error
			if !errors.As(err, &refused) || refused.Status != 500 || refused.Title != "Internal Server Error" || refused.RequestID != "req-2" || refused.Code() != "" {
				t.Errorf("got %+v", err)
			}
		}
	})

	t.Run("AreToldApart", func(t *testing.T) {
		t.Parallel()
		is := map[string]func(error) bool{
			"not found": client.IsNotFound, "unauthorized": client.IsUnauthorized, "invalid": client.IsInvalid, "conflict": client.IsConflict,
			"too large": client.IsTooLarge, "rate limited": client.IsRateLimited, "unavailable": client.IsUnavailable,
		}
		for status, want := range map[int]string{
			400: "invalid", 401: "unauthorized", 404: "not found", 409: "conflict", 413: "too large", 422: "invalid", 429: "rate limited", 500: "", 503: "unavailable",
		} {
			_, err := dial(t, newFake(t, answer(status, ``)), client.WithRetryMax(0)).Event(t.Context(), eventID)
			for name, holds := range is {
				if got := holds(fmt.Errorf("wrapped: %w", err)); got != (name == want) {
					t.Errorf("%d: %s is %t", status, name, got)
				}
			}
		}
		for name, holds := range is {
			if holds(nil) || holds(io.EOF) {
				t.Errorf("%s holds without an answer", name)
			}
		}
	})

	t.Run("ARedirectIsNotFollowed", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(307, ``, "Location", "/elsewhere"))
		_, err := dial(t, fake).Event(t.Context(), eventID)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != 307 {
			t.Errorf("got %v", err)
		}
		if n := len(fake.got()); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})

	t.Run("ASuccessThatIsNotJSON", func(t *testing.T) {
		t.Parallel()
		if _, err := dial(t, newFake(t, answer(200, `<html>`))).Event(t.Context(), eventID); err == nil {
			t.Error("read an event from it")
		}
	})
}

func TestWebhooks(t *testing.T) {
	t.Parallel()

	t.Run("CreateSendsOnlyWhatIsSet", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(201, strings.TrimSuffix(webhookBody, "}")+`,"secret":"whsec_abc"}`))
		c := dial(t, fake)
		got, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: "https://example.com/"})
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != webhookID || got.Secret != "whsec_abc" || got.Status != client.WebhookActive || got.TimeoutSeconds != 20 {
			t.Errorf("got %+v", got.Webhook)
		}
		if _, err := c.Webhooks().Create(t.Context(), client.NewWebhook{
			Tenant: "acme", URL: "https://example.com/", Description: "d", EventTypes: []string{"a.*"}, Status: client.WebhookPaused,
			Headers: map[string]string{"X-A": "b"}, TimeoutSeconds: 5, MaxInFlight: 6, RetrySchedule: []int{}, MaxAgeSeconds: 7, Secret: "whsec_x",
		}); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{
			`{"tenant":"acme","url":"https://example.com/"}`,
			`{"tenant":"acme","url":"https://example.com/","description":"d","event_types":["a.*"],"status":"paused","headers":{"X-A":"b"},` +
				`"timeout_seconds":5,"max_in_flight":6,"retry_schedule_seconds":[],"max_age_seconds":7,"secret":"whsec_x"}`,
		} {
			if got := string(fake.got()[i].body); got != want {
				t.Errorf("sent %s\nwant %s", got, want)
			}
		}
	})

	t.Run("TestTellsWhatCameOfIt", func(t *testing.T) {
		t.Parallel()
		const body = `{"id":"` + eventID + `","webhook_id":"` + webhookID + `","status":"failed","requested_at":"2026-01-02T03:04:05Z",` +
			`"finished_at":"2026-01-02T03:04:06Z","reason":"server_error","status_code":500,"timings":{"total_us":7},"response":"no","detail":null,` +
			`"webhook_status":"disabled"}`
		fake := newFake(t, answer(200, body))
		c := dial(t, fake)
		got, err := c.Webhooks().Test(t.Context(), webhookID)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.Webhooks().GetTest(t.Context(), webhookID, eventID)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []*client.WebhookTest{got, again} {
			if test.ID != eventID || test.Status != client.TestFailed || *test.Reason != "server_error" || *test.StatusCode != 500 ||
				*test.Timings.Total != 7 || *test.Response != "no" || test.WebhookStatus != client.WebhookDisabled || test.FinishedAt == nil {
				t.Errorf("got %+v", test)
			}
		}
		requests := fake.got()
		if r := requests[0]; r.method != "POST" || r.path != "/v1/webhooks/"+webhookID+"/test" || len(r.body) != 0 {
			t.Errorf("asked %s %s", r.method, r.path)
		}
		if r := requests[1]; r.method != "GET" || r.path != "/v1/webhooks/"+webhookID+"/tests/"+eventID {
			t.Errorf("asked %s %s", r.method, r.path)
		}
	})

	t.Run("UpdateSendsOnlyWhatChanges", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, webhookBody))
		c := dial(t, fake)
		for _, tc := range []struct {
			update client.WebhookUpdate
			want   string
		}{
			{client.WebhookUpdate{}, `{}`},
			{client.WebhookUpdate{Description: new("")}, `{"description":""}`},
			{client.WebhookUpdate{Headers: map[string]string{}, RetrySchedule: []int{}}, `{"headers":{},"retry_schedule_seconds":[]}`},
			{client.WebhookUpdate{MaxInFlight: new(3), Reset: []string{"timeout_seconds"}}, `{"max_in_flight":3,"timeout_seconds":null}`},
		} {
			got, err := c.Webhooks().Update(t.Context(), webhookID, tc.update)
			if err != nil || got.ID != webhookID {
				t.Fatalf("got %v, %v", got, err)
			}
			sent := fake.got()
			last := sent[len(sent)-1]
			if last.method != "PATCH" || last.path != "/v1/webhooks/"+webhookID || string(last.body) != tc.want {
				t.Errorf("sent %s %s %s, want %s", last.method, last.path, last.body, tc.want)
			}
		}
		if _, err := c.Webhooks().Update(t.Context(), webhookID, client.WebhookUpdate{URL: new("x"), Reset: []string{"url"}}); err == nil {
			t.Error("a field was both set and reset")
		}
	})

	t.Run("GetPauseResumeDelete", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, webhookBody))
		w := dial(t, fake).Webhooks()
		for _, call := range []func(context.Context, string) (*client.Webhook, error){w.Get, w.Pause, w.Resume} {
			got, err := call(t.Context(), webhookID)
			if err != nil || got.ID != webhookID || got.URL != "https://example.com/" {
				t.Errorf("got %v, %v", got, err)
			}
		}
		if err := w.Delete(t.Context(), webhookID); err != nil {
			t.Error(err)
		}
		var sent []string
		for _, r := range fake.got() {
			sent = append(sent, r.method+" "+strings.TrimPrefix(r.path, "/v1/webhooks/"+webhookID))
		}
		if !slices.Equal(sent, []string{"GET ", "POST /pause", "POST /resume", "DELETE "}) {
			t.Errorf("sent %q", sent)
		}
	})

	t.Run("SignaturesAreSentAsTheyAreAskedFor", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(201, strings.TrimSuffix(webhookBody, "}")+`,"secret":"text of a secret","public_key":"whpk_abc",`+
			`"signatures":["standard","of a newer release"],"signature_template":{"header":"X-A","signed":"{body}","algorithm":"hmac-sha1","encoding":"hex","value":"{signature}","separator":null}}`))
		got, err := dial(t, fake).Webhooks().Create(t.Context(), client.NewWebhook{
			Tenant: "acme", URL: "https://example.com/", Signatures: []client.SignatureScheme{client.SignTemplate},
			SignatureTemplate: &client.SignatureTemplate{Header: "X-A", Separator: ","}, Secret: "text of a secret", PrivateKey: "whsk_x",
		})
		if err != nil || got.PublicKey != "whpk_abc" || len(got.Signatures) != 2 || got.SignatureTemplate.Algorithm != "hmac-sha1" || got.SignatureTemplate.Separator != "" {
			t.Errorf("got %+v, %v", got.Webhook, err)
		}
		want := `{"tenant":"acme","url":"https://example.com/","signatures":["template"],"signature_template":{"header":"X-A","separator":","},` +
			`"secret":"text of a secret","private_key":"whsk_x"}`
		if sent := string(fake.got()[0].body); sent != want {
			t.Errorf("sent %s\nwant %s", sent, want)
		}
	})

	t.Run("RotateSecretSaysWhatItWasTold", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(201, `{"id":"1","kind":"ed25519","secret":null,"public_key":"whpk_abc","created_at":"2026-11-23T10:00:00Z","expires_at":null}`))
		w := dial(t, fake).Webhooks()
		for rotation, want := range map[client.SecretRotation]string{
			{}: `{}`,
			{Kind: client.SecretEd25519, Overlap: time.Hour}: `{"kind":"ed25519","expire_previous_after_seconds":3600}`,
			{Secret: "whsec_x", Overlap: -1}:                 `{"secret":"whsec_x","expire_previous_after_seconds":0}`,
		} {
			got, err := w.RotateSecret(t.Context(), webhookID, rotation)
			if err != nil || got.PublicKey != "whpk_abc" || got.Secret != "" || got.Kind != client.SecretEd25519 {
				t.Errorf("got %v, %v", got, err)
			}
			sent := fake.got()
			if last := sent[len(sent)-1]; last.method != "POST" || last.path != "/v1/webhooks/"+webhookID+"/secrets" || string(last.body) != want {
				t.Errorf("sent %s %s %s, want %s", last.method, last.path, last.body, want)
			}
		}
		if err := w.DeleteSecret(t.Context(), webhookID, webhookID); err != nil {
			t.Error(err)
		}
		sent := fake.got()
		if last := sent[len(sent)-1]; last.method != "DELETE" || last.path != "/v1/webhooks/"+webhookID+"/secrets/"+webhookID {
			t.Errorf("sent %s %s", last.method, last.path)
		}
		if err := w.DeleteSecret(t.Context(), webhookID, "../x"); err == nil || len(fake.got()) != len(sent) {
			t.Errorf("a secret's id that is none: %v", err)
		}
	})

	t.Run("PublicKeysAreTexts", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, `{"keys":[{"kty":"OKP","whpk":"whpk_b"},{"kty":"OKP","whpk":"whpk_a"}]}`))
		got, err := dial(t, fake).Webhooks().PublicKeys(t.Context(), webhookID)
		if err != nil || !slices.Equal(got, []string{"whpk_b", "whpk_a"}) || fake.got()[0].path != "/v1/webhooks/"+webhookID+"/public-keys" {
			t.Errorf("got %v, %v", got, err)
		}
	})

	t.Run("Secrets", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, `{"data":[{"id":"1","secret":"whsec_abc","created_at":"2026-11-23T10:00:00Z","expires_at":null}]}`))
		got, err := dial(t, fake).Webhooks().Secrets(t.Context(), webhookID)
		if err != nil || len(got) != 1 || got[0].Secret != "whsec_abc" || got[0].ExpiresAt != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})

	t.Run("AnIDThatIsNoneMakesNoRequest", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, webhookBody))
		c := dial(t, fake)
		for _, id := range []string{"", "..", "x", webhookID + "/", webhookID + "0", strings.ReplaceAll(webhookID, "-", "/"), strings.Replace(webhookID, "0", "é", 1), strings.Replace(webhookID, "0", "g", 1)} {
			_, event := c.Event(t.Context(), id)
			_, attempts := c.Attempts(t.Context(), id)
			_, raw := c.SubmitRaw(t.Context(), id, "t", "text/plain", nil)
			_, get := c.Webhooks().Get(t.Context(), id)
			_, secrets := c.Webhooks().Secrets(t.Context(), id)
			for _, err := range []error{event, attempts, raw, get, secrets, c.Webhooks().Delete(t.Context(), id)} {
				if err == nil {
					t.Errorf("%q was taken for an id", id)
				}
			}
		}
		if n := len(fake.got()); n != 0 {
			t.Errorf("%d requests were made", n)
		}
	})
}

func TestListFollowsTheCursor(t *testing.T) {
	t.Parallel()
	pages := func(w http.ResponseWriter, r *http.Request) {
		body, ok := map[string]string{
			"":    `{"data":[{"id":"1"},{"id":"2"}],"next_cursor":"c/2"}`,
			"c/2": `{"data":[],"next_cursor":"c3"}`,
			"c3":  `{"data":[{"id":"3"}],"next_cursor":null}`,
		}[r.URL.Query().Get("cursor")]
		if !ok {
			answer(404, ``)(w, r)
			return
		}
		answer(200, body)(w, r)
	}

	t.Run("ToTheEnd", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, pages)
		all := dial(t, fake).Webhooks().List(t.Context(), client.ListWebhooks{Tenant: "a&b", PageSize: 2})
		for range 2 { // the same list can be gone through again
			var ids []string
			for webhook, err := range all {
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, webhook.ID)
			}
			if !slices.Equal(ids, []string{"1", "2", "3"}) {
				t.Errorf("got %q", ids)
			}
		}
		sent := fake.got()
		if sent[0].query != "limit=2&tenant=a%26b" || sent[1].query != "cursor=c%2F2&limit=2&tenant=a%26b" {
			t.Errorf("sent %q, %q", sent[0].query, sent[1].query)
		}
	})

	t.Run("NoFurtherThanTheLoop", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, pages)
		for range dial(t, fake).Webhooks().List(t.Context(), client.ListWebhooks{}) {
			break
		}
		if n := len(fake.got()); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})

	t.Run("EndsWithAnError", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, `{"data":[{"id":"1"}],"next_cursor":"x"}`), answer(500, ``))
		var last error
		n := 0
		for _, err := range dial(t, fake).Webhooks().List(t.Context(), client.ListWebhooks{}) {
			last = err
			n++
		}
		var refused *client.Error
		if n != 2 || !errors.As(last, &refused) {
			t.Errorf("%d rounds, the last with %v", n, last)
		}
	})

	t.Run("NotForEver", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, `{"data":[],"next_cursor":"x"}`))
		var last error
		for _, err := range dial(t, fake).Webhooks().List(t.Context(), client.ListWebhooks{}) {
			last = err
		}
		if last == nil || len(fake.got()) != 2 {
			t.Errorf("%d requests, then %v", len(fake.got()), last)
		}
	})
}

func TestEvent(t *testing.T) {
	t.Parallel()

	t.Run("ShowsThePayloadsBytes", func(t *testing.T) {
		t.Parallel()
		const payload = `{ "b":1e400 ,"a":"\ud800", "a":9007199254740993 }`
		fake := newFake(t, answer(200, `{"id":"`+eventID+`","tenant":"acme","type":"t","created_at":"2026-11-23T10:00:00Z","timestamp":null,
			"metadata":{"k":"v"},"content_type":"application/json","payload": `+payload+` ,"deliveries":[{"webhook_id":"`+webhookID+`","status":"a-later-status",
			"attempts":2,"last_status_code":500,"reason":"server_error","next_attempt_at":"2026-11-23T10:00:05Z"}]}`))
		got, err := dial(t, fake).Event(t.Context(), eventID)
		if err != nil {
			t.Fatal(err)
		}
		if string(got.PayloadBytes()) != payload || got.Metadata["k"] != "v" || got.Timestamp != nil {
			t.Errorf("got %+v", got)
		}
		if d := got.Deliveries[0]; d.Status != "a-later-status" || d.Attempts != 2 || *d.LastStatusCode != 500 || *d.Reason != "server_error" || d.NextAttemptAt == nil {
			t.Errorf("got %+v", d)
		}
	})

	t.Run("ShowsBytesThatAreNotJSON", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, `{"content_type":"text/plain","payload":null,"payload_base64":"AP8="}`),
			answer(200, `{"content_type":"text/plain","payload":null,"payload_base64":""}`))
		c := dial(t, fake)
		for _, want := range []string{"\x00\xff", ""} {
			got, err := c.Event(t.Context(), eventID)
			if err != nil || string(got.PayloadBytes()) != want {
				t.Errorf("got %q, %v", got.PayloadBytes(), err)
			}
		}
	})

	t.Run("Attempts", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, `{"data":[{"id":"1","event_id":"`+eventID+`","webhook_id":"`+webhookID+`","number":1,"reason":"timeout","status":"retrying",
			"status_code":null,"started_at":"2026-11-23T10:00:00Z","next_attempt_at":null,"timings":{"queue_wait_us":5,"total_us":null},"response":null,
			"detail":"no answer in 20 s","instance":"host-1"}]}`))
		got, err := dial(t, fake).Attempts(t.Context(), eventID)
		if err != nil || len(got) != 1 {
			t.Fatalf("got %v, %v", got, err)
		}
		if a := got[0]; a.Number != 1 || a.Reason != "timeout" || a.Status != client.DeliveryRetrying || a.StatusCode != nil || *a.Timings.QueueWait != 5 ||
			a.Timings.Total != nil || *a.Detail != "no answer in 20 s" || a.Instance != "host-1" {
			t.Errorf("got %+v", a)
		}
		if path := fake.got()[0].path; path != "/v1/events/"+eventID+"/attempts" {
			t.Errorf("asked for %s", path)
		}
	})

	t.Run("EachAttemptOfItsPages", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(200, `{"data":[{"number":1},{"number":2}],"next_cursor":"c2"}`), answer(200, `{"data":[{"number":3}],"next_cursor":null}`))
		c := dial(t, fake)
		var numbers []int
		for attempt, err := range c.EachAttempt(t.Context(), eventID, 2) {
			if err != nil {
				t.Fatal(err)
			}
			numbers = append(numbers, attempt.Number)
		}
		if !slices.Equal(numbers, []int{1, 2, 3}) {
			t.Errorf("got the numbers %v", numbers)
		}
		for i, want := range []string{"limit=2", "cursor=c2&limit=2"} {
			if query := fake.got()[i].query; query != want {
				t.Errorf("asked for %s, want %s", query, want)
			}
		}
		for _, err := range c.EachAttempt(t.Context(), "../keys", 0) {
			if err == nil || len(fake.got()) != 2 {
				t.Errorf("got %v after %d requests", err, len(fake.got()))
			}
		}
	})
}

func TestTheBaseURLsPathIsKept(t *testing.T) {
	t.Parallel()
	fake := newFake(t, answer(200, `{}`))
	for base, want := range map[string]string{
		"": "/v1/events/" + eventID, "/": "/v1/events/" + eventID, "/fair/hook/": "/fair/hook/v1/events/" + eventID, "/a%2Fb": "/a%2Fb/v1/events/" + eventID,
	} {
		c, err := client.New(fake.URL+base, apiKey, client.WithUserAgent("billing/1"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Event(t.Context(), eventID); err != nil {
			t.Fatal(err)
		}
		sent := fake.got()
		if got := sent[len(sent)-1]; got.path != want || got.header.Get("User-Agent") != "billing/1 fairhook-go" {
			t.Errorf("%q: asked for %s as %s", base, got.path, got.header.Get("User-Agent"))
		}
	}
}

func TestNewIdempotencyKeyIsARandomUUID(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		key := client.NewIdempotencyKey()
		if len(key) != 36 || key[14] != '4' || !strings.ContainsRune("89ab", rune(key[19])) || seen[key] {
			t.Fatalf("got %q", key)
		}
		seen[key] = true
	}
}

func FuzzTheErrorOfAnyAnswer(f *testing.F) {
	f.Add(500, "text/html", `<html>`, "x")
	f.Add(422, "application/problem+json", `{"errors":[{"pointer":"/a","detail":"b"}]}`, "1")
	f.Add(429, "application/problem+json; charset=utf-8", `{"title":1}`, "Mon, 02 Jan 2006 15:04:05 GMT")
	f.Fuzz(func(t *testing.T, status int, contentType, body, retryAfter string) {
		if status < 400 || status > 599 {
			return
		}
		transport := roundTripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{
				Status: "any", StatusCode: status, Request: r, Body: io.NopCloser(strings.NewReader(body)),
				Header: http.Header{"Content-Type": {contentType}, "Retry-After": {retryAfter}},
			}, nil
		})
		c, err := client.New("http://example.com", apiKey, client.WithRetryMax(0), client.WithHTTPClient(&http.Client{Transport: transport}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Event(t.Context(), eventID)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != status || refused.RetryAfter < 0 || !strings.Contains(err.Error(), fmt.Sprint(status)) {
			t.Errorf("got %v", err)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

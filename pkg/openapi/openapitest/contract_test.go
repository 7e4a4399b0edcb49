package openapitest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const (
	id       = "019aa7c4-6d0e-7c31-b6a5-0f2f4b1c9d3e"
	accepted = `{"id":"` + id + `","tenant":"acme","type":"a","created_at":"2026-01-31T12:00:00Z","deliveries":[{"webhook_id":"` + id + `","status":"pending"}]}`
	hook     = `{"id":"` + id + `","tenant":"acme","url":"https://example.com","description":"","event_types":["*"],"status":"active",
		"disabled_reason":null,"headers":{"a":"***"},"timeout_seconds":20,"max_in_flight":50,"rate_per_second":null,"burst":null,"weight":1,"retry_schedule_seconds":[5],"max_age_seconds":1,
		"accept_per_second":0.5,"max_backlog":1,"allowed_cidrs":[],"signatures":["standard"],"signature_template":null,"auth":null,"tls":null,"auto_disable_after_seconds":null,"ordering":"none","ordering_skip_after":null,"created_at":"2026-01-31T12:00:00Z","updated_at":"2026-01-31T12:00:00.5Z"}`
	missing   = `{"type":"https://fairhook.dev/problems/not-found","title":"x","status":404,"request_id":"r"}`
	submitted = `{"tenant":"acme","type":"a","payload":1}`
)

// exchange is one request and its answer. What is empty is as it should be for
// most of them.
type exchange struct {
	method, path, body string
	status             int
	mediaType, answer  string
	header             string // of the answer: more of it, as "Name: value", or "-Name" for one to leave out
}

func (e exchange) check(t *testing.T) []string {
	t.Helper()
	header := http.Header{"X-Request-Id": {"r"}, "Content-Type": {"application/json"}}
	if e.status >= 400 {
		header.Set("Content-Type", "application/problem+json")
	}
	if e.mediaType != "" {
		header.Set("Content-Type", e.mediaType)
	}
	if e.status == http.StatusCreated || e.status == http.StatusAccepted {
		header.Set("Location", "/v1/x")
	}
	for line := range strings.Lines(e.header) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if without, found := strings.CutPrefix(name, "-"); found {
			header.Del(without)
		} else {
			header.Add(name, value)
		}
	}
	r := httptest.NewRequest(e.method, e.path, nil)
	if strings.HasPrefix(e.body, "{\"tenant\":\"nd\"") {
		r.Header.Set("Content-Type", "application/x-ndjson")
	}
	return Load().Check(r, []byte(e.body), e.status, header, []byte(e.answer))
}

func TestCheckFindsNothingWrongWithWhatIsDocumented(t *testing.T) {
	t.Parallel()
	for _, e := range []exchange{
		{method: "POST", path: "/v1/events", body: submitted, status: 202, answer: accepted},
		{method: "POST", path: "/v1/events", body: `{"webhook_id":"` + id + `","tenant":null,"type":"a","payload":1e400}`, status: 202, answer: accepted},
		{method: "POST", path: "/v1/events", body: `nonsense`, status: 404, answer: missing},
		{method: "POST", path: "/v1/webhooks/" + id + "/events?type=a", body: "\xff", status: 202, answer: accepted},
		{method: "GET", path: "/v1/webhooks?limit=3", status: 200, answer: `{"data":[` + hook + `],"next_cursor":"x"}`, header: `Link: </v1/webhooks?cursor=x>; rel="next"`},
		{method: "POST", path: "/v1/webhooks", body: `{"tenant":"acme","url":"https://example.com"}`, status: 201, answer: hook[:len(hook)-1] + `,"secret":"whsec_x"}`},
		{
			method: "GET", path: "/v1/deliveries?status=dropped&after=2026-01-02T03:04:05%2B02:00", status: 200,
			answer: `{"data":[{"event_id":"` + id + `","webhook_id":"` + id + `","tenant":"acme","type":null,"status":"dropped","reason":"backlog_full","attempts":0,"last_status_code":null,"ended_at":"2026-01-02T03:04:05.678Z","detail":null}],"next_cursor":null}`,
		},
		{method: "DELETE", path: "/v1/webhooks/" + id, status: 204, header: "-Content-Type"},
		{method: "HEAD", path: "/livez", status: 200},
		{method: "GET", path: "/v1/nowhere", status: 404, answer: missing},
		{method: "OPTIONS", path: "/v1/events", status: 204, header: "Allow: POST"},
		{
			method: "POST", path: "/v1/events/batch", status: 200, body: `[` + submitted + `,1]`,
			answer: `{"results":[{"status":202,` + accepted[1:] + `,{"status":404,"error":` + missing + `}]}`,
		},
		{
			method: "POST", path: "/v1/events/batch", status: 200, body: `{"tenant":"nd","type":"a","payload":1,"idempotency_key":"k"}` + "\n\n",
			answer: `{"results":[{"status":202,"idempotency_replayed":true,` + accepted[1:] + `]}`,
		},
	} {
		if faults := e.check(t); len(faults) > 0 {
			t.Errorf("%s %s: %q", e.method, e.path, faults)
		}
	}
}

func TestCheckFindsWhatIsNotDocumented(t *testing.T) {
	t.Parallel()
	good := exchange{method: "POST", path: "/v1/events", body: submitted, status: 202, answer: accepted}
	read := exchange{method: "GET", path: "/v1/webhooks/" + id, status: 200, answer: hook}
	list := exchange{method: "GET", path: "/v1/webhooks", status: 200, answer: `{"data":[` + hook + `],"next_cursor":null}`}
	batch := exchange{
		method: "POST", path: "/v1/events/batch", status: 200, body: `[` + submitted + `]`,
		answer: `{"results":[{"status":202,` + accepted[1:] + `]}`,
	}
	for name, tc := range map[string]struct {
		exchange
		change func(e *exchange)
		fault  string
	}{
		"ARoute":                       {good, func(e *exchange) { e.path = "/v1/other" }, "answers 202"},
		"AMethod":                      {good, func(e *exchange) { e.method = "PUT" }, "answers 202"},
		"AStatus":                      {good, func(e *exchange) { e.status = 418 }, "answers 418"},
		"AMediaType":                   {good, func(e *exchange) { e.mediaType = "text/plain" }, "media type"},
		"AHeader":                      {good, func(e *exchange) { e.header = "X-Other: 1" }, "X-Other, which is not documented"},
		"AHeaderTwice":                 {good, func(e *exchange) { e.header = "Location: /v1/y" }, "more than once"},
		"AHeadersValue":                {list, func(e *exchange) { e.header = "Link: x" }, "has Link"},
		"AnAnswerWithoutAHeader":       {good, func(e *exchange) { e.header = "-Location" }, "has no Location"},
		"AMember":                      {read, func(e *exchange) { e.answer = `{"new":1,` + hook[1:] }, "new"},
		"AMemberBesidesComposedOnes":   {read, func(e *exchange) { e.status, e.answer = 404, `{"new":1,`+missing[1:] }, "new"},
		"AMemberFurtherDown":           {list, func(e *exchange) { e.answer = strings.Replace(e.answer, `[{`, `[{"new":1,`, 1) }, "new"},
		"AMemberOfADelivery":           {good, func(e *exchange) { e.answer = strings.Replace(e.answer, `[{`, `[{"new":1,`, 1) }, "new"},
		"AMemberOfAResult":             {batch, func(e *exchange) { e.answer = strings.Replace(e.answer, `[{`, `[{"new":1,`, 1) }, "new"},
		"AnAnswerWithoutAMember":       {read, func(e *exchange) { e.answer = strings.Replace(e.answer, `"max_backlog":1,`, "", 1) }, "max_backlog"},
		"AValue":                       {good, func(e *exchange) { e.answer = strings.Replace(e.answer, "pending", "new", 1) }, "status"},
		"AFormat":                      {good, func(e *exchange) { e.answer = strings.Replace(e.answer, "2026-01-31T12", "2026-01-31 12", 1) }, "created_at"},
		"AKindOfProblem":               {good, func(e *exchange) { e.status, e.answer = 404, strings.Replace(missing, "not-found", "new", 1) }, "type"},
		"ABodyWhereThereIsNone":        {exchange{method: "DELETE", path: "/v1/webhooks/" + id, status: 204, answer: "x"}, func(*exchange) {}, "has a body"},
		"AnAnswerThatIsNotJSON":        {read, func(e *exchange) { e.answer = "x" }, "has the body"},
		"AnAcceptedMember":             {good, func(e *exchange) { e.body = `{"new":1,` + submitted[1:] }, "accepts the body"},
		"AnAcceptedValue":              {good, func(e *exchange) { e.body = `{"tenant":"acme","type":"a b","payload":1}` }, "accepts the body"},
		"AcceptingTwoTargets":          {good, func(e *exchange) { e.body = `{"webhook_id":"` + id + `",` + submitted[1:] }, "accepts the body"},
		"AnAcceptedParameter":          {list, func(e *exchange) { e.path += "?new=1" }, "the parameter new"},
		"AnAcceptedParametersValue":    {list, func(e *exchange) { e.path += "?limit=1001" }, "the parameter limit"},
		"AcceptingWithoutAParameter":   {good, func(e *exchange) { e.path = "/v1/webhooks/" + id + "/events" }, "without the parameter type"},
		"AnAcceptedPath":               {read, func(e *exchange) { e.path = "/v1/webhooks/x" }, "the parameter id"},
		"AnAcceptedBodyWhereNoneGoes":  {read, func(e *exchange) { e.body = "x" }, "accepts a body"},
		"AnAcceptedItem":               {batch, func(e *exchange) { e.body = `[{"new":1,` + submitted[1:] + `]` }, "accepts the item"},
		"FewerResultsThanItems":        {batch, func(e *exchange) { e.body = `[1,` + submitted + `]` }, "2 items"},
		"AnItemsKeyOutsideOfABatch":    {good, func(e *exchange) { e.body = `{"idempotency_key":"k",` + submitted[1:] }, "accepts the body"},
		"AMethodNotAllowedWithoutMore": {exchange{method: "PUT", path: "/v1/events", status: 405, answer: "{}"}, func(*exchange) {}, "has no Allow"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := tc.exchange
			if name != "ABodyWhereThereIsNone" && name != "AMethodNotAllowedWithoutMore" {
				if faults := e.check(t); len(faults) > 0 {
					t.Fatalf("before the change: %q", faults)
				}
			}
			tc.change(&e)
			faults := e.check(t)
			if len(faults) == 0 || !strings.Contains(strings.Join(faults, "\n"), tc.fault) {
				t.Errorf("faults are %q, want one with %q", faults, tc.fault)
			}
		})
	}
}

// recordingT is a test that keeps what is reported, and ends when told to.
type recordingT struct {
	testing.TB
	cleanup func()
	errors  []any
}

func (r *recordingT) Cleanup(f func())  { r.cleanup = f }
func (r *recordingT) Error(args ...any) { r.errors = append(r.errors, args...) }

func TestWatchReportsEachFaultOnceAndPassesAllOn(t *testing.T) {
	t.Parallel()
	test := &recordingT{TB: t}
	handler := Load().Watch(test, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != submitted {
			t.Errorf("the handler reads %q, %v", body, err)
		}
		w.Header().Set("X-Request-Id", "r")
		w.Header().Set("Location", "/v1/x")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"new":1}`)
	}))
	for range 3 {
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequest("POST", "/v1/events", strings.NewReader(submitted)))
		if recorder.Code != http.StatusAccepted || recorder.Body.String() != `{"new":1}` {
			t.Errorf("the client gets %d %s", recorder.Code, recorder.Body)
		}
	}
	if len(test.errors) > 0 {
		t.Errorf("reported before the end: %v", test.errors)
	}
	test.cleanup()
	if len(test.errors) != 1 {
		t.Errorf("reported: %v", test.errors)
	}
}

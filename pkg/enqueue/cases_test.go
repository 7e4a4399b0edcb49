package enqueue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/enqueue"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/ingest"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// submission is an event as the cases write it, in the words of POST /v1/events.
type submission struct {
	tenant      *string // nil: the case's own
	noTenant    bool
	to          string // "": fan-out; otherwise the name of a webhook of the case, or "unknown"
	eventType   *string
	payload     string
	contentType string // not empty: the payload is the raw body
	timestamp   string
	metadata    string // JSON
	orderingKey *string
}

// way is one way in. It returns the event's id or an error; ok is false where the
// way cannot even say such a thing.
type way struct {
	name   string
	submit func(t *testing.T, s *submission, tenant string, to webhook.ID) (id webhook.ID, err error, ok bool)
}

// caseHook is a webhook that a case starts from.
type caseHook struct {
	name  string
	types []string
	state webhook.State // "": active; "deleted": it was there once
	other bool          // of another tenant

	ordering webhook.Ordering // "": none
}

type sharedCase struct {
	name  string
	hooks []caseHook
	submission
	code    webhook.Code // "": accepted
	fields  []string     // "field: detail" of what is wrong
	targets []string     // names of the webhooks that get it, in order
}

// cases is what all ways in must agree on.
func cases() []sharedCase {
	all := []caseHook{{name: "all", types: []string{"*"}}}
	matching := func(eventType string, patterns ...string) []caseHook {
		return []caseHook{{name: eventType, types: patterns}}
	}
	ofType := func(eventType string) submission { return submission{eventType: &eventType} }
	faultyType := func(name, eventType, detail string) sharedCase {
		return sharedCase{name: name, hooks: all, submission: ofType(eventType), code: webhook.CodeInvalid, fields: []string{"type: " + detail}}
	}
	manyKeys := func(n int) string {
		metadata := map[string]string{}
		for i := range n {
			metadata[fmt.Sprint(i)] = "v"
		}
		text, _ := json.Marshal(metadata)
		return string(text)
	}
	segments := "must be dot-delimited segments of letters, digits, '_' and '-'"
	none := "must be dot-delimited segments, none of them empty"
	table := []sharedCase{
		{name: "ExactType", hooks: matching("x", "order.paid"), submission: ofType("order.paid"), targets: []string{"x"}},
		{name: "AnyType", hooks: matching("x", "*"), submission: ofType("order.paid"), targets: []string{"x"}},
		{name: "TypeBelow", hooks: matching("x", "order.*"), submission: ofType("order.paid"), targets: []string{"x"}},
		{name: "TypeFarBelow", hooks: matching("x", "order.*"), submission: ofType("order.item.added"), targets: []string{"x"}},
		{name: "TypeBelowTheMiddle", hooks: matching("x", "order.item.*"), submission: ofType("order.item.added"), targets: []string{"x"}},
		{name: "NotTheParentItself", hooks: matching("x", "order.*"), submission: ofType("order")},
		{name: "NotAPrefixOfAWord", hooks: matching("x", "order.*"), submission: ofType("orders.paid")},
		{name: "NotAChildOfAnExactType", hooks: matching("x", "order"), submission: ofType("order.paid")},
		{name: "NotInAnotherCase", hooks: matching("x", "Order.paid", "ORDER.*"), submission: ofType("order.paid")},
		{name: "OneOfSeveralPatterns", hooks: matching("x", "user.*", "order.sent", "order.paid"), submission: ofType("order.paid"), targets: []string{"x"}},
		{name: "OncePerWebhookHoweverManyPatterns", hooks: matching("x", "*", "order.*", "order.paid"), submission: ofType("order.paid"), targets: []string{"x"}},
		{
			name: "EveryWebhookThatWantsItInOrder",
			hooks: []caseHook{
				{name: "a", types: []string{"*"}},
				{name: "b", types: []string{"user.*"}},
				{name: "c", types: []string{"order.*"}},
				{name: "d", types: []string{"order.paid"}},
				{name: "e", types: []string{"*"}, other: true},
			},
			submission: ofType("order.paid"), targets: []string{"a", "c", "d"},
		},
		{
			name: "PausedAndDisabledOnesToo",
			hooks: []caseHook{
				{name: "a", types: []string{"*"}, state: webhook.StatePaused}, {name: "b", types: []string{"*"}, state: webhook.StateDisabled},
			},
			targets: []string{"a", "b"},
		},
		{name: "NotDeletedOnes", hooks: []caseHook{{name: "a", types: []string{"*"}, state: "deleted"}, {name: "b", types: []string{"*"}}}, targets: []string{"b"}},
		{name: "NobodyAtAll"},
		{name: "NobodyOfThisTenant", hooks: []caseHook{{name: "a", types: []string{"*"}, other: true}}},

		{name: "Direct", hooks: append(all, caseHook{name: "b", types: []string{"*"}}), submission: submission{to: "b", noTenant: true}, targets: []string{"b"}},
		{name: "DirectBelowAPattern", hooks: matching("x", "order.*"), submission: submission{to: "x", noTenant: true}, targets: []string{"x"}},
		{
			name: "DirectToAPausedOne", hooks: []caseHook{{name: "a", types: []string{"*"}, state: webhook.StatePaused}},
			submission: submission{to: "a", noTenant: true}, targets: []string{"a"},
		},
		{
			name: "DirectToOneThatDoesNotWantTheType", hooks: matching("x", "user.*", "order"),
			submission: submission{to: "x", noTenant: true}, code: webhook.CodeInvalid, fields: []string{"type: is not among the webhook's event_types"},
		},
		{name: "DirectToNobody", submission: submission{to: "unknown", noTenant: true}, code: webhook.CodeNotFound},
		{
			name: "DirectToADeletedOne", hooks: []caseHook{{name: "a", types: []string{"*"}, state: "deleted"}},
			submission: submission{to: "a", noTenant: true}, code: webhook.CodeNotFound,
		},
		{name: "DirectWithItsTenant", hooks: all, submission: submission{to: "all"}, targets: []string{"all"}},
		{
			name: "DirectWithAnotherTenant", hooks: []caseHook{{name: "a", types: []string{"*"}, other: true}},
			submission: submission{to: "a"}, code: webhook.CodeNotFound,
		},
		{
			name: "NeitherTenantNorWebhook", submission: submission{noTenant: true}, code: webhook.CodeInvalid,
			fields: []string{"tenant: is required, unless there is a webhook_id", "webhook_id: is required, unless there is a tenant"},
		},

		{name: "LongestTenant", submission: submission{tenant: new(strings.Repeat("é", 128))}},
		{name: "TenantTooLong", submission: submission{tenant: new(strings.Repeat("é", 128) + "x")}, code: webhook.CodeInvalid, fields: []string{"tenant: must be at most 256 bytes long"}},
		{name: "TenantOfOddCharacters", submission: submission{tenant: new("a b'\"\\%_${}\u0080\u2028☃")}},
		{name: "TenantWithAControlCharacter", submission: submission{tenant: new("a\x1f")}, code: webhook.CodeInvalid, fields: []string{"tenant: must not contain control characters"}},
		{name: "TenantWithALineBreakAtItsEnd", submission: submission{tenant: new("a\n")}, code: webhook.CodeInvalid, fields: []string{"tenant: must not contain control characters"}},
		{name: "TenantWithADelete", submission: submission{tenant: new("\x7fa")}, code: webhook.CodeInvalid, fields: []string{"tenant: must not contain control characters"}},
		{name: "EmptyTenant", submission: submission{tenant: new("")}, code: webhook.CodeInvalid, fields: []string{"tenant: must not be empty"}},

		{name: "OddestType", hooks: all, submission: ofType("_-0.A.-"), targets: []string{"all"}},
		{name: "LongestType", hooks: all, submission: ofType(strings.Repeat("a.", 127) + "bb"), targets: []string{"all"}},
		faultyType("TypeTooLong", strings.Repeat("a", 257), "must be at most 256 bytes long"),
		faultyType("EmptyType", "", "must not be empty"),
		faultyType("TypeWithAnEmptySegment", "a..b", none),
		faultyType("TypeWithADotFirst", ".a", none),
		faultyType("TypeWithADotLast", "a.", none),
		faultyType("TypeOfADot", ".", none),
		faultyType("TypeWithASpace", "a b", segments),
		faultyType("TypeWithAStar", "order.*", segments),
		faultyType("TypeBeyondASCII", "é", segments),
		faultyType("TypeWithALineBreakAtItsEnd", "a\n", "must not contain control characters"),

		{name: "RawBytes", hooks: all, submission: submission{to: "all", noTenant: true, payload: "\x00\xff<", contentType: "application/octet-stream"}, targets: []string{"all"}},
		{name: "RawJSON", hooks: all, submission: submission{to: "all", noTenant: true, payload: ` {"a":1} `, contentType: "application/json"}, targets: []string{"all"}},
		{name: "RawParameters", hooks: all, submission: submission{to: "all", noTenant: true, payload: `x`, contentType: `text/plain; charset="utf-8"`}, targets: []string{"all"}},
		{
			name: "LongestMediaType", hooks: all,
			submission: submission{to: "all", noTenant: true, payload: `x`, contentType: "text/" + strings.Repeat("x", webhook.MaxContentTypeLength-5)}, targets: []string{"all"},
		},
		{
			name: "MediaTypeTooLong", hooks: all,
			submission: submission{to: "all", noTenant: true, payload: `x`, contentType: "text/" + strings.Repeat("x", webhook.MaxContentTypeLength-4)}, code: webhook.CodeInvalid,
		},
		{name: "MediaTypeBeyondASCII", hooks: all, submission: submission{to: "all", noTenant: true, payload: `x`, contentType: "text/é"}, code: webhook.CodeInvalid},
		{
			name: "LargestPayload", hooks: all,
			submission: submission{to: "all", noTenant: true, payload: strings.Repeat("x", ingest.DefaultMaxBodyBytes), contentType: "text/plain"}, targets: []string{"all"},
		},
		{
			name: "PayloadTooLarge", hooks: all,
			submission: submission{to: "all", noTenant: true, payload: strings.Repeat("x", ingest.DefaultMaxBodyBytes+1), contentType: "text/plain"}, code: webhook.CodeTooLarge,
		},

		{
			name: "OrderingKey", hooks: []caseHook{
				{name: "a", types: []string{"*"}}, {name: "b", types: []string{"*"}, ordering: webhook.OrderingKey}, {name: "c", types: []string{"*"}, ordering: webhook.OrderingStrict},
			},
			submission: submission{orderingKey: new("order 4711")}, targets: []string{"a", "b", "c"},
		},
		{
			name: "NoOrderingKey", hooks: []caseHook{
				{name: "a", types: []string{"*"}, ordering: webhook.OrderingKey}, {name: "b", types: []string{"*"}, ordering: webhook.OrderingStrict},
			},
			targets: []string{"a", "b"},
		},
		{
			name: "RawOrderingKey", hooks: []caseHook{{name: "all", types: []string{"*"}, ordering: webhook.OrderingKey}},
			submission: submission{to: "all", noTenant: true, payload: `x`, contentType: "text/plain", orderingKey: new("é&k=v")}, targets: []string{"all"},
		},
		{name: "LongestOrderingKey", submission: submission{orderingKey: new(strings.Repeat("é", 128))}},
		{name: "OrderingKeyTooLong", submission: submission{orderingKey: new(strings.Repeat("é", 128) + "x")}, code: webhook.CodeInvalid, fields: []string{"ordering_key: must be at most 256 bytes long"}},
		{name: "OrderingKeyWithAControlCharacter", submission: submission{orderingKey: new("a\tb")}, code: webhook.CodeInvalid, fields: []string{"ordering_key: must not contain control characters"}},
		{name: "EmptyOrderingKey", submission: submission{orderingKey: new("")}, code: webhook.CodeInvalid, fields: []string{"ordering_key: must not be empty"}},

		{name: "Timestamp", submission: submission{timestamp: "2026-01-02T03:04:05.000006+01:00"}},
		{name: "FirstTimestamp", submission: submission{timestamp: "0001-01-01T00:00:00.000001Z"}},
		{name: "LastTimestamp", submission: submission{timestamp: "9999-12-31T23:59:59.999999Z"}},
		{name: "TimestampTooEarly", submission: submission{timestamp: "0001-01-01T00:00:00+01:00"}, code: webhook.CodeInvalid},

		{name: "Metadata", submission: submission{metadata: `{"a": "b", "é/~": "x\"\\", "e": ""}`}},
		{name: "EmptyMetadata", submission: submission{metadata: `{}`}},
		{name: "NullMetadata", submission: submission{metadata: `null`}},
		{name: "MostMetadata", submission: submission{metadata: manyKeys(webhook.MaxMetadataKeys)}},
		{name: "TooMuchMetadata", submission: submission{metadata: manyKeys(webhook.MaxMetadataKeys + 1)}, code: webhook.CodeInvalid, fields: []string{"metadata: must have at most 50 keys"}},
		{name: "LongestMetadata", submission: submission{metadata: `{"` + strings.Repeat("k", 64) + `":"` + strings.Repeat("é", 256) + `"}`}},
		{
			name: "MetadataTooLong", submission: submission{metadata: `{"` + strings.Repeat("k", 65) + `":"v","k":"` + strings.Repeat("é", 256) + `x"}`}, code: webhook.CodeInvalid,
			fields: []string{"metadata/k: must be at most 512 bytes long", "metadata/" + strings.Repeat("k", 65) + ": its name must be at most 64 bytes long"},
		},
		{
			name: "MetadataWithControlCharacters", submission: submission{metadata: `{"a/b~":"\n","\t":"v"}`}, code: webhook.CodeInvalid,
			fields: []string{"metadata/\t: its name must not contain control characters", "metadata/a~1b~0: must not contain control characters"},
		},
		{name: "MetadataWithoutAName", submission: submission{metadata: `{"":"v"}`}, code: webhook.CodeInvalid, fields: []string{"metadata/: its name must not be empty"}},
		{
			name: "MetadataThatIsNotStrings", submission: submission{metadata: `{"a":1,"b":null,"c":{},"d":[],"e":true}`}, code: webhook.CodeInvalid,
			fields: []string{
				"metadata/a: must be a string, not a number", "metadata/b: must be a string, not null", "metadata/c: must be a string, not an object",
				"metadata/d: must be a string, not an array", "metadata/e: must be a string, not a boolean",
			},
		},
		{name: "MetadataThatIsAnArray", submission: submission{metadata: `["a"]`}, code: webhook.CodeInvalid, fields: []string{"metadata: must be an object of strings, not an array"}},
		{name: "MetadataThatIsAString", submission: submission{metadata: `"a"`}, code: webhook.CodeInvalid, fields: []string{"metadata: must be an object of strings, not a string"}},
		{
			name: "SeveralFaultsAtOnce", submission: submission{tenant: new("\n"), eventType: new("a b"), metadata: `{"a":"\n"}`}, code: webhook.CodeInvalid,
			fields: []string{"metadata/a: must not contain control characters", "tenant: must not contain control characters", "type: " + segments},
		},
	}
	// Payloads that are careless to parse.
	for i, payload := range []string{
		`{"b":1,"a":2}`, `{"a":1,"a":2}`, "{ \"a\" :\t[ 1 ,\r\n2 ] }", `1e400`, `-0`, `1.0`, `9007199254740993`, `"\u0000"`, `"\ud800"`, `"\udc00\ud800"`,
		`"\/"`, `"é\u00e9"`, `"<>&\u2028"`, "\"\u2028\"", "\"\xff\xfe\"", "{\"\xff\":1}", `null`, `true`, `""`, `[]`, `{}`, `"\\\""`,
		strings.Repeat("[", 60) + strings.Repeat("]", 60),
	} {
		table = append(table, sharedCase{name: fmt.Sprintf("Payload%d", i), hooks: all, submission: submission{payload: payload}, targets: []string{"all"}})
	}
	return table
}

// TestEveryWayInDoesTheSame runs the cases through the REST API, through SQL and
// through this package, and compares what they answer, what they store and what
// they tell the dispatchers.
func TestEveryWayInDoesTheSame(t *testing.T) {
	t.Parallel()
	b := setup(t)
	heard := b.listen(t)
	ways := []way{b.overREST(t), {"sql", b.overSQL}, {"go", b.overGo}}
	for i, tc := range cases() {
		// One after the other, so that it is clear whose notification is whose.
		t.Run(tc.name, func(t *testing.T) { runCase(t, b, heard, ways, i, &tc) })
	}
}

func runCase(t *testing.T, b *testBundle, heard listener, ways []way, n int, tc *sharedCase) {
	own, others := fmt.Sprintf("own-%d", n), fmt.Sprintf("other-%d", n)
	ids := map[string]webhook.ID{"unknown": webhook.NewID(b.clock.Now())}
	for _, h := range tc.hooks {
		tenant := own
		if h.other {
			tenant = others
		}
		w := b.hook(t, tenant, h.types...)
		ids[h.name] = w.ID
		if h.ordering != "" {
			b.exec(t, `UPDATE fairhook.webhooks SET ordering = $2 WHERE id = $1`, w.ID, h.ordering)
		}
		switch h.state {
		case "":
		case "deleted":
			b.exec(t, `DELETE FROM fairhook.webhooks WHERE id = $1`, w.ID)
		default:
			b.exec(t, `UPDATE fairhook.webhooks SET status = $2 WHERE id = $1`, w.ID, h.state)
		}
	}
	s := tc.submission
	if s.tenant == nil {
		s.tenant = &own
	}
	if s.eventType == nil {
		s.eventType = new("order.paid")
	}
	if s.payload == "" {
		s.payload = `{"n":1}`
	}
	want := []webhook.ID{}
	for _, name := range tc.targets {
		want = append(want, ids[name])
	}

	var storedBy []string
	ran := 0
	for _, w := range ways {
		id, err, ok := w.submit(t, &s, *s.tenant, ids[s.to])
		if !ok {
			continue
		}
		ran++
		if tc.code != "" {
			if webhook.ErrorCode(err) != tc.code {
				t.Errorf("%s: %s %v, want %s", w.name, id, err, tc.code)
			} else if got := fieldsOf(err); tc.fields != nil && !slices.Equal(got, tc.fields) {
				t.Errorf("%s: fields are %q\nwant %q", w.name, got, tc.fields)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", w.name, err)
			continue
		}
		if targets := query[[]webhook.ID](t, b, `SELECT webhook_ids FROM fairhook.events WHERE id = $1`, id); !slices.Equal(targets, want) {
			t.Errorf("%s: it goes to %v, want %v", w.name, targets, want)
		}
		if kept := query[[]byte](t, b, `SELECT payload FROM fairhook.events WHERE id = $1`, id); string(kept) != s.payload {
			t.Errorf("%s: stored %q, want %q", w.name, kept, s.payload)
		}
		storedBy = append(storedBy, w.name+": "+b.stored(t, id))
		for _, payload := range fairqueue.Notifications(want) {
			if got := heard.next(t); got != payload {
				t.Errorf("%s: dispatchers are told %q, want %q", w.name, got, payload)
			}
		}
	}
	if ran < 2 {
		t.Errorf("only %d ways in can be compared", ran)
	}
	for _, stored := range storedBy[min(1, len(storedBy)):] {
		_, first, _ := strings.Cut(storedBy[0], ": ")
		if _, this, _ := strings.Cut(stored, ": "); this != first {
			t.Errorf("stored by %s\nand by    %s", storedBy[0], stored)
		}
	}
	if tc.code != "" {
		if n := query[int](t, b, `SELECT count(*) FROM fairhook.events WHERE tenant = ANY ($1)`, []string{own, others, *s.tenant}); n != 0 {
			t.Errorf("%d refused events are stored", n)
		}
	}
}

// stored is an event's row and those of its jobs, without what differs by nature.
func (b *testBundle) stored(t *testing.T, id webhook.ID) string {
	t.Helper()
	text := query[string](t, b, `
		SELECT (to_jsonb(e) || jsonb_build_object('metadata', coalesce(e.metadata, '"none"'))
		        || jsonb_build_object('jobs', (
		            SELECT jsonb_agg(to_jsonb(j) - '{id,created_at,scheduled_at}'::text[]
		                             || jsonb_build_object('due at once', j.scheduled_at = j.created_at) ORDER BY j.id)
		            FROM fairhook.river_job j WHERE j.args->>'event_id' = e.id::text)))::text
		FROM fairhook.events e WHERE id = $1`, id)
	text = strings.ReplaceAll(text, id.String(), "ID")
	return strings.ReplaceAll(text, fmt.Sprintf("%x", id[:]), "ID")
}

// fieldsOf are what an error says is wrong, in one spelling for all ways.
func fieldsOf(err error) []string {
	var e *webhook.Error
	if !errors.As(err, &e) {
		return nil
	}
	var fields []string
	for _, f := range e.Fields {
		fields = append(fields, strings.TrimPrefix(f.Pointer+f.Parameter, "/")+": "+f.Detail)
	}
	slices.Sort(fields)
	return fields
}

const bootstrapKey = "test-key"

// overREST starts an ingest server.
func (b *testBundle) overREST(t *testing.T) way {
	t.Helper()
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	cat := catalog.New(catalog.Config{Pool: b.Pool})
	in := intake.New(intake.Config{Pool: b.Pool, Clock: b.clock})
	server, err := ingest.New(ingest.Config{
		Catalog: cat, Intake: in, Clock: b.clock, Pool: b.Pool,
		API:   api.New(api.Config{Pool: b.Pool, Clock: b.clock, Box: seal.New(seal.Key{}), Guard: guard, Catalog: cat}),
		Livez: http.NotFoundHandler(), Readyz: http.NotFoundHandler(), Metrics: daemon.MetricsHandler(prometheus.NewRegistry()),
		BootstrapKey: bootstrapKey, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	for _, run := range []func(context.Context) error{cat.Run, in.Run} {
		loops.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	h := httptest.NewServer(server)
	t.Cleanup(func() { h.Close(); cancel(); loops.Wait() })

	return way{"REST", func(t *testing.T, s *submission, tenant string, to webhook.ID) (webhook.ID, error, bool) {
		t.Helper()
		if s.to != "" && !s.noTenant {
			return webhook.ID{}, nil, false // it takes one or the other
		}
		path, body, contentType := "/v1/events", []byte(s.payload), "application/json"
		if s.contentType != "" {
			path, contentType = "/v1/webhooks/"+to.String()+"/events?type="+url.QueryEscape(*s.eventType), s.contentType
			if s.orderingKey != nil {
				path += "&ordering_key=" + url.QueryEscape(*s.orderingKey)
			}
		} else {
			var members []string
			member := func(name string, value any) {
				text, err := json.Marshal(value)
				if err != nil {
					t.Fatal(err)
				}
				members = append(members, `"`+name+`":`+string(text))
			}
			if s.to != "" {
				member("webhook_id", to)
			} else if !s.noTenant {
				member("tenant", tenant)
			}
			member("type", s.eventType)
			if s.timestamp != "" {
				member("timestamp", s.timestamp)
			}
			if s.metadata != "" {
				members = append(members, `"metadata":`+s.metadata)
			}
			if s.orderingKey != nil {
				member("ordering_key", s.orderingKey)
			}
			body = []byte(`{` + strings.Join(append(members, `"payload": `+s.payload), ",") + ` }`)
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+bootstrapKey)
		r.Header.Set("Content-Type", contentType)
		response, err := h.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		var decoded struct {
			ID     webhook.ID           `json:"id"`
			Type   string               `json:"type"`
			Errors []webhook.FieldError `json:"errors"`
		}
		if err := json.Unmarshal(answer, &decoded); err != nil {
			t.Fatalf("answer %d %s: %v", response.StatusCode, answer, err)
		}
		if response.StatusCode == http.StatusAccepted {
			return decoded.ID, nil, true
		}
		code := webhook.Code(decoded.Type[strings.LastIndexByte(decoded.Type, '/')+1:])
		return webhook.ID{}, &webhook.Error{Code: code, Message: string(answer), Fields: decoded.Errors}, true
	}}
}

// overSQL calls the SQL function as a psql user would. It reads the errors by
// itself, as programs in other languages do.
func (b *testBundle) overSQL(t *testing.T, s *submission, tenant string, to webhook.ID) (id webhook.ID, err error, ok bool) {
	t.Helper()
	var (
		optionalTenant, contentType, timestamp, metadata *string
		webhookID                                        *webhook.ID
	)
	if !s.noTenant {
		optionalTenant = &tenant
	}
	if s.to != "" {
		webhookID = &to
	}
	for target, value := range map[**string]string{&contentType: s.contentType, &timestamp: s.timestamp, &metadata: s.metadata} {
		if value != "" {
			*target = &value
		}
	}
	err = b.QueryRow(t.Context(), `SELECT fairhook.submit_event($1, $2, $3::bytea, $4::text::jsonb, $5::text::timestamptz, $6, $7, ordering_key => $8)`,
		optionalTenant, s.eventType, []byte(s.payload), metadata, timestamp, webhookID, contentType, s.orderingKey).Scan(&id)
	var server *pgconn.PgError
	if errors.As(err, &server) {
		code := map[string]webhook.Code{"FH404": webhook.CodeNotFound, "FH413": webhook.CodeTooLarge, "FH422": webhook.CodeInvalid}[server.Code]
		var fields []webhook.FieldError
		if code == webhook.CodeInvalid {
			if err := json.Unmarshal([]byte(server.Detail), &fields); err != nil {
				t.Errorf("detail %q: %v", server.Detail, err)
			}
		}
		err = &webhook.Error{Code: code, Message: server.Error(), Fields: fields}
	}
	return id, err, true
}

// overGo uses this package, in a transaction that commits.
func (b *testBundle) overGo(t *testing.T, s *submission, tenant string, to webhook.ID) (id webhook.ID, err error, ok bool) {
	t.Helper()
	event := enqueue.Event{Type: *s.eventType, Payload: []byte(s.payload), ContentType: s.contentType}
	if !s.noTenant {
		event.Tenant = tenant
	}
	if *s.eventType == "" || !s.noTenant && tenant == "" {
		return id, nil, false // empty is absent here
	}
	if s.orderingKey != nil {
		if event.OrderingKey = *s.orderingKey; event.OrderingKey == "" {
			return id, nil, false
		}
	}
	if s.to != "" {
		event.WebhookID = to
	}
	if s.timestamp != "" {
		if event.OccurredAt, err = time.Parse(time.RFC3339Nano, s.timestamp); err != nil {
			t.Fatal(err)
		}
	}
	if s.metadata != "" && json.Unmarshal([]byte(s.metadata), &event.Metadata) != nil || strings.Contains(s.metadata, "null") {
		return id, nil, false // a map of strings cannot say this
	}
	err = pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		id, err = enqueue.Submit(t.Context(), tx, event)
		return err
	})
	return id, err, true
}

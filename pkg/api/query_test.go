package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// readAll goes through a list, page after page, by its Link headers.
func readAll[T any](t *testing.T, b *testBundle, target string) (all []T) {
	t.Helper()
	for pages := 0; target != ""; pages++ {
		if pages > 200 {
			t.Fatalf("%s does not end", target)
		}
		list, header := must[listAnswer[T]](t, b, http.StatusOK, "GET", target, "")
		all = append(all, list.Data...)
		link := header.Get("Link")
		if (list.NextCursor == nil) != (link == "") {
			t.Errorf("next_cursor %v with Link %q", list.NextCursor, link)
		}
		target, _, _ = strings.Cut(strings.TrimPrefix(link, "<"), ">")
	}
	return all
}

// modelDelivery is what a delivery of the model has behind it.
type modelDelivery struct {
	hook   int
	job    string // the job's state; empty: there is none
	due    time.Time
	ends   []webhook.Status // of its attempts, in their order
	status webhook.Status   // where it stands
}

type modelEvent struct {
	id         webhook.ID
	tenant     string
	typ        string
	metadata   map[string]string
	deliveries []modelDelivery
}

// history is random events, webhooks and deliveries in every state, in a database and
// as a model.
type history struct {
	hooks  []webhook.ID
	tenant []string // of the webhooks
	paused int      // which of the webhooks is
	events []modelEvent
}

func makeHistory(t *testing.T, b *testBundle, random *rand.Rand) *history {
	t.Helper()
	h := &history{}
	for i := range 6 {
		tenant := []string{"acme", "acme", "acme", "acme", "other", "other"}[i]
		h.hooks = append(h.hooks, create(t, b, fmt.Sprintf(`{"tenant":%q,"url":"https://example.com"}`, tenant)).ID)
		h.tenant = append(h.tenant, tenant)
	}
	h.paused = random.IntN(len(h.hooks))
	must[any](t, b, http.StatusOK, "POST", "/v1/webhooks/"+h.hooks[h.paused].String()+"/pause", "")
	now := time.Now().UTC().Truncate(time.Millisecond)
	for range 60 {
		at := now.Add(-time.Duration(random.IntN(20*60*60*1000)) * time.Millisecond)
		e := modelEvent{id: webhook.NewID(at), tenant: "acme", typ: []string{"order.paid", "order.sent"}[random.IntN(2)], metadata: map[string]string{}}
		if random.IntN(3) == 0 {
			e.tenant = "other"
		}
		for _, key := range []string{"a", "b"} {
			if random.IntN(2) == 0 {
				e.metadata[key] = fmt.Sprint(random.IntN(2))
			}
		}
		for hook := range h.hooks {
			if h.tenant[hook] == e.tenant && random.IntN(2) == 0 {
				e.deliveries = append(e.deliveries, makeDelivery(random, hook, hook == h.paused, now))
			}
		}
		storeEvent(t, b, h, &e, random.IntN(8) == 0)
		h.events = append(h.events, e)
	}
	slices.SortFunc(h.events, func(a, b modelEvent) int { return slices.Compare(b.id[:], a.id[:]) })
	return h
}

func makeDelivery(random *rand.Rand, hook int, paused bool, now time.Time) modelDelivery {
	// Due times are even in tenths of a second now and then, so that some are the same.
	d := modelDelivery{hook: hook, due: now.Add(time.Duration(random.IntN(600)-300) * 100 * time.Millisecond)}
	retries := random.IntN(3)
	for range retries {
		d.ends = append(d.ends, webhook.StatusRetrying)
	}
	switch final := []webhook.Status{webhook.StatusDelivered, webhook.StatusExhausted, webhook.StatusCancelled, webhook.StatusDropped}; random.IntN(8) {
	case 0, 1:
		d.job, d.status = "available", webhook.StatusPending
		if retries > 0 {
			d.status = webhook.StatusRetrying
		}
	case 2:
		d.job, d.status = "running", webhook.StatusDelivering
	case 3:
		d.job, d.status = "retryable", webhook.StatusRetrying
		if retries == 0 {
			d.ends = []webhook.Status{webhook.StatusRetrying}
		}
	case 4: // ended, and sent again
		d.ends = append(d.ends, final[random.IntN(len(final))])
		d.job, d.status = "scheduled", webhook.StatusRetrying
	default:
		d.status = final[random.IntN(len(final))]
		if random.IntN(4) == 0 {
			d.ends = append(d.ends, final[random.IntN(len(final))])
		}
		d.ends = append(d.ends, d.status)
	}
	if paused && (d.status == webhook.StatusPending || d.status == webhook.StatusRetrying) {
		d.status = webhook.StatusParked
	}
	return d
}

// storeEvent stores an event as it is in the model. added says that its deliveries were
// added after its acceptance.
func storeEvent(t *testing.T, b *testBundle, h *history, e *modelEvent, added bool) {
	t.Helper()
	hooks := []webhook.ID{}
	for _, d := range e.deliveries {
		hooks = append(hooks, h.hooks[d.hook])
	}
	chosen, events := hooks, make([]webhook.ID, len(hooks))
	for i := range events {
		events[i] = e.id
	}
	if added {
		chosen = []webhook.ID{}
	}
	_, err := b.db.Exec(t.Context(), `
		WITH accepted AS (
			INSERT INTO fairhook.events (id, tenant, type, payload, metadata, webhook_ids) VALUES ($1, $2, $3, '{}', $4, $5) RETURNING id, ordering_key
		) `+fairqueue.InsertSQL(6, 7), e.id, e.tenant, e.typ, e.metadata, chosen, events, hooks)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range e.deliveries {
		hook := h.hooks[d.hook]
		for i, status := range d.ends {
			record(t, b, webhook.Attempt{
				ID: webhook.NewID(e.id.Time().Add(time.Duration(i+1) * time.Millisecond)), EventID: e.id, WebhookID: hook,
				Number: i + 1, Reason: webhook.ReasonTimeout, Status: status, StartedAt: e.id.Time(),
			})
		}
		setJob(t, b, e.id, hook, d.job, len(d.ends), d.due)
	}
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.attempts SET tenant = $2 WHERE event_id = $1`, e.id, e.tenant); err != nil {
		t.Fatal(err)
	}
}

// asked is what a list is asked for.
type asked struct {
	tenant, typ   string
	hook          int // -1: any
	status        webhook.Status
	metadata      map[string]string
	after, before time.Time
}

func (q asked) query(h *history, limit int) url.Values {
	v := url.Values{"limit": {fmt.Sprint(limit)}}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("tenant", q.tenant)
	set("type", q.typ)
	set("status", string(q.status))
	if len(q.metadata) > 0 {
		text, _ := json.Marshal(q.metadata)
		set("metadata", string(text))
	}
	if q.hook >= 0 {
		set("webhook_id", h.hooks[q.hook].String())
	}
	if !q.after.IsZero() {
		set("after", q.after.Format(time.RFC3339Nano))
	}
	if !q.before.IsZero() {
		set("before", q.before.Format(time.RFC3339Nano))
	}
	return v
}

// about reports whether an event is what is asked for, whatever its deliveries.
func (q asked) about(e *modelEvent) bool {
	at := e.id.Time()
	for key, value := range q.metadata {
		if e.metadata[key] != value {
			return false
		}
	}
	return (q.tenant == "" || e.tenant == q.tenant) && (q.typ == "" || e.typ == q.typ) &&
		(q.after.IsZero() || !at.Before(q.after)) && (q.before.IsZero() || at.Before(q.before))
}

func ask(random *rand.Rand, h *history) asked {
	q := asked{hook: -1, metadata: map[string]string{}}
	if random.IntN(3) == 0 {
		q.typ = "order.paid"
	}
	if random.IntN(3) == 0 {
		q.metadata[[]string{"a", "b"}[random.IntN(2)]] = fmt.Sprint(random.IntN(2))
	}
	if random.IntN(4) == 0 {
		q.after = h.events[random.IntN(len(h.events))].id.Time()
	}
	if random.IntN(4) == 0 {
		q.before = h.events[random.IntN(len(h.events))].id.Time()
	}
	return q
}

// Whatever happened, and whatever is asked for, the lists show what the model says, in
// its order, each once, however long the pages are.
func TestListsAgreeWithAModelOnRandomHistories(t *testing.T) {
	t.Parallel()
	for range 3 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			random := rand.New(rand.NewPCG(seed, 0))
			h := makeHistory(t, b, random)
			for range 60 {
				compareEvents(t, b, h, ask(random, h), random)
				compareDeliveries(t, b, h, ask(random, h), random)
			}
		})
	}
}

func compareEvents(t *testing.T, b *testBundle, h *history, q asked, random *rand.Rand) {
	t.Helper()
	q.tenant = []string{"", "acme", "other"}[random.IntN(3)]
	q.hook = random.IntN(2*len(h.hooks)) - len(h.hooks)
	q.status = []webhook.Status{"", webhook.StatusDelivered, webhook.StatusExhausted, webhook.StatusCancelled, webhook.StatusDropped}[random.IntN(5)]
	want := []webhook.ID{}
	for i := range h.events {
		e := &h.events[i]
		if q.about(e) && (q.hook < 0 && q.status == "" || slices.ContainsFunc(e.deliveries, func(d modelDelivery) bool {
			return (q.hook < 0 || d.hook == q.hook) && (q.status == "" || slices.Contains(d.ends, q.status))
		})) {
			want = append(want, e.id)
		}
	}
	query := q.query(h, 1+random.IntN(20)).Encode()
	got := []webhook.ID{}
	for _, e := range readAll[webhook.EventSummary](t, b, "/v1/events?"+query) {
		got = append(got, e.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("/v1/events?%s\nlists %v\nwant  %v", query, got, want)
	}
}

func compareDeliveries(t *testing.T, b *testBundle, h *history, q asked, random *rand.Rand) {
	t.Helper()
	all := []webhook.Status{
		"", webhook.StatusPending, webhook.StatusDelivering, webhook.StatusRetrying, webhook.StatusParked,
		webhook.StatusDelivered, webhook.StatusExhausted, webhook.StatusCancelled, webhook.StatusDropped,
	}
	q.status = all[random.IntN(len(all))]
	hook := random.IntN(len(h.hooks))
	if random.IntN(3) == 0 {
		hook = h.paused
	}
	live := q.status != "" && !q.status.Terminal()
	dues := map[string]time.Time{}
	want := []string{}
	for i := range h.events {
		e := &h.events[i]
		for _, d := range e.deliveries {
			if q.about(e) && d.hook == hook && (q.status == "" || d.status == q.status) {
				line := fmt.Sprint(e.id, " ", d.status)
				want, dues[line] = append(want, line), d.due
			}
		}
	}
	query := q.query(h, 1+random.IntN(9)).Encode()
	got := []string{}
	for _, d := range readAll[webhook.ListedDelivery](t, b, "/v1/webhooks/"+h.hooks[hook].String()+"/deliveries?"+query) {
		if d.WebhookID != h.hooks[hook] {
			t.Errorf("lists a delivery to %s", d.WebhookID)
		}
		got = append(got, fmt.Sprint(d.EventID, " ", d.Status))
	}
	if live {
		if !slices.IsSortedFunc(got, func(a, b string) int { return dues[b].Compare(dues[a]) }) {
			t.Errorf("deliveries?%s lists %v, which are due at %v", query, got, slices.Collect(maps.Values(dues)))
		}
		slices.Sort(got)
		slices.Sort(want)
	}
	if !slices.Equal(got, want) {
		t.Errorf("deliveries?%s\nlists %v\nwant  %v", query, got, want)
	}
}

func TestListEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("ShowsWhatAnEventIs", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		text := "text/plain"
		id := insertEvent(t, b, &text, "hello", webhook.NewID(time.Now()), webhook.NewID(time.Now()))
		recorder, err := b.call(t, "GET", "/v1/events", "")
		want := fmt.Sprintf(`{"data":[{"id":%q,"tenant":"acme","type":"order.paid","created_at":%q,"timestamp":null,`+
			`"metadata":{"payload":"\"payload\":null"},"content_type":"text/plain","payload_bytes":5,"delivery_count":2}],"next_cursor":null}`+"\n",
			id, id.Time().Format(time.RFC3339Nano))
		if err != nil || recorder.Body.String() != want {
			t.Errorf("answers %s, %v\nwant %s", recorder.Body, err, want)
		}
	})
	t.Run("RefusesParametersByName", func(t *testing.T) {
		t.Parallel()
		id := webhook.NewID(time.Now())
		foreign := base64.RawURLEncoding.EncodeToString(append([]byte{'w'}, id[:]...))
		for query, parameter := range map[string]string{
			"status=pending": "status", "status=nonsense": "status", "webhook_id=1": "webhook_id", "type=a..b": "type", "tenant=%00": "tenant",
			"metadata=a": "metadata", "metadata=null": "metadata", `metadata={"a":1}`: "metadata", `metadata={"":"x"}`: "metadata",
			`metadata={"a":"%00"}`: "metadata", "after=1": "after", "before=1": "before", "limit=0": "limit", "cursor=x": "cursor",
			"cursor=" + foreign: "cursor", "state=x": "state",
		} {
			if fields := refused(t, b, webhook.CodeMalformed, "GET", "/v1/events?"+query, ""); len(fields) != 1 || !strings.HasPrefix(fields[0], parameter+": ") {
				t.Errorf("%s: told of %q, want of %s", query, fields, parameter)
			}
		}
	})
	t.Run("ShowsATenantItsOwn", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hook := create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID
		event := insertEvent(t, b, nil, `{}`, hook) // acme's
		for tenant, want := range map[string]int{"acme": 1, "other": 0} {
			for _, query := range []string{"", "?tenant=acme", "?webhook_id=" + hook.String()} {
				recorder, err := b.as(t, adminOf(tenant), "GET", "/v1/events"+query, "")
				var page listAnswer[webhook.EventSummary]
				if err != nil || json.Unmarshal(recorder.Body.Bytes(), &page) != nil || len(page.Data) != want {
					t.Errorf("%s asks for %s and is shown %s, %v", tenant, query, recorder.Body, err)
				}
			}
			for _, path := range []string{"/v1/webhooks/" + hook.String() + "/deliveries", "/v1/webhooks/" + hook.String() + "/stats", "/v1/events/" + event.String() + "/explain"} {
				_, err := b.as(t, adminOf(tenant), "GET", path, "")
				if got := webhook.ErrorCode(err); (want == 0) != (got == webhook.CodeNotFound) || want == 1 && err != nil {
					t.Errorf("%s asks for %s: %v", tenant, path, err)
				}
			}
		}
	})
}

func TestListWebhookDeliveries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := "/v1/webhooks/" + create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID.String() + "/deliveries?"
	id := webhook.NewID(time.Now())
	ofEvents := base64.RawURLEncoding.EncodeToString(append([]byte{'e'}, id[:]...))
	ofDeliveries := base64.RawURLEncoding.EncodeToString(append([]byte{'x'}, id[:]...))
	for query, parameter := range map[string]string{
		"status=nonsense": "status", "webhook_id=1": "webhook_id", "tenant=acme": "tenant", "type=.": "type", "metadata=1": "metadata",
		"after=1": "after", "limit=1001": "limit", "cursor=" + ofEvents: "cursor", "status=pending&cursor=" + ofDeliveries: "cursor",
		"status=parked&cursor=" + url64("l\x7f23456781234567"): "cursor",
	} {
		if fields := refused(t, b, webhook.CodeMalformed, "GET", path+query, ""); len(fields) != 1 || !strings.HasPrefix(fields[0], parameter+": ") {
			t.Errorf("%s: told of %q, want of %s", query, fields, parameter)
		}
	}
	for _, query := range []string{"", "status=pending", "status=delivered"} {
		refused(t, b, webhook.CodeNotFound, "GET", "/v1/webhooks/"+id.String()+"/deliveries?"+query, "")
		if list := readAll[webhook.ListedDelivery](t, b, path+query); len(list) != 0 {
			t.Errorf("a webhook without deliveries has %+v", list)
		}
	}
}

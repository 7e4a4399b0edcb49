package e2etest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/client"
)

// faultLedger keeps what producers were told about each of their events.
type faultLedger struct {
	mu sync.Mutex
	// acknowledged are ids by payload, and refused the payloads of which the API
	// said that nothing was kept.
	acknowledged map[string]string
	refused      map[string]bool
	// unknown are the events of which nothing is known.
	unknown   []client.Event
	surprises []error
	next      int
}

func newFaultLedger() *faultLedger {
	return &faultLedger{acknowledged: map[string]string{}, refused: map[string]bool{}}
}

// event makes the next event.
func (l *faultLedger) event(hook string) client.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return client.Event{
		WebhookID: hook, Type: "order.paid", IdempotencyKey: fmt.Sprintf("key-%d", l.next),
		Payload: fmt.Appendf(nil, `{%s%d,  "big":9007199254740993}`, marker, l.next),
	}
}

// enter notes what became of an event.
func (l *faultLedger) enter(e client.Event, accepted *client.Accepted, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var answer *client.Error
	switch {
	case err == nil:
		l.acknowledged[string(e.Payload)] = accepted.ID
	case !errors.As(err, &answer), strings.Contains(answer.Detail, "not known whether"):
		l.unknown = append(l.unknown, e)
	case client.IsUnavailable(err):
		l.refused[string(e.Payload)] = true
	default:
		l.surprises = append(l.surprises, err)
	}
}

func (l *faultLedger) counts() (acknowledged, refused, unknown int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acknowledged), len(l.refused), len(l.unknown)
}

// produce submits events one at a time until ctx ends.
func (l *faultLedger) produce(ctx context.Context, c *client.Client, hooks []string, batches bool) {
	for i := 0; ctx.Err() == nil; i++ {
		// What is under way when the test is over is finished.
		call := context.WithoutCancel(ctx)
		if !batches {
			e := l.event(hooks[i%len(hooks)])
			accepted, err := c.Submit(call, e)
			l.enter(e, accepted, err)
			continue
		}
		events := []client.Event{l.event(hooks[0]), l.event(hooks[i%len(hooks)]), l.event(hooks[0])}
		results, err := c.SubmitBatch(call, events)
		for i, e := range events {
			if err != nil {
				l.enter(e, nil, err)
			} else {
				l.enter(e, results[i].Accepted, results[i].Err)
			}
		}
	}
}

// resolve submits what nobody knows about again, under the same key.
func (l *faultLedger) resolve(t *testing.T, ingest *process) {
	t.Helper()
	patient, err := client.New("http://"+ingest.addr, bootstrap, client.WithRetryMax(20), client.WithRetryWait(50*time.Millisecond, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l.unknown {
		accepted, err := patient.Submit(t.Context(), e)
		if err != nil {
			t.Errorf("submit %s again: %v", e.Payload, err)
			continue
		}
		l.enter(e, accepted, nil)
	}
}

// balance compares the ledger with what is stored: what was acknowledged is
// stored once, with one job for its delivery, and nothing else is.
func (l *faultLedger) balance(t *testing.T, s *stack) {
	t.Helper()
	rows, err := s.database.Pool.Query(t.Context(), `
		SELECT e.id::text, convert_from(e.payload, 'UTF8'), (SELECT count(*) FROM fairhook.river_job AS j WHERE j.args ->> 'event_id' = e.id::text)
		FROM fairhook.events AS e`)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]string{}
	var (
		id, payload string
		jobs        int
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &payload, &jobs}, func() error {
		if stored[payload] != "" {
			t.Errorf("%s is stored twice, as %s and %s", payload, stored[payload], id)
		}
		stored[payload] = id
		if jobs != 1 {
			t.Errorf("%s has %d deliveries", payload, jobs)
		}
		if acknowledged := l.acknowledged[payload]; acknowledged != id {
			t.Errorf("%s is stored as %s, and was acknowledged as %q; refused for certain: %t", payload, id, acknowledged, l.refused[payload])
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for payload, id := range l.acknowledged {
		if stored[payload] != id {
			t.Errorf("%s was acknowledged as %s, and is stored as %q", payload, id, stored[payload])
		}
	}
	for _, err := range l.surprises {
		t.Errorf("refused: %v", err)
	}
}

// TestFaultsBetweenIngestAndPostgres breaks the way from two ingests to their
// database in every manner while producers go on, and then compares what they
// were told with what is stored.
func TestFaultsBetweenIngestAndPostgres(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		// route leads from ingest by way of the proxy to the database.
		route func(t *testing.T, databaseURL string) (*proxy, string)
	}{
		{"Directly", func(t *testing.T, databaseURL string) (*proxy, string) {
			p := newProxy(t, hostOf(t, databaseURL))
			return p, p.through(t, databaseURL)
		}},
		{"BeforePgbouncer", func(t *testing.T, databaseURL string) (*proxy, string) {
			pooled := pgbouncer(t, databaseURL)
			p := newProxy(t, hostOf(t, pooled))
			return p, p.through(t, pooled)
		}},
		{"BehindPgbouncer", func(t *testing.T, databaseURL string) (*proxy, string) {
			p := newProxy(t, hostOf(t, databaseURL))
			return p, pgbouncer(t, p.through(t, databaseURL))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t)
			p, route := tc.route(t, s.url)
			env := []string{"FAIRHOOK_DATABASE_URL=" + route, "FAIRHOOK_LISTEN_DATABASE_URL=" + s.url}
			ingests := []*process{s.runWith("ingest", env...), s.runWith("ingest", env...)}
			var hooks []string
			clients := make([]*client.Client, len(ingests))
			for i, ingest := range ingests {
				ingest.ready()
				var err error
				if clients[i], err = client.New("http://"+ingest.addr, bootstrap, client.WithRetryMax(0)); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 5 {
				w, err := clients[0].Webhooks().Create(t.Context(), client.NewWebhook{Tenant: fmt.Sprintf("tenant-%d", i), URL: "http://127.0.0.1:9/"})
				if err != nil {
					t.Fatal(err)
				}
				hooks = append(hooks, w.ID)
			}

			l := newFaultLedger()
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var producers sync.WaitGroup
			defer producers.Wait()
			defer stop()
			for i := range 16 {
				producers.Go(func() { l.produce(ctx, clients[i%len(clients)], hooks, i%4 == 3) })
			}
			more := func(n int) func() bool {
				from, _, _ := l.counts()
				return func() bool {
					now, _, _ := l.counts()
					return now >= from+n
				}
			}
			eventually(t, "events are accepted", more(50))
			for _, m := range []mode{resetAfter, cutAfter, resetBefore, cut, slow, resetMidway, stalled} {
				strikes := p.strikes.Load()
				_, refused, unknown := l.counts()
				p.set(m)
				switch m {
				case cut, stalled:
					eventually(t, "events are refused while the way is "+m.String(), func() bool {
						_, r, u := l.counts()
						return r+u > refused+unknown+50
					})
				case cutAfter:
					// For longer than ingest tries to find out by itself.
					eventually(t, "the outcome of an event is called unknown", func() bool {
						_, _, u := l.counts()
						return u > unknown
					})
				case slow:
					eventually(t, "events are accepted while the way is slow", more(100))
				case resetBefore, resetMidway, resetAfter:
					eventually(t, "requests meet a "+m.String(), func() bool { return p.strikes.Load() >= strikes+10 })
				case passing:
				}
				p.set(passing)
				healed := time.Now()
				within(t, 15*time.Second, "events are accepted again after the way was "+m.String(), more(100))
				a, r, u := l.counts()
				t.Logf("%s: %d acknowledged, %d refused, %d unknown so far; 100 more accepted %s after the end of the fault",
					m, a, r, u, time.Since(healed).Round(10*time.Millisecond))
			}
			stop()
			producers.Wait()

			l.resolve(t, ingests[1])
			for _, ingest := range ingests {
				if code := ingest.terminate(); code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
			l.balance(t, s)
		})
	}
}

func hostOf(t *testing.T, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// TestThroughPgbouncer is the main job with both services behind a pgbouncer in
// transaction mode, set up as the documentation says.
func TestThroughPgbouncer(t *testing.T) {
	t.Parallel()
	const hooks, events = 10, 500
	s := newStack(t)
	env := []string{"FAIRHOOK_DATABASE_URL=" + pgbouncer(t, s.url), "FAIRHOOK_LISTEN_DATABASE_URL=" + s.url}
	ingest, dispatcher := s.runWith("ingest", env...).ready(), s.runWith("dispatcher", env...).ready()
	c := s.client(ingest)
	r := newReceiver(t)
	ids, paths := r.hooks(c, hooks)
	book := &ledger{events: map[string]submitted{}}
	book.submit(t, []*client.Client{c}, ids, paths, events, mustNot(t))
	eventually(t, "every event has arrived", func() bool { return r.missing(book.events) == 0 })
	if duplicates := r.check(book.events); duplicates != 0 || book.size() != events {
		t.Errorf("%d events arrived of %d, %d of them twice", book.size(), events, duplicates)
	}
	eventually(t, "nothing is left to do", func() bool { return s.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	if n := s.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name IN ('fairhook-listen', 'fairhook-fetch', 'fairhook-catalog')`); n == 0 {
		t.Error("nothing listens")
	}
	for _, p := range []*process{ingest, dispatcher} {
		if code := p.terminate(); code != 0 {
			t.Errorf("%s: exit code %d", p.name, code)
		}
		if strings.Contains(p.output(), `"level":"ERROR"`) {
			t.Errorf("%s logged errors:\n%s", p.name, p.tail())
		}
	}
}

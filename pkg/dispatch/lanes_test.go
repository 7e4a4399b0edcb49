package dispatch

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// gauge reads a metric without labels.
func (b *testBundle) gauge(reg *prometheus.Registry, name string) float64 {
	b.t.Helper()
	families, err := reg.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	i := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == name })
	if i < 0 {
		b.t.Fatalf("there is no metric %s", name)
	}
	return families[i].GetMetric()[0].GetGauge().GetValue()
}

// startMany starts dispatchers that know of each other, and returns their metrics.
func (b *testBundle) startMany(n int, change ...func(*Config)) []*prometheus.Registry {
	b.t.Helper()
	registries := make([]*prometheus.Registry, n)
	for i := range registries {
		registries[i] = prometheus.NewRegistry()
		b.start(append(slices.Clone(change), func(c *Config) { c.Registerer = registries[i] })...)
	}
	for _, reg := range registries {
		b.eventually("all know of each other", func() bool { return b.gauge(reg, "fairhook_dispatchers_alive") == float64(n) })
	}
	return registries
}

// crowd is a receiver that counts how many requests it has at once.
type crowd struct {
	*receiver
	most atomic.Int32
}

func newCrowd(t *testing.T, each time.Duration) *crowd {
	c := &crowd{}
	var now atomic.Int32
	c.receiver = newReceiver(t, func(_ http.ResponseWriter, req *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for {
			seen := c.most.Load()
			if n <= seen || c.most.CompareAndSwap(seen, n) {
				break
			}
		}
		select {
		case <-time.After(each):
		case <-req.Context().Done():
		}
	})
	return c
}

func TestDispatchersShareGates(t *testing.T) {
	t.Parallel()

	t.Run("OneKeepsToTheTimeThatAnotherWasAskedFor", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var patience atomic.Bool
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			if !patience.Load() {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusTooManyRequests)
			}
		})
		registries := b.startMany(2)
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 2 })
		events := b.submit(w, 1)
		b.eventually("the gate is on record", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.lane_gates WHERE cause = 'receiver' AND until > now() + interval '59 minutes'`) == 1
		})
		events = append(events, b.submit(w, 20)...)
		for i, reg := range registries {
			b.eventually(fmt.Sprintf("dispatcher %d has found the gate closed", i), func() bool {
				return b.gauge(reg, "fairhook_lanes_gated") == 1
			})
		}
		if n := r.count(); n > 2 { // both may have had one under way
			t.Errorf("a receiver that asked for an hour was asked %d times", n)
		}
		patience.Store(true)
		if _, err := b.db.Exec(t.Context(), `DELETE FROM fairhook.lane_gates`); err != nil {
			t.Fatal(err)
		}
		// Nothing is lost behind the gate, and its end is heard of at once. The one
		// that was answered with 429 has an hour of its own.
		for _, event := range events[1:] {
			b.ended(event)
		}
	})

	t.Run("WhatClosedAndOpenedAGateIsKept", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, answer(200))
		w := b.hook(r.URL)
		history := func() (events []string) {
			rows, err := b.db.Query(t.Context(), `SELECT event || ' ' || cause FROM fairhook.lane_events WHERE webhook_id = $1 ORDER BY at`, w.ID)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			for rows.Next() {
				var text string
				if err := rows.Scan(&text); err != nil {
					t.Fatal(err)
				}
				events = append(events, text)
			}
			return events
		}
		for _, state := range []webhook.State{webhook.StatePaused, webhook.StatePaused, webhook.StateActive} {
			if _, err := postgres.SetWebhookState(t.Context(), b.db, w.ID, state); err != nil {
				t.Fatal(err)
			}
		}
		now := b.clock.Now()
		for _, change := range []postgres.GateChange{
			{WebhookID: w.ID, Cause: postgres.GateReceiver, At: now, Until: now.Add(time.Minute), StartedAt: now.Add(-time.Second)},
			{WebhookID: w.ID, StartedAt: now.Add(time.Second), At: now.Add(time.Second)},
		} {
			if err := postgres.RecordAttempts(t.Context(), b.db, nil, nil, []postgres.GateChange{change}); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{"closed paused", "opened paused", "closed receiver", "opened receiver"}
		if got := history(); !slices.Equal(got, want) {
			t.Errorf("the history is %q, want %q", got, want)
		}
	})

	t.Run("SomebodyWhoSeesToAWebhookOpensItsGate", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for name, change := range map[string]string{
			"another URL":   `UPDATE fairhook.webhooks SET url = url || '/new' WHERE id = $1`,
			"being resumed": `UPDATE fairhook.webhooks SET status = 'active' WHERE id = $1`,
		} {
			w := b.hook("http://127.0.0.1:1/")
			now := b.clock.Now()
			gate := postgres.GateChange{WebhookID: w.ID, Cause: postgres.GateBreaker, At: now, Until: now.Add(time.Hour), StartedAt: now}
			if err := postgres.RecordAttempts(t.Context(), b.db, nil, nil, []postgres.GateChange{gate}); err != nil {
				t.Fatal(err)
			}
			closed := func() int { return b.count(`SELECT count(*) FROM fairhook.lane_gates WHERE webhook_id = $1`, w.ID) }
			for _, other := range []string{`UPDATE fairhook.webhooks SET description = 'x' WHERE id = $1`, `UPDATE fairhook.webhooks SET status = 'paused' WHERE id = $1`} {
				if _, err := b.db.Exec(t.Context(), other, w.ID); err != nil {
					t.Fatal(err)
				}
			}
			if closed() != 1 {
				t.Error("a change that says nothing about the receiver opened the gate")
			}
			if _, err := b.db.Exec(t.Context(), change, w.ID); err != nil {
				t.Fatal(err)
			}
			if closed() != 0 {
				t.Errorf("the gate stays closed after %s", name)
			}
		}
	})

	t.Run("AGateGrowsLongerWithEachInARowAndASuccessEndsTheRow", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		id := webhook.NewID(b.clock.Now())
		now := b.clock.Now()
		record := func(changes ...postgres.GateChange) {
			t.Helper()
			for i := range changes {
				changes[i].WebhookID = id
			}
			if err := postgres.RecordAttempts(t.Context(), b.db, nil, nil, changes); err != nil {
				t.Fatal(err)
			}
		}
		inARow := func() int { return b.count(`SELECT coalesce(max(in_a_row), 0) FROM fairhook.lane_gates`) }
		first := postgres.GateChange{Cause: postgres.GateReceiver, At: now, Until: now.Add(5 * time.Second), StartedAt: now.Add(-time.Second)}
		record(first)
		record(first) // a commit whose answer was lost is repeated
		if n := inARow(); n != 1 {
			t.Fatalf("%d gates in a row, want 1: what was under way says nothing new", n)
		}
		record(postgres.GateChange{Cause: postgres.GateReceiver, At: now.Add(7 * time.Second), Until: now.Add(17 * time.Second), StartedAt: now.Add(6 * time.Second)})
		if n := inARow(); n != 2 {
			t.Fatalf("%d gates in a row, want 2", n)
		}
		record(postgres.GateChange{At: now.Add(8 * time.Second), StartedAt: now.Add(6500 * time.Millisecond)})
		if n := inARow(); n != 2 {
			t.Fatal("a success that was under way when the gate closed opened it")
		}
		record(postgres.GateChange{At: now.Add(19 * time.Second), StartedAt: now.Add(18 * time.Second)})
		if n := inARow(); n != 0 {
			t.Fatal("a success did not end the row")
		}
	})
}

func TestBreakerKeepsTheQueue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var (
		broken   atomic.Bool
		probing  atomic.Bool
		probes   atomic.Int32
		released = make(chan struct{})
	)
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, req *http.Request) {
		if probing.Load() {
			probes.Add(1)
			select {
			case <-released:
			case <-req.Context().Done():
			}
		}
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	registries := b.startMany(2, func(c *Config) { c.Breaker = limit.BreakerConfig{Attempts: 10} })
	w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight, w.TimeoutSeconds, w.RetrySchedule = 4, 60, []int{3600} })
	events := b.submit(w, 200)
	b.eventually("the breaker is open for all, and nothing is under way", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'running'`) == 0 &&
			b.count(`SELECT count(*) FROM fairhook.lane_gates WHERE cause = 'breaker'`) == 1 &&
			b.gauge(registries[0], "fairhook_lanes_gated") == 1 && b.gauge(registries[1], "fairhook_lanes_gated") == 1
	})
	spent := r.count()
	if spent > 30 {
		t.Errorf("%d attempts were spent before the breaker opened", spent)
	}
	if n := b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'available'`); n != len(events)-spent {
		t.Errorf("%d deliveries wait unchanged, want %d", n, len(events)-spent)
	}

	probing.Store(true)
	b.eventually("a probe is sent", func() bool { return probes.Load() > 0 })
	b.eventually("both dispatchers know that one is on its way", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.lane_gates WHERE probe_until > now()`) == 1
	})
	if n := probes.Load(); n != 1 {
		t.Errorf("%d probes are under way, want 1", n)
	}
	released <- struct{}{}
	b.eventually("the failed probe closes the gate for longer", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.lane_gates WHERE in_a_row = 2 AND until > closed_at + interval '7 seconds'`) == 1
	})
	if n := probes.Load(); n != 1 {
		t.Errorf("%d probes were sent, want 1", n)
	}

	broken.Store(false)
	close(released)
	// The next probe is due in ten seconds; by hand they have passed.
	if _, err := b.db.Exec(t.Context(), `UPDATE fairhook.lane_gates SET until = now(), closed_at = closed_at - interval '10 seconds'`); err != nil {
		t.Fatal(err)
	}
	b.eventually("the queue goes on", func() bool {
		return b.count(`SELECT count(*) FROM fairhook.attempts WHERE status = 'delivered'`) >= len(events)-spent-1
	})
	if n := b.count(`SELECT count(*) FROM fairhook.lane_gates`); n != 0 {
		t.Error("the gate is still there after a success")
	}
	for _, want := range []string{"closed", "probing", "opened"} {
		if b.count(`SELECT count(*) FROM fairhook.lane_events WHERE cause = 'breaker' AND event = $1`, want) == 0 {
			t.Errorf("the history does not say that the breaker %s", want)
		}
	}
}

func TestDispatchersKeepToLimitsTogether(t *testing.T) {
	t.Parallel()

	t.Run("ACapThatIsSmallerThanTheirNumberHolds", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newCrowd(t, 5*time.Millisecond)
		b.startMany(3)
		for _, event := range b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 1 }), 100) {
			b.ended(event)
		}
		if n := r.most.Load(); n > 1 {
			t.Errorf("%d requests at once, the cap is 1", n)
		}
	})

	t.Run("ALaneGoesToAnotherWhenItsOwnerStops", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newCrowd(t, 0)
		processes := []*process{b.start(), b.start(), b.start()}
		b.eventually("all know of each other", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.instances`) == 3
		})
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 1 })
		for _, p := range processes[:2] {
			for _, event := range b.submit(w, 20) {
				b.ended(event)
			}
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
		}
		for _, event := range b.submit(w, 20) {
			b.ended(event)
		}
		if n := r.most.Load(); n > 1 {
			t.Errorf("%d requests at once, the cap is 1", n)
		}
	})

	t.Run("ACapHoldsWhenFewerDispatchersShareItAgain", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newCrowd(t, 50*time.Millisecond)
		registries := b.startMany(2)
		third := b.start()
		for _, reg := range registries {
			b.eventually("all three know of each other", func() bool { return b.gauge(reg, "fairhook_dispatchers_alive") == 3 })
		}
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 2 })
		b.submit(w, 5000)
		b.eventually("one of them owns the lane", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.lane_owners WHERE until > now()`) == 1 && r.count() > 10
		})
		if err := third.stop(); err != nil {
			t.Fatal(err)
		}
		for _, reg := range registries {
			b.eventually("two are left", func() bool { return b.gauge(reg, "fairhook_dispatchers_alive") == 2 })
		}
		b.eventually("both work the lane", func() bool {
			return b.count(`SELECT count(DISTINCT instance) FROM fairhook.attempts WHERE started_at > now() - interval '300 milliseconds'`) == 2
		})
		at := r.count()
		b.eventually("some more are delivered", func() bool { return r.count() > at+50 })
		if n := r.most.Load(); n > 2 {
			t.Errorf("%d requests at once, the cap is 2", n)
		}
	})

	t.Run("ALaneIsNotKeptByADispatcherThatDrains", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		release := make(chan struct{})
		hanging := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) {
			select {
			case <-release:
			case <-req.Context().Done():
			}
		})
		leaving := b.start()
		slow := b.hook(hanging.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 60 })
		b.submit(slow, 1)
		b.eventually("a request holds up the drain", func() bool { return hanging.count() == 1 })
		r := newCrowd(t, 0)
		var hooks []webhook.ID
		reg := prometheus.NewRegistry()
		staying := b.start(func(c *Config) { c.Registerer = reg })
		third := b.start()
		b.eventually("all know of each other", func() bool { return b.gauge(reg, "fairhook_dispatchers_alive") == 3 })
		for range 12 {
			w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 1 })
			hooks = append(hooks, w.ID)
			b.submit(w, 300)
		}
		owned := func() int {
			return b.count(`SELECT count(*) FROM fairhook.lane_owners WHERE owner = $1 AND until > now()`, leaving.cfg.Instance)
		}
		b.eventually("it owns some lanes", func() bool { return owned() > 0 })
		stopped := make(chan error, 1)
		go func() { stopped <- leaving.stop() }()
		b.within(5*time.Second, "its lanes are given up, and go on", func() bool {
			return owned() == 0 && b.count(`SELECT count(DISTINCT webhook_id) FROM fairhook.attempts
				WHERE instance IN ($1, $2) AND webhook_id = ANY ($3)`, staying.cfg.Instance, third.cfg.Instance, hooks) == len(hooks)
		})
		close(release)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})

	t.Run("ARateHoldsOverAnyTenSecondsAndIsUsed", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var (
			mu    sync.Mutex
			times []time.Time
		)
		r := newReceiver(t, func(http.ResponseWriter, *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now())
		})
		b.startMany(2)
		const rate, n = 40, 520
		events := b.submit(b.hook(r.URL, func(w *webhook.Webhook) { w.RatePerSecond = new(float64(rate)) }), n)
		for _, event := range events {
			b.endedWithin(event, 3*testWait)
		}
		mu.Lock()
		defer mu.Unlock()
		slices.SortFunc(times, time.Time.Compare)
		for i, from := range times {
			end := i
			for end < len(times) && times[end].Sub(from) < 10*time.Second {
				end++
			}
			if got := end - i; float64(got) > 1.05*10*rate {
				t.Fatalf("%d requests in 10 s, the rate is %d a second", got, rate)
			}
		}
		if took := times[n-1].Sub(times[0]).Seconds(); n/took < 0.9*rate {
			t.Errorf("%d requests took %.1f s: %.1f a second, the rate is %d", n, took, n/took, rate)
		}
	})

	t.Run("AHostsLimitHoldsOverAllItsWebhooks", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r, other := newCrowd(t, 5*time.Millisecond), newCrowd(t, 0)
		b.startMany(2, func(c *Config) { c.MaxPerHost = 4 })
		var events []webhook.ID
		for range 5 {
			events = append(events, b.submit(b.hook(r.URL), 30)...)
		}
		for _, event := range b.submit(b.hook(other.URL), 50) {
			b.ended(event) // while the other host is at its limit
		}
		for _, event := range events {
			b.ended(event)
		}
		if n := r.most.Load(); n > 4 {
			t.Errorf("%d requests at once, the host's limit is 4", n)
		}
	})

	t.Run("AnOverloadedWebhookGetsFewerRequestsAtOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		})
		registries := b.startMany(1)
		b.submit(b.hook(r.URL), 20)
		b.eventually("it is slowed down", func() bool { return b.gauge(registries[0], "fairhook_lanes_slowed") == 1 })
	})
}

func TestLaneLimit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	gate := func(cause postgres.GateCause, until time.Duration) *postgres.Gate {
		return &postgres.Gate{Cause: cause, Until: now.Add(until), InARow: 1, ClosedAt: now.Add(-time.Minute)}
	}
	for name, c := range map[string]struct {
		change func(*postgres.WebhookLimit)
		want   func(*fairqueue.Limit)
		need   laneNeed
	}{
		"AnActiveWebhook": {},
		"APausedOneIsGatedWhateverItsGate": {
			func(w *postgres.WebhookLimit) { w.State, w.Gate = webhook.StatePaused, gate(postgres.GateBreaker, 0) },
			func(l *fairqueue.Limit) { l.Gated = true }, needNothing,
		},
		"AClosedGateStaysClosedUntilItsTime": {
			func(w *postgres.WebhookLimit) { w.Gate = gate(postgres.GateReceiver, time.Second) },
			func(l *fairqueue.Limit) { l.GateUntil = now.Add(time.Second) }, needNothing,
		},
		"AReceiversGateOpensForAllWhenItsTimeIsOver": {
			func(w *postgres.WebhookLimit) { w.Gate = gate(postgres.GateReceiver, 0) }, nil, needNothing,
		},
		"ABreakersGateOpensForAProbe": {
			func(w *postgres.WebhookLimit) { w.Gate = gate(postgres.GateBreaker, 0) }, nil, needProbe,
		},
		"ACapBelowTheNumberOfDispatchersNeedsAnOwner": {
			func(w *postgres.WebhookLimit) { w.MaxInFlight = 2 },
			func(l *fairqueue.Limit) { l.MaxInFlight = 2 }, needOwner,
		},
		"ARateAndAHostAreTakenOver": {
			func(w *postgres.WebhookLimit) {
				w.RatePerSecond, w.Burst, w.URL = new(2.5), new(7), "https://EXAMPLE.com:8443/hook"
			},
			func(l *fairqueue.Limit) { l.RatePerSecond, l.Burst, l.Host = 2.5, 7, "example.com:8443" }, needNothing,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := postgres.WebhookLimit{URL: "https://example.com/", State: webhook.StateActive, MaxInFlight: 3, Weight: 1}
			want := fairqueue.Limit{MaxInFlight: 3, Weight: 1, Host: "example.com:443"}
			if c.change != nil {
				c.change(&w)
			}
			if c.want != nil {
				c.want(&want)
			}
			if got, need := laneLimit(&w, now, 3); got != want || need != c.need {
				t.Errorf("%+v, need %d, want %+v, need %d", got, need, want, c.need)
			}
		})
	}
}

// TestLookAtALane holds what is decided of a lane before anything is claimed, for a
// dispatcher that joined long ago or a moment ago.
func TestLookAtALane(t *testing.T) {
	t.Parallel()
	const me, sharers = "me", 2
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	longAgo, lately := now.Add(-joinMemory), now.Add(-2*time.Second)
	for name, c := range map[string]struct {
		owner         string
		until, joined time.Time
		wantShare     bool
		wantGate      time.Time
		wantCounted   time.Time
	}{
		"NothingIsCountedOnceAllKnowOfIt":                      {joined: longAgo},
		"WhatOthersFetchedBeforeItJoinedIsCounted":             {joined: lately, wantCounted: lately},
		"WhatAnOwnerFetchedBeforeItSharedIsCounted":            {owner: "other", until: lately, joined: longAgo, wantCounted: lately},
		"OfBothTheLaterMomentCountsAndSoTheSmallerBound":       {owner: "other", until: lately.Add(time.Second), joined: lately, wantCounted: lately.Add(time.Second)},
		"OfBothTheLaterMomentCountsWhicheverItIs":              {owner: "other", until: lately.Add(-time.Second), joined: lately, wantCounted: lately},
		"AnOwnerWhoseLeaseGoesOnIsWaitedFor":                   {owner: "other", until: now.Add(time.Second), joined: lately, wantGate: now.Add(time.Second)},
		"ItsOwnLeaseIsGivenUp":                                 {owner: me, until: now.Add(time.Second), joined: longAgo, wantShare: true},
		"ItsOwnLeaseThatHasEndedIsNotGivenUpAgain":             {owner: me, until: lately, joined: longAgo},
		"WhatItFetchedItselfIsNotCountedAsWhatAnOwnerFetched":  {owner: me, until: now, joined: longAgo},
		"AnOwnerOfLongAgoHasNothingUnderWay":                   {owner: "other", until: longAgo, joined: longAgo},
		"ALeaseOfItsOwnIsGivenUpAndWhatOthersFetchedIsCounted": {owner: me, until: now.Add(time.Second), joined: lately, wantShare: true, wantCounted: lately},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &postgres.WebhookLimit{State: webhook.StateActive, MaxInFlight: 10, Owner: c.owner, OwnedUntil: c.until}
			got := lookAt(w, me, c.joined, now, sharers)
			if got.share != c.wantShare || !got.limit.GateUntil.Equal(c.wantGate) || !got.counted.Equal(c.wantCounted) {
				t.Errorf("share %t, gate until %s, counted before %s", got.share, got.limit.GateUntil, got.counted)
			}
		})
	}

	t.Run("ANewOwnerBeginsWhenWhatOthersAskedForCanBeCounted", func(t *testing.T) {
		t.Parallel()
		end := now.Add(time.Minute)
		for _, c := range []struct {
			before  bool
			sharers int
			want    time.Time
		}{{false, 2, now.Add(lookAgain)}, {true, 2, time.Time{}}, {false, 1, time.Time{}}} {
			if got := owning(fairqueue.Limit{}, c.before, end, now, c.sharers); !got.Owned || !got.GateUntil.Equal(c.want) || !got.Until.Before(end) {
				t.Errorf("of %d dispatchers, owner before %t: %+v", c.sharers, c.before, got)
			}
		}
	})
}

func TestHostExcess(t *testing.T) {
	t.Parallel()
	got := hostExcess([]fairqueue.Elsewhere{
		{URL: "https://a.example/1", Holder: "x", Running: 3},
		{URL: "https://A.example/2", Holder: "x", Running: 4}, // the same host
		{URL: "https://a.example/2", Holder: "y", Running: 5}, // no more than its part
		{URL: "https://b.example/", Holder: "y", Running: 6},
		{URL: "::", Holder: "y", Running: 60},
	}, 5)
	if want := map[string]int{"a.example:443": 2, "b.example:443": 1}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestALimitLeavesOthersWhatTheyHave(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	again := now.Add(lookAgain)
	ten := fairqueue.Limit{MaxInFlight: 10}
	one := fairqueue.Limit{MaxInFlight: 1, Owned: true, Until: now.Add(time.Minute)}
	for name, c := range map[string]struct {
		got, want fairqueue.Limit
	}{
		"ItsPartWhenTheOthersHaveTheirs":    {besideOthers(ten, []int{5}, 2, now), ten},
		"ItsPartWhenTheOthersHaveLess":      {besideOthers(ten, []int{1}, 3, now), ten},
		"WhatIsLeftWhenOneHasMore":          {besideOthers(ten, []int{7}, 2, now), fairqueue.Limit{MaxInFlight: 10, MaxHere: 3, Until: again}},
		"WhatIsLeftBesideOneWithLess":       {besideOthers(ten, []int{5, 1}, 3, now), fairqueue.Limit{MaxInFlight: 10, MaxHere: 2, Until: again}},
		"NothingForAMomentWhenTheyHaveAll":  {besideOthers(ten, []int{12}, 2, now), fairqueue.Limit{MaxInFlight: 10, GateUntil: again, Until: again}},
		"AnOwnerHasAllWhenNobodyIsLeft":     {ownedBeside(one, nil, now), one},
		"AnOwnerWaitsForThoseBefore":        {ownedBeside(one, []int{1}, now), fairqueue.Limit{MaxInFlight: 1, Owned: true, GateUntil: again, Until: again}},
		"AnOwnersLeaseThatEndsSoonerCounts": {ownedBeside(fairqueue.Limit{MaxInFlight: 2, Owned: true, Until: now}, []int{1}, now), fairqueue.Limit{MaxInFlight: 2, Owned: true, MaxHere: 1, Until: now}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.got != c.want {
				t.Errorf("%+v, want %+v", c.got, c.want)
			}
		})
	}
}

// TestACapThatBecomesTooSmallToDivideHoldsWhileDispatchersJoin has dispatchers join one
// that works a webhook of which only one may send.
func TestACapThatBecomesTooSmallToDivideHoldsWhileDispatchersJoin(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newCrowd(t, 20*time.Millisecond)
	b.start()
	w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight = 1 })
	b.submit(w, 2000)
	for n := range 2 {
		at := r.count()
		b.eventually("it is worked", func() bool { return r.count() > at+20 })
		b.start()
		b.eventually("the lane has an owner", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.lane_owners WHERE until > now()`) == 1
		})
		at = r.count()
		b.eventually(fmt.Sprintf("it is worked beside %d others", n+1), func() bool { return r.count() > at+50 })
	}
	if n := r.most.Load(); n > 1 {
		t.Errorf("%d requests at once, the cap is 1", n)
	}
}

// TestAHostsLimitHoldsWhileADispatcherJoins is TestACapHoldsWhileADispatcherJoins for the
// limit that webhooks of one host share.
func TestAHostsLimitHoldsWhileADispatcherJoins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const limit = 6
	var now, most atomic.Int32
	release := make(chan struct{})
	r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for {
			seen := most.Load()
			if n <= seen || most.CompareAndSwap(seen, n) {
				break
			}
		}
		select {
		case <-release:
		case <-req.Context().Done():
		}
	})
	host := func(c *Config) { c.MaxPerHost = limit }
	b.start(host)
	var events []webhook.ID
	for range 3 {
		w := b.hook(r.URL, func(w *webhook.Webhook) { w.TimeoutSeconds = 60 })
		events = append(events, b.submit(w, 20)...)
	}
	b.eventually("the first sends all that it may", func() bool { return now.Load() == limit })
	b.start(host)
	// A lane of another host shows that the second fetches.
	other := newReceiver(t, answer(200))
	free := b.hook(other.URL)
	b.eventually("the second works", func() bool {
		b.submit(free, 20)
		return b.count(`SELECT count(DISTINCT instance) FROM fairhook.attempts WHERE webhook_id = $1`, free.ID) == 2
	})
	if n := most.Load(); n > limit {
		t.Errorf("%d requests at once while the first holds all, the host's limit is %d", n, limit)
	}
	close(release)
	for _, event := range events {
		b.ended(event)
	}
	if n := most.Load(); n > limit {
		t.Errorf("%d requests at once, the host's limit is %d", n, limit)
	}
}

// TestACapHoldsWhileADispatcherJoins has a second dispatcher join while the first
// holds all that a webhook's cap allows, in requests that take longer than the
// join waits.
func TestACapHoldsWhileADispatcherJoins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const inFlight = 6
	var now, most atomic.Int32
	release := make(chan struct{})
	r := newReceiver(t, func(_ http.ResponseWriter, req *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for {
			seen := most.Load()
			if n <= seen || most.CompareAndSwap(seen, n) {
				break
			}
		}
		select {
		case <-release:
		case <-req.Context().Done():
		}
	})
	b.start()
	w := b.hook(r.URL, func(w *webhook.Webhook) { w.MaxInFlight, w.TimeoutSeconds = inFlight, 60 })
	events := b.submit(w, 40)
	b.eventually("the first holds all that it may", func() bool { return now.Load() == inFlight })
	reg := prometheus.NewRegistry()
	b.start(func(c *Config) { c.Registerer = reg })
	b.eventually("the second has found that nothing is left for it", func() bool { return b.gauge(reg, "fairhook_lanes_gated") == 1 })
	close(release)
	for _, event := range events {
		b.ended(event)
	}
	if n := most.Load(); n > inFlight {
		t.Errorf("%d requests at once, the cap is %d", n, inFlight)
	}
}

func TestJudgeGate(t *testing.T) {
	t.Parallel()
	closedAt := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before, after, ended := closedAt.Add(-time.Second), closedAt.Add(6*time.Second), closedAt.Add(7*time.Second)
	const rest = 30 * time.Second
	for name, c := range map[string]struct {
		cause   postgres.GateCause // of the gate that is known; empty: none
		reason  webhook.Reason
		rest    time.Duration
		opened  bool
		started time.Time
		want    string
	}{
		"ASuccessWithoutAGateDoesNothing":                    {"", webhook.ReasonDelivered, 0, false, after, "nothing"},
		"AFailureWithoutAGateDoesNothing":                    {"", webhook.ReasonServerError, 0, false, after, "nothing"},
		"AReceiverThatAsksForRestGetsIt":                     {"", webhook.ReasonRateLimited, rest, false, after, "receiver 30s"},
		"ABreakerThatOpensClosesTheGate":                     {"", webhook.ReasonTimeout, 0, true, after, "breaker 5s"},
		"ASuccessCanBeWhatMakesTheAttemptsEnoughToOpen":      {"", webhook.ReasonDelivered, 0, true, after, "breaker 5s"},
		"ABreakerThatOpensKeepsALongerRest":                  {"", webhook.ReasonBadGateway, rest, true, after, "breaker 30s"},
		"ASuccessAfterAReceiversGateEndsTheRow":              {postgres.GateReceiver, webhook.ReasonDelivered, 0, false, after, "open"},
		"ASuccessThatWasUnderWayDoesNotOpenAGate":            {postgres.GateBreaker, webhook.ReasonDelivered, 0, false, before, "nothing"},
		"AProbeThatSucceedsOpensTheBreakersGate":             {postgres.GateBreaker, webhook.ReasonDelivered, 0, false, after, "open"},
		"AProbeThatFailsClosesItForLonger":                   {postgres.GateBreaker, webhook.ReasonConnect, 0, false, after, "breaker 10s"},
		"AProbeThatIsAskedForRestWaitsAsTheReceiverSays":     {postgres.GateBreaker, webhook.ReasonRateLimited, rest, false, after, "breaker 30s"},
		"AnAnswerThatWasUnderWayBelongsToTheGate":            {postgres.GateReceiver, webhook.ReasonUnavailable, courier.MinGate - 7*time.Second, false, before, "nothing"},
		"AnAnswerThatWasUnderWayCanMakeTheGateLonger":        {postgres.GateReceiver, webhook.ReasonRateLimited, rest, false, before, "receiver 30s"},
		"OurProxyIsNamedAsTheCauseOfItsOwnFailure":           {"", webhook.ReasonProxy, rest, false, after, "proxy 30s"},
		"ATokenEndpointIsNamedAsTheCauseOfItsOwnFailure":     {"", webhook.ReasonAuthUnavailable, rest, false, after, "auth 30s"},
		"ATokenEndpointsFailureIsNoFailedProbe":              {postgres.GateBreaker, webhook.ReasonAuthUnavailable, rest, false, after, "breaker 30s"},
		"CredentialsThatAreRefusedAreAFailedProbe":           {postgres.GateBreaker, webhook.ReasonAuthRejected, 0, false, after, "breaker 10s"},
		"AFailureOfOursIsNoFailedProbe":                      {postgres.GateBreaker, webhook.ReasonInternalError, 0, false, after, "nothing"},
		"ASuccessOfSomebodyWhoHadNotHeardDoesNotOpenAGate":   {postgres.GateBreaker, webhook.ReasonDelivered, 0, false, closedAt.Add(postgres.GateHeard), "nothing"},
		"AFailureOfSomebodyWhoHadNotHeardIsNoFailedProbe":    {postgres.GateBreaker, webhook.ReasonServerError, 0, false, closedAt.Add(postgres.GateHeard), "nothing"},
		"TheBreakerOpensOnWhatWasUnderWayWhenAReceiverAsked": {postgres.GateReceiver, webhook.ReasonTimeout, 0, true, before, "breaker 5s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gate := postgres.Gate{Cause: c.cause, InARow: 1, ClosedAt: closedAt, Until: closedAt.Add(courier.MinGate)}
			change, closed := judgeGate(gate, c.cause != "", c.reason, c.rest, c.opened, c.started, ended, 0)
			got := "nothing"
			switch {
			case change == nil:
			case closed:
				got = fmt.Sprintf("%s %s", change.Cause, change.Until.Sub(ended))
			default:
				got = "open"
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestEveryReasonHasASayForTheBreakerAndThePace holds the two decisions to the
// closed set: only a delivery is good, and what overloads is bad or asks for rest.
func TestEveryReasonHasASayForTheBreakerAndThePace(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := rapid.SampledFrom(webhook.Reasons()).Draw(t, "reason")
		good := r == webhook.ReasonDelivered
		if (breakerVote(r) == breakerGood) != good || (paceSignal(r) == fairqueue.SignalHealthy) != good {
			t.Fatalf("%s: breaker %d, pace %d", r, breakerVote(r), paceSignal(r))
		}
		if paceSignal(r) == fairqueue.SignalOverload && breakerVote(r) == breakerGood {
			t.Fatalf("%s overloads and is good", r)
		}
	})
}

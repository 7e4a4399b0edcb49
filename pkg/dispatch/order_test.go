package dispatch

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// strict makes a webhook one in strict order.
func strict(w *webhook.Webhook) { w.Ordering = webhook.OrderingStrict }

// byKey makes a webhook one ordered by key.
func byKey(w *webhook.Webhook) { w.Ordering = webhook.OrderingKey }

// submitKeyed accepts an event with an ordering key, which may be empty, in a
// transaction of its own, and returns its id.
func (b *testBundle) submitKeyed(w *webhook.Webhook, key string) webhook.ID {
	b.t.Helper()
	event := postgres.NewEvent{Event: webhook.Event{
		ID: webhook.NewID(b.clock.Now()), Tenant: w.Tenant, Type: "order.paid", Payload: []byte(`{"a": 1}`),
		ContentType: webhook.ContentTypeJSON, OrderingKey: key, WebhookIDs: []webhook.ID{w.ID},
	}}
	acceptor := postgres.NewAcceptor(postgres.JobInsert{
		SQL: fairqueue.InsertSQL, Channel: fairqueue.NotifyChannel, Notifications: fairqueue.Notifications,
	})
	if _, err := acceptor.Accept(b.t.Context(), b.db, []*postgres.NewEvent{&event}, time.Second); err != nil {
		b.t.Fatal(err)
	}
	return event.ID
}

// sequence is a receiver that remembers in which order events first succeeded.
type sequence struct {
	*receiver
	mu sync.Mutex
	// succeeded are the ids in that order; under way at most most requests at once.
	succeeded []webhook.ID
	now, most int
}

// newSequence makes one that answers as answer says, given the id and how many requests
// came for it before.
func newSequence(t *testing.T, answer func(id webhook.ID, before int) int) *sequence {
	s := &sequence{}
	tries := map[webhook.ID]int{}
	s.receiver = newReceiver(t, func(w http.ResponseWriter, req *http.Request) {
		id, err := webhook.ParseID(req.Header.Get("webhook-id"))
		if err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		s.now++
		s.most = max(s.most, s.now)
		before := tries[id]
		tries[id]++
		s.mu.Unlock()
		status := answer(id, before)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now--
		if status == 200 && !slices.Contains(s.succeeded, id) {
			s.succeeded = append(s.succeeded, id)
		}
		w.WriteHeader(status)
	})
	return s
}

func (s *sequence) got() []webhook.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.succeeded)
}

// wantOrder waits for all events to have succeeded, and holds the receiver to their
// order.
func (b *testBundle) wantOrder(s *sequence, want []webhook.ID) {
	b.t.Helper()
	b.within(3*testWait, fmt.Sprintf("all %d events have succeeded", len(want)), func() bool { return len(s.got()) >= len(want) })
	if got := s.got(); !slices.Equal(got, want) {
		for i := range want {
			if got[i] != want[i] {
				b.t.Fatalf("event %d to succeed is not the %dth that was accepted", i, i)
			}
		}
	}
}

func fine(webhook.ID, int) int { return http.StatusOK }

// failsAtFirst fails some events, as chance has it, once before they succeed.
func failsAtFirst(id webhook.ID, before int) int {
	if before < int(id[15]%4)-2 {
		return http.StatusInternalServerError
	}
	return http.StatusOK
}

// quick is a schedule with which tests need not wait long.
func quick(w *webhook.Webhook) { w.RetrySchedule = []int{1, 1, 1, 1} }

func noBreaker(c *Config) { c.NoBreaker = true }

func TestStrictOrder(t *testing.T) {
	t.Parallel()

	t.Run("DeliversOneAtATimeInTheOrderOfAcceptance", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, fine)
		b.startMany(3)
		events := b.submit(b.hook(s.URL, strict), 300)
		b.wantOrder(s, events)
		if s.most > 1 {
			t.Errorf("%d requests at once, want one at a time", s.most)
		}
		b.eventually("the jobs are gone", func() bool { return b.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	})

	t.Run("ADeliveryThatFailsKeepsThoseBehindItBackUntilItSucceeds", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, failsAtFirst)
		b.startMany(3, noBreaker)
		events := b.submit(b.hook(s.URL, strict, quick), 20)
		b.wantOrder(s, events)
		if s.most > 1 {
			t.Errorf("%d requests at once, want one at a time", s.most)
		}
	})

	t.Run("AHeadThatKeepsFailingBlocksUntilItIsTooOld", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var bad webhook.ID
		s := newSequence(t, func(id webhook.ID, _ int) int {
			if id == bad {
				return http.StatusBadRequest
			}
			return http.StatusOK
		})
		w := b.hook(s.URL, strict, func(w *webhook.Webhook) { w.RetrySchedule, w.MaxAgeSeconds = []int{1}, 4 })
		events := append(b.submit(w, 1), b.submit(w, 1)...)
		bad = events[0]
		b.start()
		attempts := b.ended(bad)
		if last := attempts[len(attempts)-1]; last.Status != webhook.StatusExhausted || len(attempts) < 3 {
			t.Errorf("%d attempts, the last %s, want more than the schedule of one wait allows, and exhausted", len(attempts), last.Status)
		}
		after := b.ended(events[1])
		if after[0].StartedAt.Before(attempts[len(attempts)-1].StartedAt) {
			t.Error("the next was sent before the head had ended")
		}
	})

	t.Run("AHeadIsSkippedAfterItsAttemptsAndThatIsOnRecord", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var bad webhook.ID
		s := newSequence(t, func(id webhook.ID, _ int) int {
			if id == bad {
				return http.StatusBadRequest
			}
			return http.StatusOK
		})
		w := b.hook(s.URL, strict, quick, func(w *webhook.Webhook) { w.OrderingSkipAfter = new(2) })
		events := append(b.submit(w, 1), b.submit(w, 3)...)
		bad = events[0]
		b.start()
		attempts := b.ended(bad)
		if len(attempts) != 3 {
			t.Fatalf("%d attempts, want 2 and the record of the end", len(attempts))
		}
		for i, want := range []webhook.Reason{webhook.ReasonClientError, webhook.ReasonClientError, webhook.ReasonSkipped} {
			if attempts[i].Reason != want || (attempts[i].Status == webhook.StatusExhausted) != (i == 2) {
				t.Errorf("attempt %d: %s, %s, want %s", i+1, attempts[i].Reason, attempts[i].Status, want)
			}
		}
		b.wantOrder(s, events[1:])
		b.eventually("River has discarded the job", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'discarded'`) == 1
		})
	})

	t.Run("AHeadThatIsSkippedAndClosesTheGateHasNobodySentAfterIt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var asked atomic.Int32
		r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.WriteHeader(http.StatusBadGateway)
		})
		w := b.hook(r.URL, strict, func(w *webhook.Webhook) { w.OrderingSkipAfter, w.RetrySchedule = new(1), []int{3600} })
		events := b.submit(w, 3)
		b.start()
		b.ended(events[0])
		// What follows would go out with River's next fetch, which is long over when the
		// gate's time begins to run out.
		b.eventually("the gate is half way through", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.lane_gates WHERE until < now() + interval '2.5 seconds'`) == 1
		})
		if n := asked.Load(); n != 1 {
			t.Errorf("%d requests were made, with the gate closed after the first", n)
		}
	})

	t.Run("AHeadThatIsCancelledByHandLetsThoseBehindItGoOn", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var bad webhook.ID
		s := newSequence(t, func(id webhook.ID, _ int) int {
			if id == bad {
				return http.StatusBadRequest
			}
			return http.StatusOK
		})
		w := b.hook(s.URL, strict, func(w *webhook.Webhook) { w.RetrySchedule = []int{3600} })
		events := append(b.submit(w, 1), b.submit(w, 3)...)
		bad = events[0]
		p := b.start()
		b.eventually("the head waits for its retry", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.river_job WHERE state = 'retryable'`) == 1
		})
		var head int64
		if err := b.db.QueryRow(t.Context(), `SELECT min(id) FROM fairhook.river_job`).Scan(&head); err != nil {
			t.Fatal(err)
		}
		if _, err := p.client.JobCancel(t.Context(), head); err != nil {
			t.Fatal(err)
		}
		b.wantOrder(s, events[1:])
		if a := b.ended(bad); a[len(a)-1].Reason != webhook.ReasonCancelled {
			t.Errorf("the head ended as %s", a[len(a)-1].Reason)
		}
	})

	t.Run("GoesOnInOrderWhenItsOwnerStops", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, fine)
		processes := []*process{b.start(), b.start()}
		w := b.hook(s.URL, strict)
		events := b.submit(w, 2000)
		b.eventually("some are delivered", func() bool { return len(s.got()) > 20 })
		owner := func() (id string) {
			if err := b.db.QueryRow(t.Context(), `SELECT owner FROM fairhook.lane_owners`).Scan(&id); err != nil {
				t.Fatal(err)
			}
			return id
		}()
		i := slices.IndexFunc(processes, func(p *process) bool { return p.cfg.Instance == owner })
		if err := processes[i].stop(); err != nil {
			t.Fatal(err)
		}
		b.wantOrder(s, events)
		if s.most > 1 {
			t.Errorf("%d requests at once, want one at a time", s.most)
		}
	})

	t.Run("PausingKeepsThePlaces", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, failsAtFirst)
		b.startMany(2, noBreaker)
		w := b.hook(s.URL, strict, quick)
		events := b.submit(w, 15)
		b.eventually("one is delivered", func() bool { return len(s.got()) > 0 })
		for _, state := range []webhook.State{webhook.StatePaused, webhook.StateActive} {
			if _, err := postgres.SetWebhookState(t.Context(), b.db, w.ID, state); err != nil {
				t.Fatal(err)
			}
			events = append(events, b.submit(w, 2)...)
		}
		b.wantOrder(s, events)
	})

	t.Run("KeepsToARate", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, fine)
		b.startMany(2)
		w := b.hook(s.URL, strict, func(w *webhook.Webhook) { w.RatePerSecond = new(20.0) })
		started := time.Now()
		events := b.submit(w, 60)
		b.wantOrder(s, events)
		if took := time.Since(started); took < 2*time.Second {
			t.Errorf("60 deliveries at 20/s took %s", took)
		}
	})

	t.Run("AProbeOfTheBreakerIsTheHead", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, failsAtFirst)
		b.startMany(2)
		w := b.hook(s.URL, strict, quick)
		now := b.clock.Now()
		gate := postgres.GateChange{WebhookID: w.ID, Cause: postgres.GateBreaker, At: now, Until: now.Add(time.Second), StartedAt: now}
		if err := postgres.RecordAttempts(t.Context(), b.db, nil, nil, []postgres.GateChange{gate}); err != nil {
			t.Fatal(err)
		}
		b.wantOrder(s, b.submit(w, 10))
	})

	t.Run("AWebhookThatIsDeletedEndsWhatWaited", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, func(webhook.ID, int) int { return http.StatusBadRequest })
		b.start()
		w := b.hook(s.URL, strict)
		events := b.submit(w, 5)
		b.eventually("the head has failed", func() bool { return s.count() > 0 })
		if _, err := postgres.DeleteWebhook(t.Context(), b.db, w.ID); err != nil {
			t.Fatal(err)
		}
		for _, event := range events[1:] {
			if a := b.ended(event); a[len(a)-1].Reason != webhook.ReasonWebhookDeleted {
				t.Errorf("it ended as %s", a[len(a)-1].Reason)
			}
		}
	})
}

func TestOrderByKey(t *testing.T) {
	t.Parallel()

	t.Run("KeysGoSideBySideAndEachInTheOrderOfAcceptance", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		release := make(chan struct{})
		var once sync.Once
		var s *sequence
		s = newSequence(t, func(id webhook.ID, before int) int {
			s.mu.Lock()
			together := s.now == 4
			s.mu.Unlock()
			if together {
				once.Do(func() { close(release) })
			}
			select {
			case <-release: // all four keys were under way at once
			case <-time.After(testWait):
			}
			return failsAtFirst(id, before)
		})
		b.startMany(3, noBreaker)
		w := b.hook(s.URL, byKey, quick)
		want := map[string][]webhook.ID{}
		keyOf := map[webhook.ID]string{}
		for i := range 40 {
			key := fmt.Sprintf("key %d", i%4)
			id := b.submitKeyed(w, key)
			want[key], keyOf[id] = append(want[key], id), key
		}
		b.within(3*testWait, "all have succeeded", func() bool { return len(s.got()) == 40 })
		got := map[string][]webhook.ID{}
		for _, id := range s.got() {
			got[keyOf[id]] = append(got[keyOf[id]], id)
		}
		for key := range want {
			if !slices.Equal(got[key], want[key]) {
				t.Errorf("%s: not in order", key)
			}
		}
		if s.most > 4 {
			t.Errorf("%d requests at once for 4 keys", s.most)
		}
	})

	t.Run("AKeyThatIsBlockedHoldsUpNoOther", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var bad webhook.ID
		s := newSequence(t, func(id webhook.ID, _ int) int {
			if id == bad {
				return http.StatusBadRequest
			}
			return http.StatusOK
		})
		w := b.hook(s.URL, byKey, func(w *webhook.Webhook) { w.RetrySchedule = []int{3600} })
		bad = b.submitKeyed(w, "blocked")
		b.backlog(w, "blocked", 20_000)
		b.startMany(2, noBreaker)
		b.eventually("the head of the blocked key has failed", func() bool { return s.count() == 1 })
		var others []webhook.ID
		for i := range 30 {
			others = append(others, b.submitKeyed(w, fmt.Sprintf("free %d", i%3)))
		}
		others = append(others, b.submitKeyed(w, ""))
		b.eventually("all others have succeeded", func() bool { return len(s.got()) == len(others) })
		if n := s.count(); n != len(others)+1 {
			t.Errorf("%d requests, want one for each and one for the head that failed", n)
		}
	})

	t.Run("AnEventWithoutAKeyWaitsForNobody", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hold := make(chan struct{})
		s := newSequence(t, func(webhook.ID, int) int {
			<-hold
			return http.StatusOK
		})
		b.start()
		w := b.hook(s.URL, byKey)
		for range 5 {
			b.submitKeyed(w, "")
			b.submitKeyed(w, "one")
		}
		b.eventually("all without a key are under way, and one with", func() bool { return s.count() == 6 })
		close(hold)
		b.eventually("all have succeeded", func() bool { return len(s.got()) == 10 })
	})
}

// backlog puts n more deliveries of a webhook behind a key.
func (b *testBundle) backlog(w *webhook.Webhook, key string, n int) {
	b.t.Helper()
	_, err := b.db.Exec(b.t.Context(), `
		INSERT INTO fairhook.river_job (args, kind, max_attempts, priority, queue)
		SELECT jsonb_build_object('event_id', gen_random_uuid(), 'webhook_id', $1::uuid, 'ordering_key', $2::text), 'delivery', 10000, 3, $3
		FROM generate_series(1, $4)`, w.ID, key, fairqueue.Lane(w.ID), n)
	if err != nil {
		b.t.Fatal(err)
	}
}

// setOrdering changes a webhook's ordering as the API does.
func (b *testBundle) setOrdering(w *webhook.Webhook, o webhook.Ordering) {
	b.t.Helper()
	if _, err := b.db.Exec(b.t.Context(), `UPDATE fairhook.webhooks SET ordering = $2 WHERE id = $1`, w.ID, o); err != nil {
		b.t.Fatal(err)
	}
}

func TestAnOrderingIsChanged(t *testing.T) {
	t.Parallel()

	t.Run("WhatIsInFlightIsWaitedForBeforeTheFirstInOrderIsSent", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		hold := make(chan struct{})
		s := newSequence(t, func(webhook.ID, int) int {
			<-hold
			return http.StatusOK
		})
		b.startMany(2)
		w := b.hook(s.URL, func(w *webhook.Webhook) { w.MaxInFlight, w.TimeoutSeconds = 6, 60 })
		before := b.submit(w, 30)
		b.eventually("as many are in flight as may be", func() bool { return s.count() == 6 })
		b.setOrdering(w, webhook.OrderingStrict)
		after := b.submit(w, 30)
		b.eventually("a dispatcher has looked at the lane since", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.lane_owners WHERE owner <> '' AND ordering = 'changing'`) == 1
		})
		if n := s.count(); n != 6 {
			t.Errorf("%d requests, want none more while those before the change are under way", n)
		}
		close(hold)
		b.eventually("all have succeeded", func() bool { return len(s.got()) == len(before)+len(after) })
		got := s.got()[6:]
		if !slices.IsSortedFunc(got, func(x, y webhook.ID) int {
			all := slices.Concat(before, after)
			return slices.Index(all, x) - slices.Index(all, y)
		}) {
			t.Error("what was sent after the change is not in order")
		}
	})

	t.Run("ToEveryOtherOneNothingIsLost", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		s := newSequence(t, failsAtFirst)
		b.startMany(2, noBreaker)
		w := b.hook(s.URL, quick)
		n := 0
		for _, o := range []webhook.Ordering{
			webhook.OrderingStrict, webhook.OrderingKey, webhook.OrderingNone, webhook.OrderingKey, webhook.OrderingStrict, webhook.OrderingNone,
		} {
			for i := range 5 {
				b.submitKeyed(w, []string{"", "a", "b"}[i%3])
				n++
			}
			b.setOrdering(w, o)
		}
		b.within(3*testWait, "all have succeeded", func() bool { return len(s.got()) == n })
		b.eventually("the lane is as all others are", func() bool {
			return b.count(`SELECT count(*) FROM fairhook.lane_owners WHERE ordering <> 'none'`) == 0
		})
	})
}

package intake

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/webhook"
)

type groupResult struct {
	outcomes []Outcome
	err      error
}

// submitGroup submits in the background.
func (b *bundle) submitGroup(ctx context.Context, items ...Item) <-chan groupResult {
	answer := make(chan groupResult, 1)
	go func() {
		outcomes, err := b.SubmitGroup(ctx, items)
		answer <- groupResult{outcomes, err}
	}()
	return answer
}

// queueGroup submits in the background and returns when the buffer holds it.
func (b *bundle) queueGroup(items ...Item) <-chan groupResult {
	b.t.Helper()
	before, _ := b.Depth()
	answer := b.submitGroup(b.t.Context(), items...)
	b.eventually("the group is in the buffer", func() bool {
		events, _ := b.Depth()
		return events > before
	})
	return answer
}

func (b *bundle) group(answer <-chan groupResult) groupResult {
	b.t.Helper()
	select {
	case r := <-answer:
		return r
	case <-time.After(patience):
		b.t.Fatal("SubmitGroup did not return")
		return groupResult{}
	}
}

// outcomes are one word for each event: stored, replayed, or the error's code.
func (b *bundle) outcomes(answer <-chan groupResult) []string {
	b.t.Helper()
	r := b.group(answer)
	if r.err != nil {
		b.t.Fatalf("SubmitGroup: %v", r.err)
	}
	return words(r.outcomes)
}

func words(outcomes []Outcome) []string {
	var all []string
	for _, o := range outcomes {
		switch {
		case errors.Is(o.Err, ErrOutcomeUnknown):
			all = append(all, "unknown")
		case o.Err != nil:
			all = append(all, string(webhook.ErrorCode(o.Err)))
		case o.Receipt.Replayed:
			all = append(all, "replayed")
		default:
			all = append(all, "stored")
		}
	}
	return all
}

// transactions is how many transactions the stored events came in.
func (b *bundle) transactions() int {
	b.t.Helper()
	// created_at is when the transaction began.
	return query[int](b.t, b.pool, `SELECT count(DISTINCT created_at) FROM fairhook.river_job`)
}

func (b *bundle) expect(got []string, want ...string) {
	b.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.t.Errorf("outcomes %v, want %v", got, want)
	}
}

func (b *bundle) isEmpty() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.Intake.events != 0 || b.bytes != 0 || len(b.shares) != 0 || len(b.keys) != 0 || !b.Intake.queue.empty() {
		b.t.Errorf("left in the buffer: %d events, %d bytes, %d shares, %d keys", b.Intake.events, b.bytes, len(b.shares), len(b.keys))
	}
}

func repeat(n int, i Item) []Item {
	items := make([]Item, n)
	for k := range items {
		items[k] = i
	}
	return items
}

func TestSubmitGroup(t *testing.T) {
	t.Parallel()

	t.Run("StoresAllInOneTransactionHoweverManyItIs", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BatchEvents, c.BatchBytes, c.BatchDeliveries = 10, 5000, 10 }).start()
		r := b.group(b.submitGroup(t.Context(), repeat(200, item())...))
		if r.err != nil || len(r.outcomes) != 200 {
			t.Fatalf("%d outcomes, %v", len(r.outcomes), r.err)
		}
		var last webhook.ID
		for i, o := range r.outcomes {
			if o.Err != nil || string(o.Receipt.ID[:]) <= string(last[:]) {
				t.Fatalf("outcome %d is %+v, after %s", i, o, last)
			}
			last = o.Receipt.ID
		}
		if e, j, tx := b.events(), b.jobs(), b.transactions(); e != 200 || j != 200 || tx != 1 {
			t.Errorf("%d events, %d jobs, %d transactions", e, j, tx)
		}
		b.isEmpty()
	})

	t.Run("LeavesOutWhatCannotBeStoredAndKeepsTheRestTogether", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		items := repeat(50, item())
		want := make([]string, len(items))
		for i := range items {
			want[i] = "stored"
			switch {
			case i%3 == 0:
				withKey(fmt.Sprint(100-i), "body")(&items[i])
			case i == 7 || i == 8 || i == 49:
				bad(&items[i])
				want[i] = string(webhook.CodeInvalid)
			}
		}
		answer := b.queueGroup(items...)
		alone := []<-chan result{b.queue(item()), b.queue(item())}
		b.start()
		b.expect(b.outcomes(answer), want...)
		for _, a := range alone {
			b.accepted(a)
		}
		if e, j := b.events(), b.jobs(); e != 49 || j != 49 {
			t.Errorf("%d events, %d jobs", e, j)
		}
		if tx := b.transactions(); tx > 2 {
			t.Errorf("the group and what was beside it came in %d transactions", tx)
		}
		b.isEmpty()
	})

	t.Run("OfNothingSoundStoresNothing", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		b.expect(b.outcomes(b.submitGroup(t.Context(), item(bad), item(bad, withKey("k", "1")), item(bad))),
			"invalid-request", "invalid-request", "invalid-request")
		if n := query[int](t, b.pool, `SELECT (SELECT count(*) FROM fairhook.events) + (SELECT count(*) FROM fairhook.idempotency_keys)`); n != 0 {
			t.Errorf("%d rows are stored", n)
		}
		b.isEmpty()
	})

	t.Run("OfNoEventsDoesNothing", func(t *testing.T) {
		t.Parallel()
		if outcomes, err := setup(t).SubmitGroup(t.Context(), nil); len(outcomes) != 0 || err != nil {
			t.Errorf("%v, %v", outcomes, err)
		}
	})

	t.Run("TreatsTheSameKeyTwiceAsTwoSubmissions", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		answer := b.group(b.submitGroup(t.Context(),
			item(withKey("k", "1")), item(withKey("k", "1")), item(withKey("k", "2")), item(), item(withKey("l", "1"))))
		b.expect(words(answer.outcomes), "stored", "replayed", "invalid-request", "stored", "stored")
		if answer.outcomes[0].Receipt.ID != answer.outcomes[1].Receipt.ID {
			t.Error("a repetition got another event")
		}
		b.expect(b.outcomes(b.submitGroup(t.Context(), item(withKey("k", "1")), item(withKey("k", "2")), item(), item(withKey("new", "1")))),
			"replayed", "invalid-request", "stored", "stored")
		if n := b.events(); n != 5 {
			t.Errorf("%d events", n)
		}
		b.isEmpty()
	})

	t.Run("GivesAnEventOfItsOwnATryWhenTheOneWithItsKeyIsBad", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		b.expect(b.outcomes(b.submitGroup(t.Context(), item(bad, withKey("k", "1")), item(withKey("k", "2")), item())),
			"invalid-request", "stored", "stored")
		b.isEmpty()
	})

	t.Run("OfTwoProcessesMakesOneEventPerKey", func(t *testing.T) {
		t.Parallel()
		a := setup(t)
		c := setupOn(t, a.pool)
		a.limits.keyWait, c.limits.keyWait = patience, patience
		a.start()
		c.start()
		var up, down []Item
		for i := range 60 {
			up = append(up, item(withKey(fmt.Sprint(i), "body")))
			down = append(down, item(withKey(fmt.Sprint(59-i), "body")))
		}
		var answers []<-chan groupResult
		for range 5 {
			answers = append(answers, a.submitGroup(t.Context(), up...), c.submitGroup(t.Context(), down...))
		}
		stored := 0
		for _, answer := range answers {
			for _, word := range a.outcomes(answer) {
				switch word {
				case "stored":
					stored++
				case "replayed":
				default:
					t.Errorf("outcome %s", word)
				}
			}
		}
		if e, j := a.events(), a.jobs(); stored != 60 || e != 60 || j != 60 {
			t.Errorf("%d stored, %d events, %d jobs", stored, e, j)
		}
	})

	t.Run("FailsOnlyTheEventWhoseKeyIsHeldElsewhere", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.limits.keyWait = 20 * time.Millisecond
		tx, err := b.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		if _, err := tx.Exec(t.Context(), `
			INSERT INTO fairhook.idempotency_keys (tenant, key, event_id, fingerprint)
			VALUES ('acme', 'held', gen_random_uuid(), '')`); err != nil {
			t.Fatal(err)
		}
		b.start()
		items := []Item{item(), item(withKey("a", "")), item(withKey("held", "")), item(bad), item(withKey("z", ""))}
		b.expect(b.outcomes(b.submitGroup(t.Context(), items...)), "stored", "stored", "conflict", "invalid-request", "stored")
		if tx := b.transactions(); tx != 1 {
			t.Errorf("%d transactions", tx)
		}
		// It is known to be held now: the rest is stored without it.
		b.expect(b.outcomes(b.submitGroup(t.Context(), item(withKey("held", "")), item())), "conflict", "stored")
		b.isEmpty()
	})

	t.Run("IsRefusedWholeWhenTheBufferIsFull", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.BufferEvents = 10 })
		kept := b.queueGroup(repeat(8, item())...)
		r := b.group(b.submitGroup(t.Context(), repeat(3, item(withKey("k", "1")))...))
		if webhook.ErrorCode(r.err) != webhook.CodeUnavailable || r.outcomes != nil {
			t.Errorf("%v, %v", r.outcomes, r.err)
		}
		fits := b.queueGroup(repeat(2, item())...)
		b.start()
		b.outcomes(kept)
		b.outcomes(fits)
		// One that is larger than the buffer is taken when there is no other.
		b.outcomes(b.submitGroup(t.Context(), repeat(11, item())...))
		if n := b.events(); n != 21 {
			t.Errorf("%d events", n)
		}
		b.isEmpty()
	})

	t.Run("IsForgottenWhenItsCallerLeftBeforeItWasTaken", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		other := b.queue(item(withKey("other", "")))
		ctx, cancel := context.WithCancel(t.Context())
		answer := b.submitGroup(ctx, item(withKey("k", "1")), item(withKey("k", "1")), item(), item(withKey("other", "")))
		b.eventually("it is in the buffer", func() bool { n, _ := b.Depth(); return n == 5 })
		cancel()
		b.expect(b.outcomes(answer), "unavailable", "unavailable", "unavailable", "unknown")
		b.start()
		b.accepted(other)
		b.accepted(b.submit(item(withKey("k", "2"))))
		if n := b.events(); n != 2 {
			t.Errorf("%d events", n)
		}
		b.eventually("all are answered", func() bool { n, _ := b.Depth(); return n == 0 })
		b.isEmpty()
	})

	t.Run("StaysWhenSomebodyElseWaitsForOneOfItsKeys", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		ctx, cancel := context.WithCancel(t.Context())
		answer := b.submitGroup(ctx, item(withKey("k", "1")), item())
		b.eventually("it is in the buffer", func() bool { n, _ := b.Depth(); return n == 2 })
		waits := b.queue(item(withKey("k", "1")))
		cancel()
		b.expect(b.outcomes(answer), "unknown", "unknown")
		b.start()
		if r := b.accepted(waits); !r.Replayed {
			t.Errorf("receipt %+v", r)
		}
		if n := b.events(); n != 2 {
			t.Errorf("%d events", n)
		}
		b.isEmpty()
	})
}

// TestGroupOutcomes compares groups with the same events submitted one by one,
// which a model predicts.
func TestGroupOutcomes(t *testing.T) {
	t.Parallel()
	b := setup(t).start()
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		tenant := fmt.Sprint("tenant-", round)
		keys := map[string]string{} // the body that a key stands for
		events := 0
		for range rapid.IntRange(1, 2).Draw(rt, "groups") {
			var items []Item
			var want []string
			for range rapid.IntRange(1, 12).Draw(rt, "events") {
				i := item(func(i *Item) { i.Tenant = tenant })
				key := rapid.SampledFrom([]string{"", "", "a", "b", "c"}).Draw(rt, "key")
				body := rapid.SampledFrom([]string{"1", "2"}).Draw(rt, "body")
				refused := rapid.IntRange(0, 5).Draw(rt, "bad") == 0
				if refused {
					bad(&i)
					body = "bad"
				}
				known, taken := keys[key]
				switch {
				case key != "" && taken && known == body:
					want = append(want, "replayed")
				case key != "" && taken:
					want = append(want, "invalid-request")
				case refused:
					want = append(want, "invalid-request")
				default:
					want = append(want, "stored")
					events++
					if key != "" {
						keys[key] = body
					}
				}
				if key != "" {
					withKey(key, body)(&i)
				}
				items = append(items, i)
			}
			outcomes, err := b.SubmitGroup(t.Context(), items)
			if err != nil {
				rt.Fatal(err)
			}
			if got := words(outcomes); fmt.Sprint(got) != fmt.Sprint(want) {
				rt.Fatalf("outcomes\n%v, want\n%v", got, want)
			}
		}
		if n := query[int](t, b.pool, `SELECT count(*) FROM fairhook.events WHERE tenant = $1`, tenant); n != events {
			rt.Fatalf("%d events are stored, want %d", n, events)
		}
	})
	b.isEmpty()
}

func TestUnknownOutcomeOfAGroup(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{
		"EndsAsOneGroupWhenTheAnswerIsLost":  loseAnswer,
		"EndsAsOneGroupWhenTheRequestIsLost": loseRequest,
	} {
		for _, faulty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%sFaulty=%t", name, faulty), func(t *testing.T) {
				t.Parallel()
				b, p := setupProxied(t)
				b.start()
				b.accepted(b.submit(item())) // the statements are prepared now
				items := []Item{item(withKey("k", "1")), item(marked), item(), item(withKey("l", "1"))}
				want := []string{"stored", "stored", "stored", "stored"}
				if faulty {
					items = append(items, item(bad))
					want = append(want, "invalid-request")
				}
				p.arm(f)
				b.expect(b.outcomes(b.submitGroup(t.Context(), items...)), want...)
				if e, j := b.events(), b.jobs(); e != 5 || j != 5 {
					t.Errorf("%d events, %d jobs, want 5 and 5", e, j)
				}
				if tx := b.transactions(); tx != 2 {
					t.Errorf("%d transactions, want the group's and one more", tx)
				}
				b.isEmpty()
			})
		}
	}
}

// The last step of a group with an event that cannot be stored is a COMMIT of its
// own.
func TestUnknownOutcomeOfTheCommitOfAGroup(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{"AnswerLost": loseAnswer, "RequestLost": loseRequest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, p := setupProxied(t)
			b.start()
			b.accepted(b.submit(item()))
			p.armCommit(f)
			b.expect(b.outcomes(b.submitGroup(t.Context(), item(withKey("k", "1")), item(bad), item(), item(withKey("l", "1")))),
				"stored", "invalid-request", "stored", "stored")
			if n := count(t, b.metrics.unknownBatches); n != 1 {
				t.Errorf("%d unknown outcomes: the fault did not happen", n)
			}
			if e, j, tx := b.events(), b.jobs(), b.transactions(); e != 4 || j != 4 || tx != 2 {
				t.Errorf("%d events, %d jobs, %d transactions, want 4, 4 and 2", e, j, tx)
			}
			b.isEmpty()
		})
	}
}

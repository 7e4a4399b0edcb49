package catalog

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

type change struct {
	id     webhook.ID
	tenant string
}

// bundle is a catalog on a database of its own. It does not listen until start.
type bundle struct {
	*Catalog
	t       *testing.T
	db      *pgxpool.Pool
	box     *seal.Box
	changes chan change
	resets  atomic.Int64
}

func setup(t *testing.T, edits ...func(*Config)) *bundle {
	t.Helper()
	return setupOn(t, pgtest.DB(t), edits...)
}

func setupOn(t *testing.T, pool *pgxpool.Pool, edits ...func(*Config)) *bundle {
	t.Helper()
	raw := make([]byte, seal.KeySize)
	_, _ = rand.Read(raw)
	key, err := seal.ParseKey(base64.StdEncoding.EncodeToString(raw))
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{t: t, db: pool, box: seal.New(key), changes: make(chan change, 1000)}
	cfg := Config{Pool: pool, Box: b.box, Registerer: prometheus.NewRegistry()}
	for _, edit := range edits {
		edit(&cfg)
	}
	b.Catalog = New(cfg)
	b.OnChange(func(id webhook.ID, tenant string) { b.changes <- change{id, tenant} })
	b.OnReset(func() { b.resets.Add(1) })
	return b
}

// start listens until the test ends.
func (b *bundle) start() *bundle {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				b.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			b.t.Error("Run did not return")
		}
	})
	b.eventually("it listens", func() bool { return b.resets.Load() == 1 })
	return b
}

func (b *bundle) eventually(what string, condition func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			b.t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

func (b *bundle) insert(edits ...func(*webhook.Webhook)) *webhook.Webhook {
	b.t.Helper()
	w := &webhook.Webhook{
		Ordering: webhook.OrderingNone,
		ID:       webhook.NewID(time.Now()), Tenant: "acme", URL: "https://example.com/hook", EventTypes: []string{"*"},
		State: webhook.StateActive, Headers: map[string]webhook.Secret{}, TimeoutSeconds: 20, MaxInFlight: 50,
		RetrySchedule: []int{1, 2, 3}, MaxAgeSeconds: 60, MaxBacklog: 1000, AllowedCIDRs: []string{},
	}
	for _, edit := range edits {
		edit(w)
	}
	if err := postgres.InsertWebhook(b.t.Context(), b.db, w); err != nil {
		b.t.Fatal(err)
	}
	return w
}

// secret gives a webhook a new secret and returns its signing key. An empty life
// is for ever.
func (b *bundle) secret(id webhook.ID, life string) []byte {
	b.t.Helper()
	secret := signature.NewSecret()
	key, err := signature.ParseSecret(secret.Reveal())
	if err != nil {
		b.t.Fatal(err)
	}
	b.exec(`INSERT INTO fairhook.webhook_secrets (id, webhook_id, sealed, expires_at) VALUES ($1, $2, $3, now() + nullif($4, '')::interval)`,
		webhook.NewID(time.Now()), id, b.box.Seal([]byte(secret.Reveal()), id.String()), life)
	return key
}

func (b *bundle) known(id webhook.ID) *Entry {
	b.t.Helper()
	e, err := b.Webhook(b.t.Context(), id)
	if err != nil {
		b.t.Fatalf("Webhook: %v", err)
	}
	return e
}

func (b *bundle) targets(tenant, eventType string) []Target {
	b.t.Helper()
	targets, err := b.Subscribers(b.t.Context(), tenant, eventType)
	if err != nil {
		b.t.Fatalf("Subscribers: %v", err)
	}
	return targets
}

// notified waits until the catalog has heard of a change.
func (b *bundle) notified(want change) {
	b.t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case got := <-b.changes:
			if got == want {
				return
			}
		case <-deadline:
			b.t.Fatalf("no notification of %v", want)
		}
	}
}

func count(t *testing.T, c prometheus.Counter) int {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return int(m.GetCounter().GetValue())
}

// signsWith reports whether an entry signs for Standard Webhooks with these keys,
// in this order.
func signsWith(e *Entry, keys ...[]byte) bool {
	at, got := time.Unix(1_700_000_000, 0), ""
	if e.Signer.CanSign() {
		e.Signer.Sign("id", at, []byte("body"), func(_, value string) { got = value })
	}
	return got == signature.Sign(keys, "id", at, []byte("body"))
}

func TestWebhook(t *testing.T) {
	t.Parallel()

	t.Run("AnswersWithEverythingAboutIt", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert(func(w *webhook.Webhook) {
			w.Headers = map[string]webhook.Secret{"X-One": webhook.NewSecret("1")}
			w.Description, w.State = "a webhook", webhook.StatePaused
		})
		older := b.secret(w.ID, "")
		newer := b.secret(w.ID, "1 hour")
		b.secret(w.ID, "-1 second")
		e := b.known(w.ID)
		if got, want := fmt.Sprintf("%+v", e.Webhook), fmt.Sprintf("%+v", *w); got != want {
			t.Errorf("got\n%s, want\n%s", got, want)
		}
		if !signsWith(e, newer, older) {
			t.Error("it does not sign with the two that have not expired, newest first")
		}
	})

	t.Run("HasNoSignerWithoutABox", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(c *Config) { c.Box = nil })
		w := b.insert()
		b.secret(w.ID, "")
		if e := b.known(w.ID); e.Signer != nil {
			t.Error("it has one")
		}
	})

	t.Run("FailsWhenASecretCannotBeOpened", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		one, other := b.insert(), b.insert()
		b.secret(one.ID, "")
		b.exec(`UPDATE fairhook.webhook_secrets SET webhook_id = $1`, other.ID) // bound to the first
		if e, err := b.Webhook(t.Context(), other.ID); err == nil || webhook.ErrorCode(err) != "" {
			t.Errorf("got %+v, %v; want an internal error", e, err)
		}
	})

	t.Run("IsLoadedOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert()
		b.notified(change{w.ID, w.Tenant})
		first := b.known(w.ID)
		for range 10 {
			if again := b.known(w.ID); again != first {
				t.Fatal("loaded again")
			}
		}
		if hits, misses := count(t, b.webhooks.hits), count(t, b.webhooks.misses); hits != 10 || misses != 1 {
			t.Errorf("%d hits, %d misses", hits, misses)
		}
	})

	t.Run("FollowsChangesMadeElsewhere", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert()
		b.known(w.ID)
		for range 5 {
			// Until the hook is called the old answer may be given; after it, never.
			b.exec(`UPDATE fairhook.webhooks SET max_in_flight = max_in_flight + 1 WHERE id = $1`, w.ID)
			w.MaxInFlight++
			b.eventually("the change is seen", func() bool { return b.known(w.ID).Webhook.MaxInFlight == w.MaxInFlight })
		}
		key := b.secret(w.ID, "")
		b.eventually("the secret is seen", func() bool {
			return signsWith(b.known(w.ID), key)
		})
		b.exec(`DELETE FROM fairhook.webhook_secrets`)
		b.eventually("the secret is gone", func() bool { return !b.known(w.ID).Signer.CanSign() })
	})

	t.Run("HasForgottenAChangedWebhookBeforeTheHookRuns", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w := b.insert()
		seen := make(chan int, 100)
		b.OnChange(func(id webhook.ID, _ string) {
			if e, err := b.Webhook(context.Background(), id); err == nil {
				seen <- e.Webhook.MaxInFlight
			}
		})
		b.start()
		b.known(w.ID)
		b.exec(`UPDATE fairhook.webhooks SET max_in_flight = 777 WHERE id = $1`, w.ID)
		b.notified(change{w.ID, w.Tenant})
		select {
		case got := <-seen:
			if got != 777 {
				t.Errorf("the hook saw %d", got)
			}
		case <-time.After(patience):
			t.Fatal("no hook")
		}
	})

	t.Run("SeesOwnChangesAtOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t) // nothing listens
		w := b.insert()
		b.known(w.ID)
		b.targets(w.Tenant, "a")
		b.exec(`UPDATE fairhook.webhooks SET status = 'paused' WHERE id = $1`, w.ID)
		b.Invalidate(w.ID, w.Tenant)
		if s := b.known(w.ID).Webhook.State; s != webhook.StatePaused {
			t.Errorf("status %s", s)
		}
		if got := b.targets(w.Tenant, "a"); !slices.Equal(got, []Target{{w.ID, webhook.StatePaused, 0, w.MaxBacklog}}) {
			t.Errorf("targets %v", got)
		}
	})

	t.Run("IsNotFoundUntilItExistsAndAfterItIsDeleted", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		id := webhook.NewID(time.Now())
		for range 3 {
			if _, err := b.Webhook(t.Context(), id); webhook.ErrorCode(err) != webhook.CodeNotFound {
				t.Fatalf("got %v", err)
			}
		}
		if misses := count(t, b.webhooks.misses); misses != 1 {
			t.Errorf("asked the database %d times", misses)
		}
		w := b.insert(func(w *webhook.Webhook) { w.ID = id })
		b.eventually("it is found", func() bool { _, err := b.Webhook(t.Context(), id); return err == nil })
		b.exec(`DELETE FROM fairhook.webhooks WHERE id = $1`, w.ID)
		b.eventually("it is gone", func() bool {
			_, err := b.Webhook(t.Context(), id)
			return webhook.ErrorCode(err) == webhook.CodeNotFound
		})
	})

	t.Run("LosesASecretTheMomentItExpires", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert()
		kept := b.secret(w.ID, "")
		ending := b.secret(w.ID, "1 second")
		b.eventually("both are seen", func() bool { return signsWith(b.known(w.ID), ending, kept) })
		// Nothing notifies of that.
		b.eventually("one is left", func() bool {
			return signsWith(b.known(w.ID), kept)
		})
	})
}

func TestSubscribers(t *testing.T) {
	t.Parallel()
	b := setup(t).start()
	subscribe := func(tenant string, state webhook.State, patterns ...string) Target {
		w := b.insert(func(w *webhook.Webhook) { w.Tenant, w.State, w.EventTypes = tenant, state, patterns })
		return Target{w.ID, state, 0, w.MaxBacklog}
	}
	all := subscribe("acme", webhook.StateActive, "*")
	orders := subscribe("acme", webhook.StatePaused, "order.*", "user.created")
	paid := subscribe("acme", webhook.StateDisabled, "order.paid")
	subscribe("globex", webhook.StateActive, "*")

	for eventType, want := range map[string][]Target{
		"order.paid":    {all, orders, paid},
		"order.refused": {all, orders},
		"order":         {all},
		"user.created":  {all, orders},
	} {
		for range 2 { // loaded, and remembered
			if got := b.targets("acme", eventType); !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", eventType, got, want)
			}
		}
	}
	if got := b.targets("nobody", "order.paid"); len(got) != 0 {
		t.Errorf("a tenant without webhooks: %v", got)
	}
	first := subscribe("nobody", webhook.StateActive, "*")
	b.eventually("the new webhook is seen", func() bool { return slices.Equal(b.targets("nobody", "a"), []Target{first}) })
	b.exec(`UPDATE fairhook.webhooks SET event_types = '{other}' WHERE id = $1`, first.ID)
	b.eventually("the change is seen", func() bool { return len(b.targets("nobody", "a")) == 0 })
}

func TestSubscriptionsRememberedAnswersAreTrueAndBounded(t *testing.T) {
	t.Parallel()
	pattern := rapid.SampledFrom([]string{"*", "a", "a.*", "a.b", "a.b.*", "b", "c.*"})
	eventType := rapid.SampledFrom([]string{"a", "b", "c", "a.a", "a.b", "a.b.c", "c.c"})
	rapid.Check(t, func(rt *rapid.T) {
		var rows []postgres.Subscription
		for i := range rapid.IntRange(0, 12).Draw(rt, "webhooks") {
			rows = append(rows, postgres.Subscription{
				WebhookID: webhook.ID{byte(i)}, State: webhook.StateActive,
				EventTypes: rapid.SliceOfN(pattern, 1, 3).Draw(rt, "patterns"),
			})
		}
		s := newSubscriptions(rows)
		for range 20 {
			asked := eventType.Draw(rt, "type")
			var want []Target
			for _, row := range rows {
				if slices.ContainsFunc(row.EventTypes, func(p string) bool { return webhook.MatchesType(p, asked) }) {
					want = append(want, Target{row.WebhookID, row.State, row.AcceptPerSecond, row.MaxBacklog})
				}
			}
			if got := s.match(asked); !slices.Equal(got, want) {
				rt.Fatalf("%s: got %v, want %v", asked, got, want)
			}
		}
		if s.remembered > rememberedPerWebhook*len(rows) {
			rt.Fatalf("%d targets remembered of %d webhooks", s.remembered, len(rows))
		}
	})
	s := newSubscriptions([]postgres.Subscription{{EventTypes: []string{"*"}}})
	for i := range 10 * maxRememberedTypes {
		s.match(fmt.Sprint("type", i))
	}
	if len(s.matches) > maxRememberedTypes {
		t.Errorf("%d types remembered", len(s.matches))
	}
}

// newTestTable is a table over any load function, with a line that works.
func newTestTable(t *testing.T, load func(ctx context.Context, key int) (int64, time.Duration, error)) *table[int, int64] {
	t.Helper()
	c := New(Config{Listen: &pgx.ConnConfig{}})
	c.current.Load().live.Store(true)
	return newTable(c, "test", load, func(int, int64) int { return 1 }, 1000)
}

func TestTable(t *testing.T) {
	t.Parallel()

	t.Run("LoadsOnceForAllWhoAskAtTheSameTime", func(t *testing.T) {
		t.Parallel()
		var loads atomic.Int64
		begun, finish := make(chan struct{}), make(chan struct{})
		tab := newTestTable(t, func(context.Context, int) (int64, time.Duration, error) {
			loads.Add(1)
			close(begun)
			<-finish
			return 42, 0, nil
		})
		var askers sync.WaitGroup
		for range 100 {
			askers.Go(func() {
				if v, err := tab.get(t.Context(), 1); v != 42 || err != nil {
					t.Errorf("got %d, %v", v, err)
				}
			})
		}
		<-begun
		close(finish)
		askers.Wait()
		if n := loads.Load(); n != 1 {
			t.Errorf("%d loads", n)
		}
	})

	t.Run("DoesNotLoadAgainForWhoLookedJustBeforeALoadEnded", func(t *testing.T) {
		t.Parallel()
		var loads atomic.Int64
		tab := newTestTable(t, func(context.Context, int) (int64, time.Duration, error) { return loads.Add(1), 0, nil })
		if v, err := tab.get(t.Context(), 1); v != 1 || err != nil {
			t.Fatal(v, err)
		}
		// This is where get goes on after it has found nothing.
		late, err := tab.wait(t.Context(), 1)
		if err != nil || late.value != 1 || loads.Load() != 1 {
			t.Errorf("got %+v, %v after %d loads", late, err, loads.Load())
		}
		tab.invalidate(1)
		if late, err := tab.wait(t.Context(), 1); err != nil || late.value != 2 {
			t.Errorf("got %+v, %v after an invalidation", late, err)
		}
	})

	t.Run("DoesNotRememberALoadThatAnInvalidationOvertook", func(t *testing.T) {
		t.Parallel()
		for name, overtake := range map[string]func(*table[int, int64]){
			"invalidated": func(tab *table[int, int64]) { tab.invalidate(1) },
			"reset":       func(tab *table[int, int64]) { tab.disown() },
		} {
			var loads atomic.Int64
			begun, finish := make(chan struct{}), make(chan struct{})
			tab := newTestTable(t, func(context.Context, int) (int64, time.Duration, error) {
				n := loads.Add(1)
				if n == 1 {
					close(begun)
					<-finish
				}
				return n, 0, nil
			})
			first := make(chan int64)
			go func() { v, _ := tab.get(t.Context(), 1); first <- v }()
			<-begun
			overtake(tab)
			if v, _ := tab.get(t.Context(), 1); v != 2 {
				t.Errorf("%s: who asked afterwards got the answer from before: %d", name, v)
			}
			close(finish)
			if v := <-first; v != 1 {
				t.Errorf("%s: who asked before got %d", name, v)
			}
			if v, _ := tab.get(t.Context(), 1); v != 2 {
				t.Errorf("%s: the overtaken answer was remembered: %d", name, v)
			}
		}
	})

	t.Run("NeverAnswersWithAValueFromBeforeAnInvalidation", func(t *testing.T) {
		t.Parallel()
		var version, announced atomic.Int64
		tab := newTestTable(t, func(context.Context, int) (int64, time.Duration, error) {
			return version.Load(), 0, nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		var running sync.WaitGroup
		running.Go(func() {
			for ctx.Err() == nil {
				v := version.Add(1)
				tab.invalidate(1)
				announced.Store(v)
			}
		})
		for range 4 {
			running.Go(func() {
				for ctx.Err() == nil {
					least := announced.Load()
					if v, err := tab.get(t.Context(), 1); err != nil || v < least {
						t.Errorf("got %d, %v after %d was announced", v, err, least)
						return
					}
				}
			})
		}
		running.Wait()
	})

	t.Run("LetsACallerLeave", func(t *testing.T) {
		t.Parallel()
		finish := make(chan struct{})
		defer close(finish)
		tab := newTestTable(t, func(context.Context, int) (int64, time.Duration, error) {
			<-finish
			return 0, 0, nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := tab.get(ctx, 1); webhook.ErrorCode(err) != webhook.CodeUnavailable {
			t.Errorf("got %v", err)
		}
	})

	t.Run("HoldsNoMoreThanItsBound", func(t *testing.T) {
		t.Parallel()
		tab := newTestTable(t, func(_ context.Context, key int) (int64, time.Duration, error) { return int64(key), 0, nil })
		for key := range 5000 {
			if v, err := tab.get(t.Context(), key); err != nil || v != int64(key) {
				t.Fatalf("got %d, %v", v, err)
			}
		}
		tab.cache.CleanUp()
		if n := tab.cache.WeightedSize(); n > 1000 {
			t.Errorf("%d remembered, at most 1000 wanted", n)
		}
	})
}

func TestHotPathAllocatesNothing(t *testing.T) {
	b := setup(t).start()
	w := b.insert()
	b.insert(func(w *webhook.Webhook) { w.EventTypes = []string{"other"} })
	ctx := t.Context()
	b.known(w.ID)
	b.targets(w.Tenant, "order.paid")
	if n := testing.AllocsPerRun(1000, func() { _, _ = b.Webhook(ctx, w.ID) }); n != 0 {
		t.Errorf("Webhook: %v allocations", n)
	}
	if n := testing.AllocsPerRun(1000, func() { _, _ = b.Subscribers(ctx, w.Tenant, "order.paid") }); n != 0 {
		t.Errorf("Subscribers: %v allocations", n)
	}
}

func TestListening(t *testing.T) {
	t.Parallel()

	t.Run("AsksAgainSoonWhileNothingListens", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w := b.insert()
		b.known(w.ID)
		b.exec(`UPDATE fairhook.webhooks SET max_in_flight = 777 WHERE id = $1`, w.ID)
		begun := time.Now()
		b.eventually("the change is seen", func() bool { return b.known(w.ID).Webhook.MaxInFlight == 777 })
		if took := time.Since(begun); took > MaxStale {
			t.Errorf("seen after %s", took)
		}
		if hits := count(t, b.webhooks.hits); hits == 0 {
			t.Error("nothing was answered from memory")
		}
	})

	t.Run("TellsEveryInstanceOfAChangeWithinATenthOfASecond", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		other := setupOn(t, b.db).start()
		w := b.insert()
		for _, one := range []*bundle{b, other} {
			one.notified(change{w.ID, w.Tenant})
		}
		var took []time.Duration
		for n := range 15 {
			before := other.known(w.ID).Webhook.MaxInFlight
			b.exec(`UPDATE fairhook.webhooks SET max_in_flight = $2 WHERE id = $1`, w.ID, 100+n)
			begun := time.Now()
			for _, one := range []*bundle{b, other} {
				one.notified(change{w.ID, w.Tenant})
				took = append(took, time.Since(begun))
				if now := one.known(w.ID).Webhook.MaxInFlight; now != 100+n || now == before {
					t.Errorf("max_in_flight is %d", now)
				}
			}
		}
		// On a machine that is busy with other tests, most of them.
		slices.Sort(took)
		if median := took[len(took)/2]; median > 100*time.Millisecond {
			t.Errorf("half of the changes were heard of after more than %s", median)
		}
	})

	t.Run("DistrustsEverythingAfterItsLineBroke", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		w := b.insert()
		b.notified(change{w.ID, w.Tenant})
		before := b.known(w.ID)
		// The listener dies, and the change is missed for good.
		b.exec(`ALTER TABLE fairhook.webhooks DISABLE TRIGGER USER`)
		b.exec(`UPDATE fairhook.webhooks SET max_in_flight = 777 WHERE id = $1`, w.ID)
		b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND (query LIKE 'LISTEN%' OR query LIKE '%pg_listening_channels%')`)
		b.eventually("it listens again", func() bool { return b.resets.Load() == 2 })
		if after := b.known(w.ID); after == before || after.Webhook.MaxInFlight != 777 {
			t.Errorf("max_in_flight %d", after.Webhook.MaxInFlight)
		}
		b.exec(`ALTER TABLE fairhook.webhooks ENABLE TRIGGER USER`)
		b.exec(`UPDATE fairhook.webhooks SET max_in_flight = 778 WHERE id = $1`, w.ID)
		b.notified(change{w.ID, w.Tenant})
	})

	t.Run("NoticesALineThatDiedSilently", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		listen := db.Pool.Config().ConnConfig
		frozen := newFreezer(t, fmt.Sprintf("%s:%d", listen.Host, listen.Port))
		addr := frozen.listener.Addr().(*net.TCPAddr)
		listen.Host, listen.Port, listen.Fallbacks = "127.0.0.1", uint16(addr.Port), nil
		b := setupOn(t, db.Pool, func(c *Config) { c.Listen = listen }).start()
		w := b.insert()
		b.notified(change{w.ID, w.Tenant})
		b.known(w.ID)
		frozen.freeze()
		b.exec(`UPDATE fairhook.webhooks SET max_in_flight = 777 WHERE id = $1`, w.ID)
		begun := time.Now()
		b.eventually("the change is seen", func() bool { return b.known(w.ID).Webhook.MaxInFlight == 777 })
		if took := time.Since(begun); took > MaxStale {
			t.Errorf("seen after %s", took)
		}
	})

	t.Run("RefusesAConnectionThatDoesNotKeepItsListen", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		conn, err := b.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		if err := b.ping(t.Context(), conn); err != nil {
			t.Errorf("listening: %v", err)
		}
		// As behind a pooler that gives each transaction another session.
		if _, err := conn.Exec(t.Context(), `UNLISTEN *`); err != nil {
			t.Fatal(err)
		}
		if err := b.ping(t.Context(), conn); err == nil {
			t.Error("no error without LISTEN")
		}
	})

	t.Run("IgnoresNotificationsThatItCannotRead", func(t *testing.T) {
		t.Parallel()
		b := setup(t).start()
		for _, payload := range []string{"", "x", "not-an-id acme", " "} {
			b.exec(`SELECT pg_notify($1, $2)`, postgres.CatalogChannel, payload)
		}
		w := b.insert(func(w *webhook.Webhook) { w.Tenant = "a tenant with spaces" })
		if got := <-b.changes; got != (change{w.ID, w.Tenant}) {
			t.Errorf("heard of %v", got)
		}
	})
}

func TestDatabaseOutage(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	pool, err := postgres.Open(t.Context(), server.URL("fairhook"), "catalog", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	b := setupOn(t, pool).start()
	w, other := b.insert(), b.insert()
	b.notified(change{other.ID, other.Tenant}) // and so of the one before
	b.known(w.ID)
	b.targets(w.Tenant, "a")
	server.Kill()
	died := time.Now()

	// What is known is served for a while, what is not fails fast.
	if _, err := b.Webhook(t.Context(), other.ID); webhook.ErrorCode(err) != webhook.CodeUnavailable {
		t.Errorf("unknown: got %v", err)
	}
	if took := time.Since(died); took > 2*time.Second {
		t.Errorf("unknown: refused after %s", took)
	}
	lastServed := time.Now()
	b.eventually("what is known is too old", func() bool {
		_, err := b.Webhook(t.Context(), w.ID)
		if err == nil {
			lastServed = time.Now()
		} else if webhook.ErrorCode(err) != webhook.CodeUnavailable {
			t.Fatal(err)
		}
		return err != nil
	})
	switch served := lastServed.Sub(died); {
	case served < 2*time.Second:
		t.Errorf("served for %s only", served)
	case served > MaxStale+time.Second:
		t.Errorf("served for %s", served)
	}
	b.eventually("the known list is too old", func() bool {
		_, err := b.Subscribers(t.Context(), w.Tenant, "a")
		return webhook.ErrorCode(err) == webhook.CodeUnavailable
	})

	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	b.eventually("it answers again", func() bool { _, err := b.Webhook(t.Context(), other.ID); return err == nil })
	b.eventually("it listens again", func() bool { return b.resets.Load() >= 2 })
	if took := time.Since(back); took > 4*time.Second {
		t.Errorf("listening %s after the return", took)
	}
	b.exec(`UPDATE fairhook.webhooks SET max_in_flight = 777 WHERE id = $1`, w.ID)
	b.notified(change{w.ID, w.Tenant})
}

// freezer is a proxy that can stop passing anything on, without closing its
// connections, as a network does that lost its way.
type freezer struct {
	listener net.Listener
	mu       sync.RWMutex
	frozen   bool
}

func (f *freezer) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = true
}

func (f *freezer) pass(dst io.Writer, src io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		f.mu.RLock()
		if !f.frozen {
			_, err = dst.Write(buf[:n])
		}
		f.mu.RUnlock()
		if err != nil {
			return
		}
	}
}

func newFreezer(t *testing.T, target string) *freezer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{listener: listener}
	var running sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, client, server)
			mu.Unlock()
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				running.Go(func() {
					f.pass(pair[1], pair[0])
					client.Close()
					server.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return f
}

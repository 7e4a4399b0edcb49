package heartbeat

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func newHeartbeat(db *pgxpool.Pool, id string, change ...func(*Config)) *Heartbeat {
	cfg := Config{
		DB: db, Instance: id, Role: webhook.RoleDispatcher, Version: "1", Host: "host",
		Load:   func() (int, int) { return 100, 3 },
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	}
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg)
}

// run beats until the test ends or stop is called, which returns once the instance has
// left.
func run(t *testing.T, h *Heartbeat) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan error, 1)
	go func() { left <- h.Run(ctx) }()
	stopped := false
	stop = func() {
		cancel()
		if !stopped {
			stopped = true
			if err := <-left; err != nil {
				t.Errorf("it ended with %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func instances(t *testing.T, db *pgxpool.Pool) map[string]webhook.Instance {
	t.Helper()
	all, err := postgres.Instances(t.Context(), db, nil, 10, webhook.StaleAfter)
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]webhook.Instance{}
	for _, i := range all {
		byID[i.ID] = i
	}
	return byID
}

func TestRun(t *testing.T) {
	t.Parallel()

	t.Run("SaysHowMuchThereIsToDoAndCountsTheLiving", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		for _, other := range []postgres.Beat{{ID: "peer", Role: webhook.RoleDispatcher}, {ID: "dead", Role: webhook.RoleDispatcher}, {ID: "other", Role: webhook.RoleIngest}} {
			if _, err := postgres.WriteBeat(t.Context(), db, other, webhook.StaleAfter); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := db.Exec(t.Context(), `UPDATE fairhook.instances SET heartbeat_at = now() - interval '16 s' WHERE id = 'dead'`); err != nil {
			t.Fatal(err)
		}
		alive := make(chan int, 1)
		h := newHeartbeat(db, "me", func(c *Config) {
			c.OnBeat = func(n int) {
				select {
				case alive <- n:
				default:
				}
			}
		})
		run(t, h)
		if n := <-alive; n != 2 {
			t.Errorf("%d dispatchers are counted, want this one and its peer", n)
		}
		<-h.Known()
		if !h.Fresh() {
			t.Error("it is not fresh after a beat")
		}
		me := instances(t, db)["me"]
		if me.Role != webhook.RoleDispatcher || me.Version != "1" || me.Host != "host" || me.Capacity != 100 || me.InFlight != 3 ||
			me.Draining || me.Status != webhook.InstanceAlive {
			t.Errorf("it says %+v", me)
		}
	})

	t.Run("SaysAtOnceThatItDrainsAndLeavesInTheEnd", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		h := newHeartbeat(db, "me")
		stop := run(t, h)
		<-h.Known()
		before := instances(t, db)["me"].HeartbeatAt
		h.Drain()
		eventually(t, "it drains", func() bool { return instances(t, db)["me"].Draining })
		if at := instances(t, db)["me"].HeartbeatAt; at.Sub(before) >= interval {
			t.Errorf("it said so after %s, with its next beat", at.Sub(before))
		}
		stop()
		if left := instances(t, db); len(left) != 0 {
			t.Errorf("it is listed still: %+v", left)
		}
	})
}

// TestFresh is about an instance that must not act any more.
func TestFresh(t *testing.T) {
	t.Parallel()

	t.Run("EndsBeforeOthersTakeTheInstanceForDead", func(t *testing.T) {
		t.Parallel()
		h := newHeartbeat(nil, "me")
		if h.Fresh() {
			t.Error("it is fresh before its first beat")
		}
		h.note(time.Now().Add(-freshFor/2), true)
		if !h.Fresh() {
			t.Error("it is not fresh though its last beat is young")
		}
		h.note(time.Now().Add(-freshFor), true)
		if h.Fresh() {
			t.Errorf("it is fresh %s after its last beat, and dead after %s", freshFor, webhook.StaleAfter)
		}
		if freshFor <= maxGap || freshFor+2*time.Second > webhook.StaleAfter {
			t.Errorf("fresh for %s: beats are up to %s apart, and silence is death after %s", freshFor, maxGap, webhook.StaleAfter)
		}
	})

	// The monotonic clock stands still while a machine sleeps.
	t.Run("EndsWhenTheMachineSlept", func(t *testing.T) {
		t.Parallel()
		beat := time.Now()
		woken := beat.Add(time.Second) // by the monotonic clock
		if got := age(woken, beat); got != time.Second {
			t.Errorf("a beat of a second ago is %s old", got)
		}
		if got := age(woken.Round(0).Add(time.Minute), beat); got < time.Minute {
			t.Errorf("a beat from before a minute's sleep is %s old", got)
		}
		if got := age(woken, beat.Round(0).Add(time.Hour)); got > time.Second {
			t.Errorf("a beat with a clock that was set back since is %s old", got)
		}
	})
}

// TestObserved is about who may take the silence of others for death.
func TestObserved(t *testing.T) {
	t.Parallel()

	t.Run("TakesAsLongAsSilenceMustLast", func(t *testing.T) {
		t.Parallel()
		h := newHeartbeat(nil, "me")
		for beat := time.Now().Add(-webhook.StaleAfter + time.Second); !beat.After(time.Now()); beat = beat.Add(interval) {
			h.note(beat, true)
		}
		if h.Observed() {
			t.Error("it takes the silence of others for death before it has watched for long enough")
		}
		h = newHeartbeat(nil, "me")
		for beat := time.Now().Add(-webhook.StaleAfter); !beat.After(time.Now()); beat = beat.Add(interval) {
			h.note(beat, true)
		}
		if !h.Observed() {
			t.Error("it has watched for long enough and does not help")
		}
	})

	// A whole machine stops for a minute: whoever goes on first must not take the
	// others for dead.
	t.Run("BeginsAnewAfterItWasStopped", func(t *testing.T) {
		t.Parallel()
		h := newHeartbeat(nil, "me")
		h.healthySince, h.lastBeat = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		if h.Observed() {
			t.Error("it takes the silence of others for death before its own first beat")
		}
		h.note(time.Now(), true)
		if h.Observed() {
			t.Error("it takes the silence of others for death, and was silent itself")
		}
	})

	t.Run("BeginsAnewAfterABeatThatFailed", func(t *testing.T) {
		t.Parallel()
		h := newHeartbeat(nil, "me")
		h.healthySince, h.lastBeat = time.Now().Add(-time.Hour), time.Now()
		h.note(time.Now(), false)
		h.note(time.Now(), true)
		if h.Observed() {
			t.Error("it takes the silence of others for death, when the database was away")
		}
	})
}

func TestAwaitPeers(t *testing.T) {
	t.Parallel()

	t.Run("WaitsUntilEveryLivePeerHasBeatenAgain", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		beat := func(id string, role webhook.Role) {
			t.Helper()
			if _, err := postgres.WriteBeat(t.Context(), db, postgres.Beat{ID: id, Role: role}, webhook.StaleAfter); err != nil {
				t.Fatal(err)
			}
		}
		beat("one", webhook.RoleDispatcher)
		beat("two", webhook.RoleDispatcher)
		beat("ingest", webhook.RoleIngest)
		h := newHeartbeat(db, "me")
		run(t, h)
		<-h.Known()
		short := func() context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), 3*joinPoll)
			t.Cleanup(cancel)
			return ctx
		}
		if h.AwaitPeers(short()) {
			t.Fatal("it does not wait for two peers that cannot know of it")
		}
		found := make(chan bool)
		go func() { found <- h.AwaitPeers(t.Context()) }()
		for {
			select {
			case all := <-found:
				if !all {
					t.Error("it gave up on peers that beat")
				}
				return
			case <-time.After(joinPoll):
				beat("one", webhook.RoleDispatcher)
				beat("two", webhook.RoleDispatcher)
			}
		}
	})

	t.Run("WaitsForNobodyWhenItIsAloneOrOthersAreDead", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		if _, err := postgres.WriteBeat(t.Context(), db, postgres.Beat{ID: "dead", Role: webhook.RoleDispatcher}, webhook.StaleAfter); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(t.Context(), `UPDATE fairhook.instances SET heartbeat_at = now() - interval '16 s'`); err != nil {
			t.Fatal(err)
		}
		h := newHeartbeat(db, "me")
		run(t, h)
		if !h.AwaitPeers(t.Context()) {
			t.Error("it gave up")
		}
	})
}

package fairqueue

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/riverqueue/river/riverdriver"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const notifyWait = 20 * time.Second

func TestNotifications(t *testing.T) {
	t.Parallel()

	t.Run("NameEachLaneOnceWithinPostgresLimit", func(t *testing.T) {
		t.Parallel()
		ids := testIDs(lanesPerNotification + 10)
		payloads := Notifications(slices.Concat(ids, ids))
		if len(payloads) != 2 {
			t.Fatalf("%d payloads, want 2", len(payloads))
		}
		var got []webhook.ID
		for _, payload := range payloads {
			if len(payload) >= 8000 {
				t.Errorf("a payload of %d bytes is refused by Postgres", len(payload))
			}
			part, ours := parseNotification(payload)
			if !ours {
				t.Errorf("%q is not recognised", payload)
			}
			got = append(got, part...)
		}
		if !slices.Equal(got, ids) {
			t.Errorf("read back %d lanes, want the %d that were named", len(got), len(ids))
		}
	})

	t.Run("SayLookForYourselfWhenTheyWouldBeTooMany", func(t *testing.T) {
		t.Parallel()
		payloads := Notifications(testIDs(maxNotifications*lanesPerNotification + 1))
		if len(payloads) != 1 {
			t.Fatalf("%d payloads, want 1", len(payloads))
		}
		if ids, ours := parseNotification(payloads[0]); !ours || len(ids) != 0 {
			t.Errorf("read %v, %v", ids, ours)
		}
	})

	t.Run("AreNoneForNothing", func(t *testing.T) {
		t.Parallel()
		if payloads := Notifications(nil); len(payloads) != 0 {
			t.Errorf("got %q", payloads)
		}
	})
}

func FuzzParseNotification(f *testing.F) {
	f.Add(`{"queue":"fairhook","l":"AZt8qYyIcACnAREiM0RVZg"}`)
	f.Add(`{"queue":"fairhook"}`)
	f.Add(`{"queue":"fairhook","l":"!!!!!!!!!!!!!!!!!!!!!!"}`)
	f.Add(`{"queue":"wh-019b7ca9-8c89-7000-a919-07b7da6f56cb"}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, payload string) {
		ids, ours := parseNotification(payload)
		if !ours && len(ids) > 0 {
			t.Error("lanes were read from a notification that is not ours")
		}
		if !ours || len(ids) == 0 {
			return
		}
		again := slices.Concat(ids) // what was read can be said again
		var said []webhook.ID
		for _, p := range Notifications(again) {
			part, _ := parseNotification(p)
			said = append(said, part...)
		}
		for _, id := range said {
			if !slices.Contains(ids, id) {
				t.Errorf("%s was never named", id)
			}
		}
	})
}

func FuzzParseLaneChange(f *testing.F) {
	f.Add("019b7ca9-8c89-7000-a919-07b7da6f56cb")
	f.Add("019b7ca9-8c89-7000-a919-07b7da6f56cb 1700000000000000")
	f.Add("019b7ca9-8c89-7000-a919-07b7da6f56cb soon")
	f.Add("no lane 5")
	f.Fuzz(func(t *testing.T, payload string) {
		id, until, ok := parseLaneChange(payload)
		switch {
		case !ok:
		case !strings.HasPrefix(strings.ToLower(payload), id.String()):
			t.Errorf("%q was read as being about %s", payload, id)
		case !until.IsZero() && !strings.Contains(payload, " "):
			t.Errorf("%q was read as a gate that closed until %s", payload, until)
		}
	})
}

func FuzzLane(f *testing.F) {
	f.Add("wh-019b7ca9-8c89-7000-a919-07b7da6f56cb")
	f.Add("wh-")
	f.Add("default")
	f.Fuzz(func(t *testing.T, queue string) {
		id, ok := LaneWebhook(queue)
		if ok && !strings.EqualFold(Lane(id), queue) {
			t.Errorf("%q was read as the lane of %s, which is %q", queue, id, Lane(id))
		}
	})
}

// TestListener plays River's notifier on a real connection.
func TestListener(t *testing.T) {
	t.Parallel()

	listen := func(t *testing.T, b *testBundle) riverdriver.Listener {
		t.Helper()
		l := NewDriver(b.db, b.Queue).GetListener(&riverdriver.GetListenenerParams{Schema: Schema})
		if err := l.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close(context.Background()) })
		if err := l.Listen(t.Context(), topicInsert); err != nil {
			t.Fatal(err)
		}
		return l
	}
	wait := func(t *testing.T, l riverdriver.Listener) *riverdriver.Notification {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), notifyWait)
		defer cancel()
		n, err := l.WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n.Topic != topicInsert {
			t.Fatalf("topic %q", n.Topic)
		}
		return n
	}
	notify := func(t *testing.T, b *testBundle, payload string) {
		t.Helper()
		if _, err := b.db.Exec(t.Context(), `SELECT pg_notify($1, $2)`, NotifyChannel, payload); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("PutsTheLanesIntoTheRingBeforeRiverHears", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		hook := b.newID()
		notify(t, b, Notifications([]webhook.ID{hook})[0])
		if _, ours := parseNotification(wait(t, l).Payload); !ours {
			t.Error("River would not wake its producer")
		}
		if active, _, _ := b.ring.stats(); active != 1 {
			t.Error("River heard, and the ring is empty")
		}
	})

	t.Run("TakesRiversOwnWordThatARetryIsDue", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		notify(t, b, `{"queue":"`+Lane(b.newID())+`"}`)
		if n := wait(t, l); n.Payload != wakeUp().Payload {
			t.Errorf("River would ignore %q", n.Payload)
		}
		if active, _, _ := b.ring.stats(); active != 1 {
			t.Error("the lane is not in the ring")
		}
	})

	t.Run("LooksForItselfWhenToldTo", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		isUp(b.look) // connecting raised it
		notify(t, b, `{"queue":"`+ClientQueue+`"}`)
		wait(t, l)
		if !isUp(b.look) {
			t.Error("discovery was not asked for")
		}
	})

	t.Run("MakesOneUpWhenTheQueueItselfKnowsOfWork", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		for range 3 { // the connection survives being interrupted
			signal(b.kick)
			if n := wait(t, l); n.Payload != wakeUp().Payload {
				t.Fatalf("got %q", n.Payload)
			}
		}
		hook := b.newID()
		notify(t, b, Notifications([]webhook.ID{hook})[0])
		wait(t, l)
		if active, _, _ := b.ring.stats(); active != 1 {
			t.Error("a real notification was lost after made-up ones")
		}
	})

	t.Run("LosesNeitherOfTwoThatComeAtOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		for range 50 {
			hook := b.newID()
			notify(t, b, Notifications([]webhook.ID{hook})[0])
			signal(b.kick)
			real := false
			for !real {
				n := wait(t, l)
				real = n.Payload != wakeUp().Payload
			}
		}
		if active, _, _ := b.ring.stats(); active != 50 {
			t.Errorf("%d of 50 lanes arrived", active)
		}
	})

	t.Run("ClosesAGateForAsLongAsItSaysWithoutAQuestion", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		busy, idle := b.newID(), b.newID()
		b.ring.learn(map[webhook.ID]Limit{busy: {MaxInFlight: 1}, idle: {MaxInFlight: 1}})
		b.ring.wake(busy)
		until := b.cfg.Clock.Now().Add(time.Hour).Truncate(time.Microsecond)
		for _, id := range []webhook.ID{busy, idle} {
			if _, err := b.db.Exec(t.Context(), `INSERT INTO fairhook.lane_gates (webhook_id, cause, until, closed_at, attempt_at)
				VALUES ($1, 'receiver', $2, now(), now())`, id, until); err != nil {
				t.Fatal(err)
			}
			wait(t, l)
		}
		if got := b.ring.take(10, 10, 10); len(got) != 0 {
			t.Errorf("offered %v behind the gate", limitsOf(got))
		}
		if asked, _ := b.ring.unknown(10); len(asked) != 0 {
			t.Errorf("asked about %v, of which all is known", asked)
		}
		if b.ring.lanes[busy] == nil || !b.ring.lanes[busy].gateUntil.Equal(until) {
			t.Error("the gate is not closed until then")
		}
		if b.ring.lanes[idle] != nil {
			t.Error("a lane with nothing waiting is kept in memory")
		}
		b.ring.wake(idle)
		if asked, _ := b.ring.unknown(10); len(asked) != 1 {
			t.Error("what was known of a lane before its gate closed is believed")
		}
		if _, err := b.db.Exec(t.Context(), `DELETE FROM fairhook.lane_gates WHERE webhook_id = $1`, busy); err != nil {
			t.Fatal(err)
		}
		wait(t, l)
		if asked, _ := b.ring.unknown(10); len(asked) != 1 {
			t.Error("a gate that opened is not asked about")
		}
	})

	t.Run("NoticesAConnectionThatHasGoneSilent", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		silent := throughSilence(t, b)
		l := listen(t, b)
		if !b.hears.Load() {
			t.Fatal("it does not hear at all")
		}
		silent()
		started := time.Now()
		if err := l.Ping(t.Context()); err == nil {
			t.Fatal("a connection that nobody answers on counts as alive")
		}
		if took := time.Since(started); took > 10*pingTimeout {
			t.Errorf("that took %s", took)
		}
		if b.hears.Load() {
			t.Error("discovery still relies on notifications")
		}
	})

	t.Run("EndsWithItsContext", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.WaitForNotification(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if err := l.Ping(t.Context()); err != nil {
			t.Errorf("the connection did not survive: %v", err)
		}
	})

	t.Run("CanBeConnectedAgainAfterItWasClosed", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		l := listen(t, b)
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.WaitForNotification(t.Context()); err == nil {
			t.Error("a closed listener waits")
		}
		if err := l.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !isUp(b.look) {
			t.Error("what was said meanwhile is not looked for")
		}
	})
}

// throughSilence sends the listener's connections through a relay, and returns what
// makes the relay stop passing anything on, without a word to either side.
func throughSilence(t *testing.T, b *testBundle) (silence func()) {
	t.Helper()
	cfg, err := pgx.ParseConfig(b.cfg.ListenURL)
	if err != nil {
		t.Fatal(err)
	}
	network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
	relay, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	var silent atomic.Bool
	pass := func(to, from net.Conn) {
		defer func() { _ = to.Close() }()
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if !silent.Load() {
				_, _ = to.Write(buf[:n])
			}
		}
	}
	go func() {
		for {
			in, err := relay.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial(network, address)
			if err != nil {
				_ = in.Close()
				return
			}
			go pass(in, out)
			go pass(out, in)
		}
	}()
	u, err := url.Parse(b.cfg.ListenURL)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query() // the server may be on a socket, which is named here
	query.Del("host")
	query.Del("port")
	u.Host, u.RawQuery = relay.Addr().String(), query.Encode()
	b.cfg.ListenURL = u.String()
	return func() { silent.Store(true) }
}

// TestQueueRun shows the parts that run beside the fetch at work.
func TestQueueRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()

	hook := b.newID()
	b.insert(t, hook, 1)
	signal(b.look)
	select {
	case <-b.kick:
	case <-time.After(notifyWait):
		t.Fatal("discovery found nothing")
	}
	if jobs := b.fetchJobs(t, 5); len(jobs) != 1 { // fewer than asked for: the ring is empty again
		t.Fatalf("fetched %d jobs", len(jobs))
	}

	b.Gate(hook, b.cfg.Clock.Now().Add(50*time.Millisecond))
	select {
	case <-b.kick:
	case <-time.After(notifyWait):
		t.Fatal("nobody was told that the gate opened")
	}

	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

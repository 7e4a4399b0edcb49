package e2etest

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// counter is a receiver that answers when it is released, and remembers how often it
// got each event.
type counter struct {
	url     string
	release func()

	mu  sync.Mutex
	got map[string]int // by webhook-id; guarded by mu
}

func newCounter(t *testing.T) *counter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	r := &counter{
		url: "http://" + listener.Addr().String(), got: map[string]int{},
		release: sync.OnceFunc(func() { close(released) }),
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.got[req.Header.Get("webhook-id")]++
		r.mu.Unlock()
		<-released
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends with Close
	}()
	t.Cleanup(func() {
		r.release()
		_ = server.Close()
		<-served
	})
	return r
}

func (r *counter) requests(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[id]
}

func (r *counter) total() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, requests := range r.got {
		n += requests
	}
	return n
}

// instanceOf is the instance that a process is.
func instanceOf(t *testing.T, c *client.Client, p *process) *client.Instance {
	t.Helper()
	for i, err := range c.Instances(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(i.ID, "-"+strconv.Itoa(p.cmd.Process.Pid)+"-") {
			return i
		}
	}
	return nil
}

// holds is how many running deliveries an instance has claimed.
func (s *stack) holds(instance string) int {
	s.t.Helper()
	return s.count(`SELECT count(*) FROM fairhook.river_job
		WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = $1`, instance)
}

// twoHolding starts two dispatchers, each with requests under way to r, and returns
// them with the ids of the events.
func (s *stack) twoHolding(c *client.Client, r *counter) (pair [2]*process, instances [2]string, events []string) {
	t := s.t
	t.Helper()
	hook, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: r.url, TimeoutSeconds: 100, MaxInFlight: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for i := range pair {
		pair[i] = s.run("dispatcher")
	}
	for i := range pair {
		instances[i] = instanceOf(t, c, pair[i].ready()).ID
	}
	for s.holds(instances[0]) < 3 || s.holds(instances[1]) < 3 {
		if len(events) > 200 {
			t.Fatal("one dispatcher does all the work")
		}
		accepted, err := c.Submit(t.Context(), client.Event{WebhookID: hook.ID, Type: "order.paid", Payload: []byte(`{}`)})
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, accepted.ID)
	}
	eventually(t, "every request is under way", func() bool { return r.total() == len(events) })
	return pair, instances, events
}

// TestAStoppedDispatcherDoesNoHarmWhenItGoesOn stops one with SIGSTOP for longer than
// it takes to count as dead, with requests under way, and lets it go on.
func TestAStoppedDispatcherDoesNoHarmWhenItGoesOn(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := s.client(s.run("ingest").ready())
	r := newCounter(t)
	pair, instances, events := s.twoHolding(c, r)
	held := s.holds(instances[0])
	pair[0].signal(syscall.SIGSTOP)
	stopped := time.Now()
	within(t, 30*time.Second, "the other has taken over all it held", func() bool {
		return s.holds(instances[1]) == len(events) && r.total() == len(events)+held
	})
	t.Logf("%d of %d deliveries were taken over after %s", held, len(events), time.Since(stopped).Round(time.Second))
	pair[0].signal(syscall.SIGCONT)
	eventually(t, "it is heard of again", func() bool { return instanceOf(t, c, pair[0]).Status == client.InstanceAlive })
	r.release()
	eventually(t, "every delivery has ended", func() bool { return s.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	eventually(t, "what was under way in the stopped one is on record too", func() bool {
		return s.count(`SELECT count(*) FROM fairhook.attempts WHERE instance = $1`, instances[0]) == held
	})
	for _, id := range events {
		view, err := c.Event(t.Context(), id)
		if err != nil || view.Deliveries[0].Status != client.DeliveryDelivered {
			t.Errorf("event %s ended as %+v, %v", id, view, err)
		}
		attempts := s.count(`SELECT count(*) FROM fairhook.attempts WHERE event_id = $1 AND status_code = 200`, id)
		if n := r.requests(id); n != attempts || n < 1 || n > 2 {
			t.Errorf("event %s arrived %d times, and %d attempts are on record", id, n, attempts)
		}
	}
	if n := r.total(); n != len(events)+held {
		t.Errorf("%d requests for %d events of which %d were under way in the stopped process", n, len(events), held)
	}
	eventually(t, "its finishes were ignored, since others had the deliveries", func() bool {
		return s.metric(pair[0], "fairhook_stale_finishes_total") == float64(held)
	})
	// It is good for work again.
	pair[1].kill()
	accepted, err := c.Submit(t.Context(), client.Event{Tenant: "acme", Type: "order.paid", Payload: []byte(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it delivers", func() bool { return r.requests(accepted.ID) == 1 })
}

// TestTheDeathOfTheLeader kills it with -9.
func TestTheDeathOfTheLeader(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := s.client(s.run("ingest").ready())
	r := newCounter(t)
	pair, instances, events := s.twoHolding(c, r)
	leader, other := 0, 1
	eventually(t, "one leads", func() bool {
		for i := range pair {
			if instanceOf(t, c, pair[i]).Leader {
				leader, other = i, 1-i
				return true
			}
		}
		return false
	})
	for _, duty := range []string{"partitions", "idempotency_expiry", "retention", "sweep", "vacuum"} {
		if at := s.metric(pair[other], `fairhook_duty_last_success_timestamp_seconds{duty="`+duty+`"}`); at != 0 {
			t.Errorf("the duty %s ran on an instance that does not lead", duty)
		}
	}
	held, kept := s.holds(instances[leader]), s.holds(instances[other])
	pair[leader].kill()
	killed := time.Now()
	left := func() time.Duration { return time.Until(killed.Add(30 * time.Second)) }

	t.Run("GivesItsDeliveriesBackWithin30SecondsAndDisturbsNobody", func(t *testing.T) {
		within(t, left(), "the other works what the dead one held", func() bool {
			return s.holds(instances[other]) == held+kept && r.total() == len(events)+held
		})
		t.Logf("%d deliveries were on their way again after %s", held, time.Since(killed).Round(time.Second))
		if n := s.count(`SELECT count(*) FROM fairhook.river_job WHERE attempted_by = ARRAY[$1]`, instances[other]); n != kept {
			t.Errorf("%d of the %d deliveries of the living were left alone", n, kept)
		}
	})
	t.Run("DelaysItsDutiesByLessThan30Seconds", func(t *testing.T) {
		within(t, left(), "the other leads, and has done every duty", func() bool {
			for _, duty := range []string{"partitions", "idempotency_expiry", "retention", "sweep", "vacuum"} {
				if s.metric(pair[other], `fairhook_duty_last_success_timestamp_seconds{duty="`+duty+`"}`) < float64(killed.Unix()) {
					return false
				}
			}
			return s.metric(pair[other], "fairhook_leader") == 1
		})
		t.Logf("its duties were done after %s", time.Since(killed).Round(time.Second))
	})
	t.Run("ShowsInTheListOfInstances", func(t *testing.T) {
		eventually(t, "the list says so", func() bool {
			dead, living := instanceOf(t, c, pair[leader]), instanceOf(t, c, pair[other])
			return dead.Status == client.InstanceStale && !dead.Leader && living.Status == client.InstanceAlive && living.Leader
		})
	})
	r.release()
	eventually(t, "every delivery has ended", func() bool { return s.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	if n := r.total(); n != len(events)+held {
		t.Errorf("%d requests for %d events of which %d were under way in the dead process", n, len(events), held)
	}
}

// TestAnIngestSaysThatItDrains from the first signal on, while it takes requests still.
func TestAnIngestSaysThatItDrains(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	p := s.run("ingest", "FAIRHOOK_SHUTDOWN_DELAY=8s").ready()
	c := s.client(p)
	eventually(t, "it is listed", func() bool { return instanceOf(t, c, p) != nil })
	if i := instanceOf(t, c, p); i.Role != "ingest" || i.Draining || i.Capacity != 8192 || i.InFlight != 0 || i.Leader || i.Version == "" || i.Host == "" {
		t.Errorf("it is listed as %+v", i)
	}
	p.signal(syscall.SIGTERM)
	within(t, 5*time.Second, "it drains", func() bool { return instanceOf(t, c, p).Draining })
	if code := p.exitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := s.count(`SELECT count(*) FROM fairhook.instances`); n != 0 {
		t.Errorf("%d instances are listed, and none runs", n)
	}
}

// TestADispatcherStopsInTimeWithItsDatabaseAway whatever it holds: with nothing in
// order, and else with exit code 1, since what became of its requests is not on record.
func TestADispatcherStopsInTimeWithItsDatabaseAway(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	s := stackOn(t, server.URL("fairhook"))
	settings := []string{"FAIRHOOK_SHUTDOWN_TIMEOUT=8s", "FAIRHOOK_DRAIN_TIMEOUT=2s"}
	idle := s.run("dispatcher", settings...).ready()
	c := s.client(s.run("ingest").ready())
	r := newCounter(t)
	if _, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: r.url, TimeoutSeconds: 100}); err != nil {
		t.Fatal(err)
	}
	stop := func(p *process) (code int, took time.Duration) {
		began := time.Now()
		code = p.terminate()
		return code, time.Since(began)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	code, took := stop(idle)
	t.Logf("idle: exit code %d after %s", code, took)
	if took > 12*time.Second {
		t.Errorf("with nothing in flight it took %s", took)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	busy := s.run("dispatcher", settings...).ready()
	accepted, err := c.Submit(t.Context(), client.Event{Tenant: "acme", Type: "order.paid", Payload: []byte(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is under way", func() bool { return r.requests(accepted.ID) == 1 })
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	r.release() // it is delivered, and there is nowhere to write that down
	code, took = stop(busy)
	t.Logf("busy: exit code %d after %s", code, took)
	if code != 1 || took > 12*time.Second {
		t.Errorf("with a delivery to record it took %s and ended with code %d", took, code)
	}
}

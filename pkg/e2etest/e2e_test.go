package e2etest

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairhook/fairhook/pkg/client"
)

func mustNot(t *testing.T) func(error) {
	return func(err error) { t.Errorf("refused: %v", err) }
}

// TestEveryAcknowledgedEventArrives is the main job: two ingests, two
// dispatchers and a receiver as processes, 2,000 events over 20 webhooks.
func TestEveryAcknowledgedEventArrives(t *testing.T) {
	t.Parallel()
	const hooks, events = 20, 2000
	s := newStack(t)
	ingests := []*process{s.run("ingest"), s.run("ingest")}
	dispatchers := []*process{s.run("dispatcher"), s.run("dispatcher")}
	clients := []*client.Client{s.client(ingests[0].ready()), s.client(ingests[1].ready())}
	for _, d := range dispatchers {
		d.ready()
	}
	r := newReceiver(t)
	ids, paths := r.hooks(clients[0], hooks)
	book := &ledger{events: map[string]submitted{}}
	book.submit(t, clients, ids, paths, events, mustNot(t))
	if book.size() != events {
		t.Fatalf("%d of %d events were acknowledged", book.size(), events)
	}
	eventually(t, "every event has arrived", func() bool { return r.missing(book.events) == 0 })
	if duplicates := r.check(book.events); duplicates != 0 {
		t.Errorf("%d events arrived twice, and nothing went wrong", duplicates)
	}

	eventually(t, "nothing is left to do", func() bool { return s.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	if n := s.count(`SELECT count(*) FROM fairhook.attempts WHERE status = 'delivered' AND reason = 'delivered' AND number = 1`); n != events {
		t.Errorf("%d attempts are on record for %d deliveries", n, events)
	}
	if n := s.count(`SELECT count(DISTINCT instance) FROM fairhook.attempts`); n != 2 {
		t.Errorf("%d of 2 dispatchers did the work", n)
	}
	for id := range book.events { // one is enough: the API shows what happened
		view, err := clients[1].Event(t.Context(), id)
		if err != nil || len(view.Deliveries) != 1 || view.Deliveries[0].Status != client.DeliveryDelivered || string(view.Payload) != book.events[id].payload {
			t.Errorf("GET /v1/events/%s: %+v, %v", id, view, err)
		}
		attempts, err := clients[0].Attempts(t.Context(), id)
		if err != nil || len(attempts) != 1 || *attempts[0].StatusCode != http.StatusOK || attempts[0].Timings.Total == nil {
			t.Errorf("GET /v1/events/%s/attempts: %+v, %v", id, attempts, err)
		}
		break
	}
	if commits := s.batches(ingests); commits >= events {
		t.Errorf("%d commits for %d events: they are not committed in groups", commits, events)
	}
	for _, p := range append(ingests, dispatchers...) {
		if code := p.terminate(); code != 0 {
			t.Errorf("%s: exit code %d after SIGTERM", p.name, code)
		}
		checkLog(t, p)
	}
	for _, p := range dispatchers {
		checkAttemptLog(t, p)
	}
}

// batches is how many commits the ingests made, by their own count.
func (s *stack) batches(ingests []*process) (n int) {
	s.t.Helper()
	for _, p := range ingests {
		for line := range strings.Lines(s.get(p, "/metrics")) {
			if value, found := strings.CutPrefix(line, "fairhook_commit_batch_events_count "); found {
				count, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					s.t.Fatal(err)
				}
				n += int(count)
			}
		}
	}
	if n == 0 {
		s.t.Fatal("the ingests count no batches")
	}
	return n
}

func (s *stack) get(p *process, path string) string {
	s.t.Helper()
	response, err := http.Get("http://" + p.addr + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(body)
}

// checkAttemptLog wants a dispatcher's lines about attempts to name them.
func checkAttemptLog(t *testing.T, p *process) {
	t.Helper()
	named := 0
	for text := range strings.Lines(p.output()) {
		var line struct {
			Msg       string `json:"msg"`
			EventID   string `json:"event_id"`
			WebhookID string `json:"webhook_id"`
			Attempt   int    `json:"attempt"`
			Reason    string `json:"reason"`
			Status    string `json:"status"`
		}
		if json.Unmarshal([]byte(text), &line) != nil || line.Msg != "attempt" {
			continue
		}
		named++
		if len(line.EventID) != 36 || len(line.WebhookID) != 36 || line.Attempt != 1 || line.Reason != "delivered" || line.Status != "delivered" {
			t.Errorf("%s logged an attempt as %s", p.name, text)
			return
		}
	}
	if named == 0 {
		t.Errorf("%s logged no attempt", p.name)
	}
}

// checkLog wants JSON lines that say who speaks.
func checkLog(t *testing.T, p *process) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(p.output()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line map[string]any
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Errorf("%s logged what is not JSON: %s", p.name, lines.Text())
			continue
		}
		for _, key := range []string{"time", "level", "msg", "instance", "role", "version"} {
			if line[key] == nil {
				t.Errorf("%s logged a line without %s: %s", p.name, key, lines.Text())
				return
			}
		}
	}
}

// TestKillingProcessesLosesNothingAcknowledged kills a dispatcher and an ingest
// with -9 in the middle. What they were doing is done by the others.
func TestKillingProcessesLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	const hooks, events = 20, 2000
	s := newStack(t)
	ingests := []*process{s.run("ingest"), s.run("ingest")}
	dispatchers := []*process{s.run("dispatcher"), s.run("dispatcher")}
	clients := []*client.Client{s.client(ingests[0].ready()), s.client(ingests[1].ready())}
	for _, d := range dispatchers {
		d.ready()
	}
	r := newReceiver(t)
	r.takes = 50 * time.Millisecond
	ids, paths := r.hooks(clients[0], hooks)
	book := &ledger{events: map[string]submitted{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		// An ingest that is dead refuses; that is no loss, since it said nothing.
		book.submit(t, clients, ids, paths, events, func(error) {})
	})
	eventually(t, "traffic flows", func() bool { return book.size() > events/8 })
	dispatchers[0].kill()
	killed := time.Now()
	eventually(t, "more traffic flows", func() bool { return book.size() > events/4 })
	ingests[1].kill()
	// Where the dead one stood, another comes up, as a supervisor would have it.
	restarted := start(t, s.programs.program(t, "ingest"), append(s.env, "FAIRHOOK_LISTEN="+ingests[1].addr))
	restarted.addr = ingests[1].addr
	restarted.ready()
	wg.Wait()

	within(t, time.Until(killed.Add(30*time.Second))+testWait, "every acknowledged event has arrived", func() bool { return r.missing(book.events) == 0 })
	t.Logf("%d events acknowledged, all arrived %s after the kill", book.size(), time.Since(killed).Round(time.Second))
	duplicates := r.check(book.events)
	t.Logf("%d arrived more than once", duplicates)
	// Only what was in flight at the kill can be sent twice.
	if limit := 1000; duplicates > limit {
		t.Errorf("%d duplicates", duplicates)
	}
	eventually(t, "nothing is left to do", func() bool { return s.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
	if n := s.count(`SELECT count(*) FROM fairhook.events`); n < book.size() {
		t.Errorf("%d events are stored of %d acknowledged", n, book.size())
	}
	if n := s.count(`SELECT count(*) FROM fairhook.events e WHERE NOT EXISTS (
		SELECT FROM fairhook.attempts a WHERE a.event_id = e.id AND a.status = 'delivered')`); n != 0 {
		t.Errorf("%d stored events have no delivery on record", n)
	}
}

// TestDeliveriesOfAKilledDispatcherAreSentAgainWithin30Seconds has nobody else
// to take over: it is started again, as a new instance.
func TestDeliveriesOfAKilledDispatcherAreSentAgainWithin30Seconds(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest := s.run("ingest")
	c := s.client(ingest.ready())
	h := newHolder(t)
	hook, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: h.url + "/hold", TimeoutSeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	first := s.run("dispatcher").ready()
	const events = 10
	for range events {
		if _, err := c.Submit(t.Context(), client.Event{WebhookID: hook.ID, Type: "order.paid", Payload: []byte(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the requests are in flight", func() bool { return h.held() == events })
	first.kill()
	killed := time.Now()
	eventually(t, "the receiver has noticed", func() bool { return h.held() == 0 })
	s.run("dispatcher")
	within(t, time.Until(killed.Add(30*time.Second)), "all are sent again within 30 s", func() bool { return h.held() == events })
	t.Logf("sent again %s after the kill", time.Since(killed).Round(time.Second))
	h.release()
	eventually(t, "all are delivered", func() bool {
		return s.count(`SELECT count(*) FROM fairhook.attempts WHERE status = 'delivered'`) == events
	})
}

// TestStoppingUnderTrafficLosesNothingAndRefusesInOrder stops an ingest and a
// dispatcher with SIGTERM while events flow: exit 0, no request cut off, nothing
// lost and nothing doubled.
func TestStoppingUnderTrafficLosesNothingAndRefusesInOrder(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingests := []*process{s.run("ingest"), s.run("ingest")}
	dispatchers := []*process{s.run("dispatcher"), s.run("dispatcher")}
	clients := []*client.Client{s.client(ingests[0].ready()), s.client(ingests[1].ready())}
	for _, d := range dispatchers {
		d.ready()
	}
	r := newReceiver(t)
	ids, paths := r.hooks(clients[0], 5)
	book := &ledger{events: map[string]submitted{}}
	var wg sync.WaitGroup
	// Only the ingest that stays is asked; the other is asked beside it.
	wg.Go(func() { book.submit(t, clients[:1], ids, paths, 1500, mustNot(t)) })
	leaving := &ledger{events: map[string]submitted{}}
	impatient, err := client.New("http://"+ingests[1].addr, bootstrap, client.WithRetryMax(0))
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		leaving.submit(t, []*client.Client{impatient}, ids, paths, 1500, func(err error) {
			// Refused because it has stopped listening, in so many words, or because
			// the idle connection that was chosen had just been closed.
			if !strings.Contains(err.Error(), "connection refused") && !client.IsUnavailable(err) &&
				!strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "connection reset") {
				t.Errorf("refused: %v", err)
			}
		})
	})
	eventually(t, "traffic flows", func() bool { return book.size() > 200 && leaving.size() > 200 })
	for _, p := range []*process{dispatchers[0], ingests[1]} {
		if code := p.terminate(); code != 0 {
			t.Errorf("%s: exit code %d after SIGTERM", p.name, code)
		}
	}
	wg.Wait()
	all := map[string]submitted{}
	for _, b := range []*ledger{book, leaving} {
		for id, e := range b.events {
			all[id] = e
		}
	}
	eventually(t, "every acknowledged event has arrived", func() bool { return r.missing(all) == 0 })
	if duplicates := r.check(all); duplicates != 0 {
		t.Errorf("%d events arrived twice after an orderly stop", duplicates)
	}
	if n := s.count(`SELECT count(*) FROM fairhook.instances WHERE role = 'dispatcher'`); n != 1 {
		t.Errorf("%d dispatchers are listed, one is running", n)
	}
}

// TestASecondSignalStopsAtOnce does not wait for what is in flight.
func TestASecondSignalStopsAtOnce(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := s.client(s.run("ingest").ready())
	h := newHolder(t)
	hook, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: h.url + "/hold", TimeoutSeconds: 100})
	if err != nil {
		t.Fatal(err)
	}
	d := s.run("dispatcher").ready()
	if _, err := c.Submit(t.Context(), client.Event{WebhookID: hook.ID, Type: "order.paid", Payload: []byte(`{}`)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is in flight", func() bool { return h.held() == 1 })
	d.signal(syscall.SIGTERM)
	eventually(t, "readiness is off", func() bool { return strings.Contains(s.get(d, "/readyz"), "not ready") })
	d.signal(syscall.SIGTERM)
	asked := time.Now()
	if code := d.exitCode(); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	if took := time.Since(asked); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestTenThousandRequestsInFlightNeedTenConnections holds as many requests as
// one dispatcher may have. Few webhooks could not fill it: it leaves some slots to
// those that have nothing in flight.
func TestTenThousandRequestsInFlightNeedTenConnections(t *testing.T) {
	t.Parallel()
	const inFlight, hooks = 10_000, 5000
	raiseFileLimit(t, inFlight+1000)
	s := newStack(t)
	s.programs = &unchecked
	ingest := s.run("ingest")
	c := s.client(ingest.ready())
	h := newHolder(t)
	var creating errgroup.Group
	creating.SetLimit(16)
	for range hooks {
		creating.Go(func() error {
			_, err := c.Webhooks().Create(t.Context(), client.NewWebhook{
				Tenant: "acme", URL: h.url + "/hold", TimeoutSeconds: 120, MaxInFlight: inFlight / hooks,
			})
			return err
		})
	}
	if err := creating.Wait(); err != nil {
		t.Fatal(err)
	}
	d := s.run("dispatcher", "FAIRHOOK_WORKERS="+strconv.Itoa(inFlight), "FAIRHOOK_MAX_IN_FLIGHT_PER_HOST=0", "FAIRHOOK_LOG_LEVEL=info").ready()
	for range inFlight / hooks { // by fan-out: one delivery to each webhook an event
		accepted, err := c.Submit(t.Context(), client.Event{Tenant: "acme", Type: "order.paid", Payload: []byte(`{}`)})
		if err != nil {
			t.Fatal(err)
		}
		if len(accepted.Deliveries) != hooks {
			t.Fatalf("%d deliveries for %d webhooks", len(accepted.Deliveries), hooks)
		}
	}
	most := 0
	eventually(t, "ten thousand requests are in flight", func() bool {
		most = max(most, s.connections())
		return h.held() == inFlight
	})
	most = max(most, s.connections())
	h.release()
	eventually(t, "all are delivered", func() bool {
		most = max(most, s.connections())
		return s.count(`SELECT count(*) FROM fairhook.attempts WHERE status = 'delivered'`) == inFlight
	})
	if most > 10 {
		t.Errorf("the dispatcher held %d connections to the database, want at most 10", most)
	}
	if code := d.terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// connections is how many the dispatcher has to the database.
func (s *stack) connections() int {
	s.t.Helper()
	return s.count(`SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name IN ('fairhook-dispatcher', 'fairhook-fetch', 'fairhook-listen', 'fairhook-catalog')`)
}

// holder is the receiver in testdata/holder, as a process.
type holder struct {
	t   *testing.T
	url string
}

func newHolder(t *testing.T) *holder {
	t.Helper()
	p := start(t, unchecked.program(t, "holder"), nil)
	h := &holder{t: t}
	eventually(t, "the receiver says where it listens", func() bool {
		address, _, found := strings.Cut(p.output(), "\n")
		h.url = "http://" + address
		return found
	})
	return h
}

func (h *holder) held() int {
	h.t.Helper()
	response, err := http.Get(h.url + "/held")
	if err != nil {
		h.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	n, err := strconv.Atoi(string(text))
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

func (h *holder) release() {
	h.t.Helper()
	response, err := http.Post(h.url+"/release", "", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	_ = response.Body.Close()
}

// raiseFileLimit makes room for the connections of the processes started from
// here.
func raiseFileLimit(t *testing.T, files uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < files {
		t.Fatalf("this test needs %d open files, and the hard limit is %d: raise it with ulimit -Hn", files, limit.Max)
	}
	if limit.Cur < files {
		limit.Cur = limit.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}
}

// TestServicesRefuseAnOldSchema says what to do about it.
func TestServicesRefuseAnOldSchema(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	down := start(t, s.programs.program(t, "migrate"), s.env, "down")
	if code := down.exitCode(); code != 0 {
		t.Fatalf("migrate down: exit code %d", code)
	}
	for _, name := range []string{"ingest", "dispatcher"} {
		p := s.run(name)
		if code := p.exitCode(); code != 1 {
			t.Errorf("%s: exit code %d, want 1", name, code)
		}
		if !strings.Contains(p.output(), "migrate up") {
			t.Errorf("%s does not name the command to run: %s", name, p.output())
		}
	}
}

// TestWrongConfigurationIsNamedAllAtOnce by flag and environment name.
func TestWrongConfigurationIsNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ingest", "dispatcher"} {
		cmd := exec.Command(checked.program(t, name), "--log-level=loud")
		cmd.Env = []string{"FAIRHOOK_ALLOW_PRIVATE_TARGETS=everything", "FAIRHOOK_SHUTDOWN_TIMEOUT=soon"}
		output, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); err == nil || code != 2 {
			t.Errorf("%s: exit code %d, want 2", name, code)
		}
		for _, want := range []string{
			"--database-url", "FAIRHOOK_DATABASE_URL", "--encryption-key", "FAIRHOOK_ENCRYPTION_KEY",
			"--log-level", "FAIRHOOK_LOG_LEVEL", "--allow-private-targets", "FAIRHOOK_ALLOW_PRIVATE_TARGETS",
			"--shutdown-timeout", "FAIRHOOK_SHUTDOWN_TIMEOUT",
		} {
			if !strings.Contains(string(output), want) {
				t.Errorf("%s does not name %s:\n%s", name, want, output)
			}
		}
	}
}

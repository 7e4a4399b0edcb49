package e2etest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

// orderReceiver fails some requests, as chance has it, and remembers in which order
// events first succeeded on each path.
type orderReceiver struct {
	mu        sync.Mutex
	seen      map[string]bool
	succeeded map[string][]string // by path
}

// ServeHTTP takes a delivery, or fails.
func (r *orderReceiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if rand.IntN(40) == 0 {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	id := req.Header.Get("webhook-id")
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.seen[id+req.URL.Path] {
		r.seen[id+req.URL.Path] = true
		r.succeeded[req.URL.Path] = append(r.succeeded[req.URL.Path], id)
	}
}

func (r *orderReceiver) got(path string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.succeeded[path])
}

// orderedLoad submits events to a webhook, each after the one before was acknowledged.
type orderedLoad struct {
	path string

	mu  sync.Mutex
	ids []string       // guarded by mu
	key map[string]int // guarded by mu
}

// run submits until ctx ends, with so many ordering keys in turn.
func (l *orderedLoad) run(ctx context.Context, t *testing.T, c *client.Client, hook string, keys int) {
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		accepted, err := c.Submit(context.WithoutCancel(ctx), client.Event{
			WebhookID: hook, Type: "order.paid", Payload: []byte(`1`), OrderingKey: fmt.Sprintf("key %d", i%keys),
		})
		if err != nil {
			t.Errorf("submit: %v", err)
			return
		}
		l.mu.Lock()
		l.ids, l.key[accepted.ID] = append(l.ids, accepted.ID), i%keys
		l.mu.Unlock()
	}
}

// check holds what a receiver got to the order in which it was acknowledged.
func (l *orderedLoad) check(t *testing.T, r *orderReceiver, keys int) {
	t.Helper()
	within(t, 2*testWait, "all events of "+l.path+" have succeeded", func() bool { return len(r.got(l.path)) >= len(l.ids) })
	for key := range keys {
		other := func(id string) bool { return l.key[id] != key }
		if !slices.Equal(slices.DeleteFunc(r.got(l.path), other), slices.DeleteFunc(slices.Clone(l.ids), other)) {
			t.Errorf("%s, key %d: the first successes are not in the order of acceptance", l.path, key)
		}
	}
}

// TestOrderHoldsWhileDispatchersAreKilledAndStopped kills the dispatcher that works the
// ordered webhooks with -9, and stops the one that follows it until it is taken for dead,
// while a receiver fails now and then.
func TestOrderHoldsWhileDispatchersAreKilledAndStopped(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	r := &orderReceiver{seen: map[string]bool{}, succeeded: map[string][]string{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	c := s.client(s.run("ingest").ready())

	// instances tells which dispatcher is which.
	instances := map[string]*process{}
	dispatcher := func() {
		t.Helper()
		p := s.run("dispatcher").ready()
		rows, err := s.database.Pool.Query(t.Context(), `SELECT id FROM fairhook.instances WHERE role = 'dispatcher'`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				t.Fatal(err)
			}
			if instances[id] == nil {
				instances[id] = p
			}
		}
	}
	owner := func(hook string) *process {
		t.Helper()
		var id string
		if err := s.database.Pool.QueryRow(t.Context(), `SELECT owner FROM fairhook.lane_owners WHERE webhook_id = $1`, hook).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return instances[id]
	}
	for range 3 {
		dispatcher()
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var (
		submitting sync.WaitGroup
		loads      []*orderedLoad
		hooks      []string
		keys       = []int{1, 3}
	)
	for i, o := range []client.Ordering{client.OrderingStrict, client.OrderingKey} {
		l := &orderedLoad{path: "/" + string(o), key: map[string]int{}}
		w, err := c.Webhooks().Create(t.Context(), client.NewWebhook{
			Tenant: "acme", URL: server.URL + l.path, Ordering: o, RetrySchedule: []int{1}, TimeoutSeconds: 5,
		})
		if err != nil {
			t.Fatal(err)
		}
		loads, hooks = append(loads, l), append(hooks, w.ID)
		submitting.Go(func() { l.run(ctx, t, c, w.ID, keys[i]) })
	}
	// goesOn waits until both have got more.
	goesOn := func(what string) {
		t.Helper()
		for _, l := range loads {
			at := len(r.got(l.path))
			within(t, time.Minute+testWait, l.path+" goes on "+what, func() bool { return len(r.got(l.path)) > at+10 })
		}
	}
	goesOn("at first")
	for _, hook := range hooks {
		if p := owner(hook); p != nil {
			select {
			case <-p.done: // it owned both
			default:
				p.kill()
				dispatcher()
			}
		}
	}
	goesOn("after its dispatcher was killed")
	stopped := owner(hooks[0])
	stopped.signal(syscall.SIGSTOP)
	goesOn("while its dispatcher is stopped")
	stopped.signal(syscall.SIGCONT)
	goesOn("after that goes on")
	cancel()
	submitting.Wait()
	for i, l := range loads {
		l.check(t, r, keys[i])
	}
}

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// healthCheckTimeout bounds one run of a check.
	healthCheckTimeout = time.Second
	// healthCacheTime is how long a check's result answers probes, so that
	// they cannot hammer what it asks.
	healthCacheTime = 500 * time.Millisecond
)

// NotReady is an error whose text a probe may see: a few words, like "schema too
// old". The text of any other error stays inside.
type NotReady string

func (n NotReady) Error() string { return string(n) }

// Health answers the probes of whatever runs the process.
//
//   - /livez says whether the process is worth keeping: 503 asks for a restart.
//     Its checks (AddLive) look at nothing outside the process, or a database
//     outage would restart every copy of it.
//   - /readyz says whether to send it work: 503 while a check (Add) fails, and
//     from SetStopping on.
//
// Checks are added before the handlers serve. Everything else is safe for
// concurrent use.
type Health struct {
	live     []*healthCheck
	ready    []*healthCheck
	stopping atomic.Bool
}

// NewHealth makes a Health without checks: live and ready.
func NewHealth() *Health { return &Health{} }

// Add adds a part that /readyz reports under name. check has one second. Its
// result answers for half a second, and it is never run twice at the same time.
//
// The report shows the text of a NotReady error; of others it says "timeout",
// "unreachable" (no connection) or "failed".
func (h *Health) Add(name string, check func(ctx context.Context) error) {
	h.ready = append(h.ready, &healthCheck{name: name, check: check})
}

// AddLive is Add for /livez.
func (h *Health) AddLive(name string, check func(ctx context.Context) error) {
	h.live = append(h.live, &healthCheck{name: name, check: check})
}

// SetStopping makes /readyz answer 503 from now on. /livez stays as it is, so
// that nobody kills the process while it stops in order.
func (h *Health) SetStopping() { h.stopping.Store(true) }

// Withdraw is the stage (see Stages) that goes last in and first out: told to
// stop, it turns readiness off and then waits for delay, in which balancers
// notice and requests still on their way arrive.
func (h *Health) Withdraw(delay time.Duration) func(ctx, drain context.Context) error {
	return func(ctx, drain context.Context) error {
		<-ctx.Done()
		h.SetStopping()
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-drain.Done():
		}
		return nil
	}
}

// Handler serves /livez, /readyz and, where there is a registry, /metrics.
func (h *Health) Handler(registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /livez", h.Livez())
	mux.Handle("GET /readyz", h.Readyz())
	if registry != nil {
		mux.Handle("GET /metrics", MetricsHandler(registry))
	}
	return mux
}

// Livez answers 200 {"status":"live","checks":{...}} or 503 with "not live".
func (h *Health) Livez() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ok, checks := runChecks(r.Context(), h.live)
		writeHealth(w, ok, "live", checks)
	})
}

// Readyz answers 200 {"status":"ready","checks":{"database":"ok"}} or 503 with
// "not ready" and, for each part that is not, a short reason. A process that is
// stopping says so as the part "process".
func (h *Health) Readyz() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ok, checks := runChecks(r.Context(), h.ready)
		checks["process"] = healthOK
		if h.stopping.Load() {
			ok, checks["process"] = false, "stopping"
		}
		writeHealth(w, ok, "ready", checks)
	})
}

const healthOK = "ok"

func writeHealth(w http.ResponseWriter, ok bool, word string, checks map[string]string) {
	code := http.StatusOK
	if !ok {
		code, word = http.StatusServiceUnavailable, "not "+word
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	// The prober may have left; there is nobody to tell.
	_ = json.NewEncoder(w).Encode(struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks"`
	}{word, checks})
}

// runChecks runs the checks side by side. ctx is the prober's: when it leaves,
// runChecks returns, and the checks go on for the next prober.
func runChecks(ctx context.Context, checks []*healthCheck) (ok bool, results map[string]string) {
	waits := make([]<-chan struct{}, len(checks))
	for i, c := range checks {
		waits[i] = c.refresh(ctx)
	}
	ok, results = true, make(map[string]string, len(checks)+1)
	for i, c := range checks {
		select {
		case <-waits[i]:
		case <-ctx.Done():
		}
		result := c.last()
		results[c.name] = result
		ok = ok && result == healthOK
	}
	return ok, results
}

// healthCheck is one check and what it last said.
type healthCheck struct {
	name  string
	check func(ctx context.Context) error

	// mu guards what follows; it is never held while check runs.
	mu      sync.Mutex
	result  string        // "ok", a reason, or empty before the first run
	at      time.Time     // when result was learnt
	pending chan struct{} // closed when result is there for those who wait
	stuck   bool          // check has outlived its deadline, and still runs
}

// refresh starts the check unless its result is fresh or it runs already, and
// returns a channel that is closed once there is a result to read.
func (c *healthCheck) refresh(ctx context.Context) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil {
		return c.pending
	}
	ready := make(chan struct{})
	if c.stuck || !c.at.IsZero() && time.Since(c.at) < healthCacheTime {
		close(ready)
		return ready
	}
	c.pending = ready
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthCheckTimeout)
	answer := make(chan error, 1)
	go func() { answer <- c.check(ctx) }()
	go func() {
		defer cancel()
		select {
		case err := <-answer:
			c.settle(err, false)
		case <-ctx.Done():
			// It may ignore its context: the probes must not hang with it.
			c.settle(ctx.Err(), true)
			err := <-answer
			c.settle(err, false)
		}
	}()
	return ready
}

// settle keeps a result and lets those who wait read it.
func (c *healthCheck) settle(err error, stuck bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result, c.at, c.stuck = healthReason(err), time.Now(), stuck
	if c.pending != nil {
		close(c.pending)
		c.pending = nil
	}
}

func (c *healthCheck) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.result == "" {
		return "unknown"
	}
	return c.result
}

// healthReason is what a probe may know of an error.
func healthReason(err error) string {
	var (
		notReady NotReady
		connect  *pgconn.ConnectError
		network  *net.OpError
	)
	switch {
	case err == nil:
		return healthOK
	case errors.As(err, &notReady):
		return string(notReady)
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &connect), errors.As(err, &network):
		return "unreachable"
	default:
		return "failed"
	}
}

package catalog

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// table remembers what a load function answered, by key.
//
// The rule that keeps stale values out: a load that was under way when its key
// was invalidated may answer those who asked before, and is not remembered; who
// asks afterwards starts a new load.
type table[K comparable, V any] struct {
	catalog *Catalog
	load    func(ctx context.Context, key K) (value V, life time.Duration, err error)
	cache   *otter.Cache[K, *record[V]] // written only while mu is held

	mu    sync.Mutex
	loads map[K]*pendingLoad[V] // under way; guarded by mu

	hits, misses, stale, loadErrors prometheus.Counter
}

// record is one remembered answer. It never changes.
type record[V any] struct {
	value V
	err   error // a *webhook.Error with CodeNotFound, remembered like a value
	// session was listening, or was to be replaced, when the load began.
	session *session
	loaded  time.Time // when the load began
	until   time.Time // when the answer ends by itself; zero: never
}

// pendingLoad is a load that several may wait for.
type pendingLoad[V any] struct {
	done   chan struct{} // closed when record or err is set
	record *record[V]
	err    error
}

func newTable[K comparable, V any](
	c *Catalog,
	name string,
	load func(context.Context, K) (V, time.Duration, error),
	weight func(K, V) int,
	maxBytes uint64,
) *table[K, V] {
	return &table[K, V]{
		catalog: c,
		load:    load,
		cache: otter.Must(&otter.Options[K, *record[V]]{
			MaximumWeight: maxBytes,
			Weigher: func(key K, r *record[V]) uint32 {
				return uint32(min(weight(key, r.value), math.MaxUint32))
			},
			Logger: &otter.NoopLogger{},
		}),
		loads:      make(map[K]*pendingLoad[V]),
		hits:       c.metrics.hits.WithLabelValues(name),
		misses:     c.metrics.misses.WithLabelValues(name),
		stale:      c.metrics.stale.WithLabelValues(name),
		loadErrors: c.metrics.loadErrors.WithLabelValues(name),
	}
}

// get answers from memory, or loads.
func (t *table[K, V]) get(ctx context.Context, key K) (V, error) {
	known, ok := t.cache.GetIfPresent(key)
	now := time.Now()
	if ok && known.ended(now) {
		known, ok = nil, false
	}
	if ok && t.fresh(known, now) {
		t.hits.Inc()
		return known.value, known.err
	}
	loaded, err := t.wait(ctx, key)
	switch {
	case err == nil:
		t.misses.Inc()
		return loaded.value, loaded.err
	case ok && webhook.ErrorCode(err) == webhook.CodeUnavailable && known.age(time.Now()) <= MaxStale:
		t.stale.Inc()
		return known.value, known.err
	}
	t.misses.Inc()
	var none V
	return none, err
}

// wait joins the load that is under way for key, or starts one, unless one has
// just ended. It returns when that has ended or ctx has.
func (t *table[K, V]) wait(ctx context.Context, key K) (*record[V], error) {
	if time.Now().UnixNano() < t.catalog.awayUntil.Load() {
		return nil, errAway()
	}
	t.mu.Lock()
	load, underWay := t.loads[key]
	if !underWay {
		// The load that the caller would have joined may have ended since it looked.
		if known, ok := t.cache.GetIfPresent(key); ok {
			if now := time.Now(); !known.ended(now) && t.fresh(known, now) {
				t.mu.Unlock()
				return known, nil
			}
		}
		load = &pendingLoad[V]{done: make(chan struct{})}
		t.loads[key] = load
		// The load outlives the one who asked first, since others may have joined;
		// it ends by its own deadline.
		go t.run(context.WithoutCancel(ctx), key, load, t.catalog.current.Load())
	}
	t.mu.Unlock()
	select {
	case <-load.done:
		return load.record, load.err
	case <-ctx.Done():
		return nil, unavailable(fmt.Errorf("wait for the webhook's configuration: %w", context.Cause(ctx)))
	}
}

// run makes one load and remembers its answer if nothing has changed meanwhile.
func (t *table[K, V]) run(ctx context.Context, key K, load *pendingLoad[V], s *session) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	begun := time.Now()
	value, life, err := t.load(ctx, key)
	r := &record[V]{value: value, session: s, loaded: begun}
	switch {
	case webhook.ErrorCode(err) == webhook.CodeNotFound:
		r.err, r.until = err, begun.Add(unknownLife)
	case err != nil:
		t.loadErrors.Inc()
		if postgres.Unavailable(err) {
			t.catalog.awayUntil.Store(time.Now().Add(awayFor).UnixNano())
		}
		r, load.err = nil, unavailable(err)
	case life > 0:
		r.until = begun.Add(life)
	}
	load.record = r

	t.mu.Lock()
	// Still the load of its key: neither invalidated nor reset since it began.
	if t.loads[key] == load {
		delete(t.loads, key)
		if r != nil {
			t.cache.Set(key, r)
		}
	}
	t.mu.Unlock()
	close(load.done)
}

// invalidate forgets key, and disowns a load of it that is under way.
func (t *table[K, V]) invalidate(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.loads, key)
	t.cache.Invalidate(key)
}

// disown keeps the loads that are under way from being remembered. What is
// remembered stays, as a last resort: it belongs to a session that has ended.
func (t *table[K, V]) disown() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.loads)
}

// ended reports whether the answer has run out, so that it must not be given at
// all.
func (r *record[V]) ended(now time.Time) bool {
	return !r.until.IsZero() && !now.Before(r.until)
}

// fresh reports whether the answer can be given without asking the database.
// One from before the line was last restored never can.
func (t *table[K, V]) fresh(r *record[V], now time.Time) bool {
	return r.session.live.Load() || r.session == t.catalog.current.Load() && r.age(now) <= StaleAfter
}

// age is for how long the answer may have been wrong: since it was loaded, or
// since its session was last seen to work.
func (r *record[V]) age(now time.Time) time.Duration {
	known := r.loaded
	if proof := r.session.proof(); proof.After(known) {
		known = proof
	}
	return now.Sub(known)
}

// unavailable turns the database being away into the error for callers.
// Anything else stays internal.
func unavailable(err error) error {
	if postgres.Unavailable(err) {
		return errAway()
	}
	return err
}

func errAway() error {
	return &webhook.Error{
		Code:       webhook.CodeUnavailable,
		Message:    "The service's database cannot be reached. Nothing was kept; try again.",
		RetryAfter: time.Second,
	}
}

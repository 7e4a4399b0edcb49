package dispatch

import (
	"net/http"
	"slices"
	"testing"
	"time"
)

// TestANewEventStartsOnItsWayAtOnce submits to an idle dispatcher, again and again.
// Polling alone would take half a second on average.
func TestANewEventStartsOnItsWayAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	arrived := make(chan time.Time, 1)
	r := newReceiver(t, func(http.ResponseWriter, *http.Request) { arrived <- time.Now() })
	b.start()
	w := b.hook(r.URL)
	took := make([]time.Duration, 40)
	for i := range took {
		b.submit(w, 1)
		committed := time.Now()
		took[i] = max(0, (<-arrived).Sub(committed))
	}
	slices.Sort(took)
	// 10 ms are promised on a machine that is not busy with other tests.
	if median := took[len(took)/2]; median > 60*time.Millisecond {
		t.Errorf("from commit to arrival: %s in the median, and %s at most", median, took[len(took)-1])
	}
}

// TestAnIdleDispatcherLeavesTheDatabaseAlone counts transactions while there is
// nothing to do.
func TestAnIdleDispatcherLeavesTheDatabaseAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, answer(200))
	b.start()
	b.ended(b.submit(b.hook(r.URL), 1)[0]) // it has started in full
	transactions := func() int {
		return b.count(`SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`)
	}
	// Backends report what they did when they have been idle for a while, or do something
	// again: that of the start must not count.
	started := time.Now()
	const settle = 5 * time.Second
	b.eventually("the start has been reported", func() bool { return time.Since(started) > settle })
	since, before := time.Now(), transactions()
	const watch = 4 * time.Second
	b.eventually("some time has passed", func() bool { return time.Since(since) > watch })
	after := transactions()
	// Heartbeat, clock, discovery and River's own services, each every second or two.
	if perSecond := float64(after-before) / watch.Seconds(); perSecond > 15 {
		t.Errorf("an idle dispatcher makes %.0f transactions a second", perSecond)
	}
}

package dispatch

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestCapacity plays the dispatcher's own part of deliveries in a bubble of time:
// so many at once as there is room for, each taking so long.
func TestCapacity(t *testing.T) {
	t.Parallel()

	// work has deliveries pass through for a while, as many at once as there is room
	// for and at most eager, and returns the capacity at the end.
	work := func(c *capacity, eager int, each func(inHand int) time.Duration, long time.Duration) int {
		end := time.Now().Add(long)
		for time.Now().Before(end) {
			n := min(c.room(), eager)
			var dones []func()
			for range n {
				dones = append(dones, c.begin())
			}
			time.Sleep(each(n))
			for _, done := range dones {
				done()
			}
		}
		return c.size()
	}
	steady := func(int) time.Duration { return 200 * time.Millisecond }

	t.Run("FallsWhenItsOwnPartTakesLongerTheMoreThereIsOfIt", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c := newCapacity(400, func() {})
			before := work(c, 400, steady, 20*time.Second)
			after := work(c, 10_000, func(n int) time.Duration { return time.Duration(200+5*n) * time.Millisecond }, 2*time.Minute)
			if after >= before {
				t.Errorf("capacity went from %d to %d while each delivery took longer with every other", before, after)
			}
			if after < minCapacity {
				t.Errorf("capacity fell to %d, below its least of %d", after, minCapacity)
			}
		})
	})

	t.Run("GrowsAgainWhenTheTroubleIsOver", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			c := newCapacity(400, func() {})
			work(c, 400, steady, 20*time.Second)
			low := work(c, 10_000, func(n int) time.Duration { return time.Duration(200+5*n) * time.Millisecond }, 2*time.Minute)
			if high := work(c, 10_000, steady, 5*time.Minute); high <= low {
				t.Errorf("capacity went from %d to %d after deliveries were quick again", low, high)
			}
		})
	})

	t.Run("IsUsedUpByWhatIsInHandAndFreedByItsEnd", func(t *testing.T) {
		t.Parallel()
		freed := 0
		c := newCapacity(10, func() { freed++ })
		var dones []func()
		for c.room() > 0 {
			dones = append(dones, c.begin())
		}
		if len(dones) != c.size() {
			t.Fatalf("room for %d, want %d", len(dones), c.size())
		}
		late := c.begin() // fetched before the room was gone: it is worked all the same
		late()
		dones[0]()
		if c.room() != 1 || freed != 1 {
			t.Errorf("room for %d, told of %d, want 1 and 1", c.room(), freed)
		}
	})
}

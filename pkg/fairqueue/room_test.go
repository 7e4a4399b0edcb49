package fairqueue

import (
	"sync/atomic"
	"testing"

	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestRoom(t *testing.T) {
	t.Parallel()

	t.Run("ABusyDispatcherTakesNoMoreThanItHasRoomFor", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		busy, idle := setupOn(t, database, "busy"), setupOn(t, database, "idle")
		var room atomic.Int64
		room.Store(3)
		busy.cfg.Room = func() int { return int(room.Load()) }
		hook := busy.newID()
		busy.insert(t, hook, 20)
		busy.ring.wake(hook)
		idle.ring.wake(hook)
		if n := len(busy.fetchJobs(t, 100)); n != 3 {
			t.Fatalf("a dispatcher with room for 3 took %d at once", n)
		}
		room.Store(0)
		if n := len(busy.fetchJobs(t, 100)); n != 0 {
			t.Fatalf("a dispatcher without room took %d", n)
		}
		if n := len(idle.fetchJobs(t, 100)); n != 17 {
			t.Errorf("the other dispatcher took %d, want what is left", n)
		}
	})

	t.Run("RoomThatComesBackWakesTheFetch", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		var room atomic.Int64
		b.cfg.Room = func() int { return int(room.Load()) }
		hook := b.newID()
		b.insert(t, hook, 5)
		b.ring.wake(hook)
		if n := len(b.fetchJobs(t, 100)); n != 0 {
			t.Fatalf("took %d without room", n)
		}
		isUp(b.kick)
		room.Store(100)
		b.Freed()
		if !isUp(b.kick) {
			t.Fatal("nobody was told that there is room")
		}
		if n := len(b.fetchJobs(t, 100)); n != 5 {
			t.Errorf("took %d of 5", n)
		}
		if b.Freed(); isUp(b.kick) {
			t.Error("room that held nothing back woke the fetch")
		}
	})
}

// TestNoLaneStarvesBesideOthersOverSeveralDispatchers has three dispatchers with
// few slots work many backlogged lanes, and looks at how far ahead of the others
// any lane gets.
func TestNoLaneStarvesBesideOthersOverSeveralDispatchers(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	bundles := []*testBundle{setupOn(t, database, "one"), setupOn(t, database, "two"), setupOn(t, database, "three")}
	const lanes, each, slots = 12, 30, 7
	for range lanes {
		bundles[0].insert(t, bundles[0].newID(), each)
	}
	served := map[webhook.ID]int{}
	for _, b := range bundles {
		b.discoverAll(t)
	}
	for total := 0; total < lanes*each; {
		before := total
		for _, b := range bundles {
			for _, j := range b.fetchJobs(t, slots) {
				id, _ := LaneWebhook(j.Queue)
				served[id]++
				total++
				producerState{b.Queue}.JobFinish(j)
			}
		}
		if total == before {
			t.Fatalf("nothing is fetched after %d of %d", total, lanes*each)
		}
		least, most := each, 0
		for _, n := range served {
			least, most = min(least, n), max(most, n)
		}
		if len(served) < lanes {
			least = 0
		}
		// Each dispatcher has a round of its own, and in it a lane is at most one
		// turn ahead.
		if most-least > len(bundles)*2 && least < each {
			t.Fatalf("one lane has been served %d times, another %d", most, least)
		}
	}
}

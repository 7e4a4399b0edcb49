package fairqueue

import (
	"testing"
	"time"

	"github.com/riverqueue/river/riverdriver"

	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

// TestAStoppedProcessDoesNotWorkAJobTwice has a process stopped for so long that
// its claim is given away, and resumed while its request is still under way: the
// job is due, and the process itself is the one that fetches.
func TestAStoppedProcessDoesNotWorkAJobTwice(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	stopped, other := setupOn(t, database, "stopped"), setupOn(t, database, "other")
	hook := stopped.newID()
	stopped.insert(t, hook, 1)
	stopped.discoverAll(t)
	first := stopped.fetchJobs(t, 1)
	if len(first) != 1 {
		t.Fatalf("fetched %d jobs, want 1", len(first))
	}
	if _, err := stopped.db.Exec(t.Context(), `UPDATE fairhook.river_job SET attempted_at = now() - interval '1 minute'`); err != nil {
		t.Fatal(err)
	}
	if n, err := other.GiveBackDead(t.Context(), time.Second); err != nil || n != 1 {
		t.Fatalf("gave back %d, %v", n, err)
	}
	stopped.discoverAll(t)
	stopped.insert(t, hook, 1) // behind it
	if again := stopped.fetchJobs(t, 1); len(again) != 1 || again[0].ID == first[0].ID {
		t.Fatalf("fetched %v; want the delivery behind the one that is under way", again)
	}
	if n := stopped.jobCount(t, "available"); n != 1 {
		t.Fatalf("%d jobs wait, want the one that was put off", n)
	}
	// The first attempt fails: its claim is stale, and no other is touched.
	stopped.finish(t, riverdriver.JobSetStateErrorAvailable(first[0].ID, time.Now(), []byte(`{}`), nil))
	if _, err := stopped.db.Exec(t.Context(), `UPDATE fairhook.river_job SET scheduled_at = now() - interval '1 second'`); err != nil {
		t.Fatal(err)
	}
	stopped.discoverAll(t)
	if again := stopped.fetchJobs(t, 10); len(again) != 1 || again[0].Attempt != 2 {
		t.Fatalf("after that it fetched %+v, want the job for its second attempt", again)
	}
}

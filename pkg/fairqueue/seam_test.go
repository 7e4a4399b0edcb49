package fairqueue

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivershared/riverpilot"
	"github.com/riverqueue/river/rivershared/uniquestates"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

var (
	_ riverpilot.Pilot           = (*pilot)(nil)
	_ riverdriver.Driver[pgx.Tx] = (*Driver)(nil)
	_ rivertype.TimeGenerator    = RiverClock{}
	_ riverpilot.PilotJobRescuer = (*pilot)(nil)
	_ riverdriver.Listener       = (*listener)(nil)
	_ river.JobArgs              = job.Delivery{}
)

// TestSeam pins the internals of River that this package stands on. When it
// fails after an upgrade, River moved its seam: read River's plugin.go and
// riverpilot before changing anything here, and do not ship the upgrade until
// this passes again.
func TestSeam(t *testing.T) {
	t.Parallel()
	b := setupOn(t, pgtest.New(t), "client-1")
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(nopWork))
	client, err := river.NewClient(NewDriver(b.db, b.Queue), &river.Config{
		ID: "client-1", Schema: Schema, Workers: workers,
		Queues: map[string]river.QueueConfig{ClientQueue: {MaxWorkers: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, ours := client.Pilot().(*pilot); !ours {
		t.Fatalf("River uses the pilot %T and not ours: it no longer asks the driver for one (plugin.go)", client.Pilot())
	}
}

func nopWork(context.Context, *river.Job[job.Delivery]) error { return nil }

// jsonMarshal is what River does to a job's arguments.
func jsonMarshal(v any) ([]byte, error) { return json.Marshal(v) }

func contains(s, part string) bool { return strings.Contains(s, part) }

// jsonDiff names the first column in which two rows differ.
func jsonDiff(a, b map[string]any) string {
	for key := range a {
		if !reflect.DeepEqual(a[key], b[key]) {
			return fmt.Sprintf("%s is %v and %v", key, a[key], b[key])
		}
	}
	if len(a) != len(b) {
		return fmt.Sprintf("%d and %d columns", len(a), len(b))
	}
	return ""
}

// riverUniqueStates is River's own bits for the states in which a delivery's key
// is unique, as Postgres prints a bit(8).
func riverUniqueStates() string {
	return fmt.Sprintf("%08b", uniquestates.UniqueStatesToBitmask([]rivertype.JobState{
		rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRetryable,
		rivertype.JobStateRunning, rivertype.JobStateScheduled,
	}))
}

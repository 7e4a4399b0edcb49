package fairqueue

import (
	"slices"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// TestADrainKeepsTheProbeThatIsUnderWay has a dispatcher stop that was chosen to probe
// two webhooks and has sent one probe: only the other is given to somebody else, and
// when the first has ended nothing of it is left.
func TestADrainKeepsTheProbeThatIsUnderWay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sent, unsent := b.newID(), b.newID()
	ids, past := []webhook.ID{sent, unsent}, time.Now().Add(-time.Hour)
	var gates []postgres.GateChange
	for _, id := range ids {
		gates = append(gates, postgres.GateChange{WebhookID: id, Cause: postgres.GateBreaker, At: past, Until: past, StartedAt: past})
		b.setLimit(id, Limit{MaxInFlight: 10, Probe: true})
	}
	if err := postgres.RecordAttempts(t.Context(), b.db, nil, nil, gates); err != nil {
		t.Fatal(err)
	}
	claim := func(instance string) []webhook.ID {
		t.Helper()
		got, err := postgres.ClaimProbes(t.Context(), b.db, instance, ids, []time.Duration{time.Minute, time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		var claimed []webhook.ID
		for id := range got {
			claimed = append(claimed, id)
		}
		return claimed
	}
	if got := claim(b.cfg.ClientID); len(got) != 2 {
		t.Fatalf("claimed %v", got)
	}
	b.insert(t, sent, 2)
	b.discoverAll(t)
	jobs := b.fetchJobs(t, 10)
	if len(jobs) != 1 {
		t.Fatalf("%d deliveries of a lane that may only be probed are under way", len(jobs))
	}
	b.Drain(t.Context())
	if got := claim("other"); !slices.Equal(got, []webhook.ID{unsent}) {
		t.Errorf("another got %v to probe, want only %s", got, unsent)
	}
	producerState{b.Queue}.JobFinish(jobs[0])
	if got := b.ring.probing(); len(got) != 0 {
		t.Errorf("%v count as being probed after the probe has ended", got)
	}
}

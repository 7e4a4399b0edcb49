package postgres_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// TestGatesDoNotDeadlock has two sides change the same gates in opposite ways, again
// and again.
func TestGatesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	ids := make([]webhook.ID, 60)
	for i := range ids {
		ids[i] = webhook.NewID(time.Now().Add(time.Duration(i) * time.Millisecond))
	}
	change := func(id webhook.ID, cause postgres.GateCause, at time.Time) postgres.GateChange {
		return postgres.GateChange{WebhookID: id, Cause: cause, At: at, Until: at.Add(time.Millisecond), StartedAt: at}
	}
	both := func(t *testing.T, do func(side int) error) {
		t.Helper()
		var sides sync.WaitGroup
		for side := range 2 {
			sides.Go(func() {
				if err := do(side); err != nil {
					t.Errorf("side %d: %v", side, err)
				}
			})
		}
		sides.Wait()
	}

	t.Run("WhenOneClosesWhatTheOtherOpens", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		for range 40 {
			var all []postgres.GateChange
			for _, id := range ids {
				all = append(all, change(id, postgres.GateReceiver, time.Now()))
			}
			if err := postgres.RecordAttempts(t.Context(), db, nil, nil, all); err != nil {
				t.Fatal(err)
			}
			both(t, func(side int) error {
				var changes []postgres.GateChange
				for i, id := range ids {
					cause := postgres.GateReceiver
					if i%2 == side {
						cause = "" // opens
					}
					changes = append(changes, change(id, cause, time.Now().Add(time.Hour)))
				}
				return postgres.RecordAttempts(t.Context(), db, nil, nil, changes)
			})
		}
	})

	t.Run("WhenBothClaimTheProbesInOppositeOrders", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		var all []postgres.GateChange
		for _, id := range ids {
			all = append(all, change(id, postgres.GateBreaker, time.Now().Add(-time.Hour)))
		}
		if err := postgres.RecordAttempts(t.Context(), db, nil, nil, all); err != nil {
			t.Fatal(err)
		}
		lives := make([]time.Duration, len(ids))
		for range 60 {
			both(t, func(side int) error {
				mine := slices.Clone(ids)
				if side == 1 {
					slices.Reverse(mine)
				}
				_, err := postgres.ClaimProbes(t.Context(), db, []string{"a", "b"}[side], mine, lives)
				return err
			})
		}
	})
}

// TestProbesAreGivenUp lets others have what a dispatcher that stops has not sent.
func TestProbesAreGivenUp(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	sent, held := webhook.NewID(time.Now()), webhook.NewID(time.Now().Add(time.Millisecond))
	past := time.Now().Add(-time.Hour)
	var gates []postgres.GateChange
	for _, id := range []webhook.ID{sent, held} {
		gates = append(gates, postgres.GateChange{WebhookID: id, Cause: postgres.GateBreaker, At: past, Until: past, StartedAt: past})
	}
	if err := postgres.RecordAttempts(t.Context(), db, nil, nil, gates); err != nil {
		t.Fatal(err)
	}
	ids, lives := []webhook.ID{sent, held}, []time.Duration{time.Minute, time.Minute}
	if got, err := postgres.ClaimProbes(t.Context(), db, "leaves", ids, lives); err != nil || len(got) != 2 {
		t.Fatalf("claimed %v, %v", got, err)
	}
	if got, err := postgres.ClaimProbes(t.Context(), db, "stays", ids, lives); err != nil || len(got) != 0 {
		t.Fatalf("another claimed %v, %v", got, err)
	}
	if err := postgres.GiveUpProbes(t.Context(), db, "leaves", []webhook.ID{sent}); err != nil {
		t.Fatal(err)
	}
	got, err := postgres.ClaimProbes(t.Context(), db, "stays", ids, lives)
	if _, gotHeld := got[held]; err != nil || len(got) != 1 || !gotHeld {
		t.Errorf("after it left another claimed %v, %v; want the one that was not sent", got, err)
	}
}

// TestAskingAgainForAProbeThatWasJustClaimedChangesNothing is what a dispatcher does
// each second where notifications cannot arrive.
func TestAskingAgainForAProbeThatWasJustClaimedChangesNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	id, past := webhook.NewID(time.Now()), time.Now().Add(-time.Hour)
	gate := postgres.GateChange{WebhookID: id, Cause: postgres.GateBreaker, At: past, Until: past, StartedAt: past}
	if err := postgres.RecordAttempts(t.Context(), db, nil, nil, []postgres.GateChange{gate}); err != nil {
		t.Fatal(err)
	}
	claim := func() time.Time {
		t.Helper()
		got, err := postgres.ClaimProbes(t.Context(), db, "a", []webhook.ID{id}, []time.Duration{time.Minute})
		if err != nil || len(got) != 1 {
			t.Fatalf("claimed %v, %v", got, err)
		}
		return got[id]
	}
	first := claim()
	for range 3 {
		if again := claim(); !again.Equal(first) {
			t.Errorf("the claim was prolonged from %s to %s", first, again)
		}
	}
	var rows int
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.lane_events WHERE event = 'probing'`).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	if rows != 1 {
		t.Errorf("the history has %d probes, of one", rows)
	}
	if _, err := db.Exec(t.Context(), `UPDATE fairhook.lane_gates SET probe_until = probe_until - interval '11 seconds'`); err != nil {
		t.Fatal(err)
	}
	if again := claim(); again.Before(first) {
		t.Error("a claim that has got old is not prolonged")
	}
}

// TestGatesThatComeAndGoDoNotDeadlock has several change many gates at once, while
// webhooks are paused and made active again: their gates are deleted, and inserted anew.
func TestGatesThatComeAndGoDoNotDeadlock(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	ids := make([]webhook.ID, 20)
	for i := range ids {
		ids[i] = insertWebhook(t, db, "gates").ID
	}
	var sides sync.WaitGroup
	for side := range 6 {
		sides.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(side)))
			for range 150 {
				var changes []postgres.GateChange
				for _, id := range ids {
					at := time.Now().Add(time.Hour)
					c := postgres.GateChange{WebhookID: id, At: at, Until: at, StartedAt: at}
					switch random.IntN(4) {
					case 0:
						c.Cause = postgres.GateReceiver
					case 1: // it opens
					default:
						continue
					}
					changes = append(changes, c)
				}
				if err := postgres.RecordAttempts(t.Context(), db, nil, nil, changes); err != nil {
					t.Errorf("side %d: %v", side, err)
					return
				}
			}
		})
	}
	sides.Go(func() {
		for i := range 300 {
			for _, state := range []webhook.State{webhook.StatePaused, webhook.StateActive} {
				if _, err := postgres.SetWebhookState(t.Context(), db, ids[i%len(ids)], state); err != nil {
					t.Errorf("make it %s: %v", state, err)
					return
				}
			}
		}
	})
	sides.Wait()
}

package limit

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// ward is a Health with a clock of its own, and the counters of one webhook.
type ward struct {
	*Health
	id                webhook.ID
	now               time.Time
	delivered, failed int64
}

func newWard(minRate float64) *ward {
	w := &ward{Health: NewHealth(HealthConfig{MinRate: minRate}), id: webhook.ID{1}, now: time.Unix(1e9, 0)}
	w.take(w.now, []postgres.LaneHealth{{WebhookID: w.id}})
	return w
}

// second lets one pass in which so many events are offered, evenly, and so many
// attempts end well and badly. It returns how many events were accepted.
func (w *ward) second(offered int, delivered, failed int64) (accepted int) {
	for i := range offered {
		if ok, _ := w.admit(w.now.Add(time.Duration(i)*time.Second/time.Duration(offered)), w.id); ok {
			accepted++
		}
	}
	w.now = w.now.Add(time.Second)
	w.delivered, w.failed = w.delivered+delivered, w.failed+failed
	var rows []postgres.LaneHealth
	if delivered+failed > 0 {
		rows = append(rows, postgres.LaneHealth{WebhookID: w.id, Delivered: w.delivered, Failed: w.failed})
	}
	w.take(w.now, rows)
	return accepted
}

func (w *ward) rate() float64 {
	if p := w.patients[w.id]; p != nil {
		return p.control.rate
	}
	return math.Inf(1)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	free := math.Inf(1)
	type seconds struct {
		n                          int
		offered, delivered, failed int
	}
	for name, tt := range map[string]struct {
		of   []seconds
		want float64
	}{
		"LimitsNothingWhileAllIsDelivered":           {[]seconds{{10, 100, 100, 0}}, free},
		"LimitsNothingWhileHalfFails":                {[]seconds{{10, 100, 50, 50}}, free},
		"LimitsNothingForAMoment":                    {[]seconds{{2, 100, 0, 100}, {1, 100, 100, 0}, {2, 100, 0, 100}}, free},
		"TakesAFifthLessFromTheThirdBadSecondOn":     {[]seconds{{3, 100, 49, 51}}, 80},
		"TakesAFifthLessAgainInTheNext":              {[]seconds{{4, 100, 0, 1}}, 64},
		"GoesNoLowerThanItsFloor":                    {[]seconds{{40, 100, 0, 100}}, 10},
		"GivesTheFloorToWhoSubmitsLess":              {[]seconds{{10, 3, 0, 3}}, 10},
		"KeepsTheRateWhileNothingIsAttempted":        {[]seconds{{3, 100, 0, 100}, {300, 0, 0, 0}}, 80},
		"CountsBadSecondsAcrossAPauseOfProbes":       {[]seconds{{1, 100, 0, 1}, {60, 100, 0, 0}, {1, 100, 0, 1}, {60, 100, 0, 0}, {1, 100, 0, 1}}, 80},
		"KeepsTheRateWhileSomeFail":                  {[]seconds{{3, 100, 0, 100}, {5, 80, 60, 40}}, 80},
		"RisesWhileMostIsDelivered":                  {[]seconds{{3, 100, 0, 100}, {1, 80, 80, 0}}, 100},
		"IsFreeAgainAfterSomeGoodSeconds":            {[]seconds{{3, 100, 0, 100}, {5, 100, 100, 0}}, free},
		"IsFreeAgainWhenNothingIsAttemptedForLong":   {[]seconds{{3, 100, 0, 100}, {400, 0, 0, 0}}, free},
		"RisesByEqualStepsOnceItHasFallenBack":       {[]seconds{{3, 100, 0, 100}, {1, 80, 80, 0}, {1, 100, 0, 100}, {1, 80, 80, 0}}, 80 + 0.05*100},
		"GoesByWhatWasTakenLatelyAfterAQuietMoment":  {[]seconds{{2, 100, 0, 100}, {1, 0, 0, 100}}, 64},
		"IsNotMovedByOneBadSecondAmongHundredsOfOKs": {[]seconds{{3, 100, 99, 1}}, free},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWard(10)
			for _, s := range tt.of {
				for range s.n {
					w.second(s.offered, int64(s.delivered), int64(s.failed))
				}
			}
			if got := w.rate(); got != tt.want && math.Abs(got-tt.want) > 1e-9 {
				t.Errorf("rate is %v, want %v", got, tt.want)
			}
		})
	}
	t.Run("AcceptsWhatTheRateSays", func(t *testing.T) {
		t.Parallel()
		w := newWard(10)
		for range 3 {
			w.second(1000, 0, 1)
		}
		if ok, rate := w.admit(w.now, w.id); ok || rate != 800 {
			t.Errorf("admits %t at %v", ok, rate)
		}
		for range 5 {
			if accepted := w.second(1000, 0, 0); accepted < 790 || accepted > 800 {
				t.Errorf("%d are accepted of 1,000 at a rate of 800", accepted)
			}
		}
		if ok, rate := w.admit(w.now, webhook.ID{2}); !ok || !math.IsInf(rate, 1) {
			t.Errorf("another webhook gets %t, %v", ok, rate)
		}
	})
	t.Run("ForgetsWebhooksThatAreWell", func(t *testing.T) {
		t.Parallel()
		w := newWard(10)
		for range 3 {
			w.second(100, 0, 100)
		}
		if watched, limited := w.counts(); watched != 1 || limited != 1 {
			t.Errorf("%d watched, %d limited", watched, limited)
		}
		for range 500 {
			w.second(0, 0, 0)
		}
		if watched, limited := w.counts(); watched != 0 || limited != 0 || w.known.Load() != 0 {
			t.Errorf("%d watched, %d limited after minutes without news", watched, limited)
		}
	})
	t.Run("BoundsItsMemory", func(t *testing.T) {
		t.Parallel()
		h := NewHealth(HealthConfig{MinRate: 10})
		rows := make([]postgres.LaneHealth, maxPatients+5)
		for i := range rows {
			rows[i].WebhookID = webhook.ID{1, byte(i >> 16), byte(i >> 8), byte(i)}
		}
		h.take(time.Now(), rows)
		if watched, _ := h.counts(); watched != maxPatients {
			t.Errorf("%d webhooks are watched", watched)
		}
	})
	t.Run("TakesCountersThatBeganAnewAsNoNews", func(t *testing.T) {
		t.Parallel()
		w := newWard(10)
		w.second(100, 0, 1000)
		w.second(100, 0, 1000)
		w.failed = 0
		w.second(100, 0, 500)
		if w.rate() != free {
			t.Errorf("rate is %v", w.rate())
		}
		w.second(100, 0, 500)
		if w.rate() != 80 {
			t.Errorf("rate is %v once they grow again", w.rate())
		}
	})
	t.Run("KeepsWhatItKnowsWhileTheDatabaseIsAway", func(t *testing.T) {
		t.Parallel()
		w := newWard(10)
		w.read = func(context.Context, time.Duration, int) ([]postgres.LaneHealth, error) {
			return nil, errors.New("away")
		}
		for range 3 {
			w.second(100, 0, 100)
		}
		w.runOnce(t.Context())
		if w.rate() != 80 {
			t.Errorf("rate is %v", w.rate())
		}
	})
}

// Whatever happens: a rate is never below its floor, never falls by much more than
// a fifth of what is accepted, is lifted by good seconds, and never gives more than
// it says.
func TestHealthProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		minRate := rapid.Float64Range(1, 50).Draw(t, "floor")
		w := newWard(minRate)
		lately := 0.0 // accepted
		for range rapid.IntRange(1, 60).Draw(t, "seconds") {
			offered := rapid.IntRange(0, 300).Draw(t, "offered")
			delivered, failed := rapid.IntRange(0, 20).Draw(t, "delivered"), rapid.IntRange(0, 20).Draw(t, "failed")
			before := w.rate()
			accepted := float64(w.second(offered, int64(delivered), int64(failed)))
			if accepted > before+max(1, before/10)+1 {
				t.Fatalf("%v are accepted at a rate of %v", accepted, before)
			}
			lately = max(accepted, lately*decrease)
			after := w.rate()
			switch {
			case after < minRate:
				t.Fatalf("rate is %v, below its floor of %v", after, minRate)
			case after < min(before, lately)*decrease-1e-9:
				t.Fatalf("rate went from %v to %v with %v accepted lately", before, after, lately)
			case after < before && float64(failed) <= maxFailing*float64(delivered+failed):
				t.Fatalf("rate went from %v to %v with %d delivered and %d failed", before, after, delivered, failed)
			case after > before && float64(failed) > maxFailing*calm*float64(delivered+failed):
				t.Fatalf("rate went from %v up to %v with %d delivered and %d failed", before, after, delivered, failed)
			}
		}
		for n := 0; !math.IsInf(w.rate(), 1); n++ {
			if n > 300 {
				t.Fatalf("rate is %v after %d good seconds", w.rate(), n)
			}
			w.second(100, 100, 0)
		}
	})
}

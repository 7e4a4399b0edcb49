package limit_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestBreakers(t *testing.T) {
	t.Parallel()
	id := webhook.NewID(time.Now())

	t.Run("OpenWhenHalfOfTwentyAttemptsFailed", func(t *testing.T) {
		t.Parallel()
		b := limit.NewBreakers(limit.BreakerConfig{})
		for i := range 19 {
			if b.Record(id, i%2 == 0, 1) {
				t.Fatalf("open after %d attempts", i+1)
			}
		}
		if !b.Record(id, false, 1) {
			t.Error("closed after 10 of 20 attempts failed")
		}
	})

	t.Run("StayClosedWhileMostSucceed", func(t *testing.T) {
		t.Parallel()
		b := limit.NewBreakers(limit.BreakerConfig{})
		for i := range 1000 {
			if b.Record(id, i%3 != 0, 1) {
				t.Fatalf("open after %d attempts of which a third failed", i+1)
			}
		}
	})

	t.Run("CountEachWebhookByItself", func(t *testing.T) {
		t.Parallel()
		b := limit.NewBreakers(limit.BreakerConfig{})
		for i := range 15 {
			if b.Record(id, false, 1) || b.Record(webhook.NewID(time.Now()), false, 1) {
				t.Fatalf("open after %d attempts", i+1)
			}
		}
	})

	t.Run("OpenOnOneDispatchersPartOfTheAttempts", func(t *testing.T) {
		t.Parallel()
		b := limit.NewBreakers(limit.BreakerConfig{Attempts: 20})
		for i := range 5 {
			if opened := b.Record(id, false, 4); opened != (i == 4) {
				t.Fatalf("after %d failures on one of four dispatchers: opened %v", i+1, opened)
			}
		}
	})

	t.Run("DoNotOpenOnTwoFailuresHoweverManyDispatchersThereAre", func(t *testing.T) {
		t.Parallel()
		b := limit.NewBreakers(limit.BreakerConfig{Attempts: 20})
		for i := range 5 {
			if opened := b.Record(id, false, 50); opened != (i == 4) {
				t.Fatalf("after %d failures on one of fifty dispatchers: opened %v", i+1, opened)
			}
		}
	})

	t.Run("ForgetEverythingOnceTheyHaveOpened", func(t *testing.T) {
		t.Parallel()
		b := limit.NewBreakers(limit.BreakerConfig{Attempts: 2})
		b.Record(id, false, 1)
		if !b.Record(id, false, 1) || b.Record(id, false, 1) || !b.Record(id, false, 1) {
			t.Error("an opened breaker does not begin anew")
		}
	})

	t.Run("SayItOnceWhenManyAttemptsEndAtTheSameTime", func(t *testing.T) {
		t.Parallel()
		b := limit.NewBreakers(limit.BreakerConfig{Attempts: 50})
		var opened atomic.Int32
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if b.Record(id, false, 1) {
					opened.Add(1)
				}
			})
		}
		all.Wait()
		if opened.Load() != 1 {
			t.Errorf("opened %d times, want once", opened.Load())
		}
	})
}

// TestBreakersAgreeWithACount compares with the definition, for attempts that all
// fall into one window.
func TestBreakersAgreeWithACount(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		attempts := rapid.IntRange(2, 30).Draw(t, "attempts")
		b := limit.NewBreakers(limit.BreakerConfig{Attempts: attempts, Window: time.Hour})
		id := webhook.NewID(time.Now())
		failed := 0
		for n, ok := range rapid.SliceOfN(rapid.Bool(), 0, 60).Draw(t, "ok") {
			if !ok {
				failed++
			}
			want := n+1 >= attempts && 2*failed >= n+1
			if got := b.Record(id, ok, 1); got != want {
				t.Fatalf("attempt %d, %d failed: opened %v, want %v", n+1, failed, got, want)
			}
			if want {
				return
			}
		}
	})
}

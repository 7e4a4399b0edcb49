package receiver_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairhook/fairhook/pkg/client/receiver"
)

const (
	lease = time.Minute
	keep  = time.Hour
)

func claim(t *testing.T, d receiver.Dedup, key, token string, want receiver.Claim) {
	t.Helper()
	if got, err := d.Claim(t.Context(), key, token, lease); err != nil || got != want {
		t.Fatalf("claim of %q by %q: got %d, %v; want %d", key, token, got, err, want)
	}
}

func commit(t *testing.T, d receiver.Dedup, key, token string) {
	t.Helper()
	if err := d.Commit(t.Context(), key, token, keep); err != nil {
		t.Fatal(err)
	}
}

func release(t *testing.T, d receiver.Dedup, key, token string) {
	t.Helper()
	if err := d.Release(t.Context(), key, token); err != nil {
		t.Fatal(err)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	// wait lets the bubble's time pass, which takes none of ours.
	wait := func(d time.Duration) { <-time.After(d) }
	for name, check := range map[string]func(*testing.T, *receiver.Memory){
		"IsClaimedOnceAtATime": func(t *testing.T, m *receiver.Memory) {
			claim(t, m, "a", "1", receiver.Claimed)
			claim(t, m, "a", "2", receiver.InProgress)
			claim(t, m, "b", "2", receiver.Claimed)
		},
		"RemembersWhatWasHandled": func(t *testing.T, m *receiver.Memory) {
			claim(t, m, "a", "1", receiver.Claimed)
			commit(t, m, "a", "1")
			claim(t, m, "a", "2", receiver.Handled)
			wait(keep - time.Nanosecond)
			claim(t, m, "a", "2", receiver.Handled)
			wait(time.Nanosecond)
			claim(t, m, "a", "2", receiver.Claimed)
		},
		"GivesBackWhatFailed": func(t *testing.T, m *receiver.Memory) {
			claim(t, m, "a", "1", receiver.Claimed)
			release(t, m, "a", "1")
			claim(t, m, "a", "2", receiver.Claimed)
		},
		"EndsAClaimWithItsLease": func(t *testing.T, m *receiver.Memory) {
			claim(t, m, "a", "1", receiver.Claimed)
			wait(lease - time.Nanosecond)
			claim(t, m, "a", "2", receiver.InProgress)
			wait(time.Nanosecond)
			claim(t, m, "a", "2", receiver.Claimed)
		},
		"DoesNotLetALateReleaseEndAnothersClaim": func(t *testing.T, m *receiver.Memory) {
			claim(t, m, "a", "1", receiver.Claimed)
			wait(lease)
			claim(t, m, "a", "2", receiver.Claimed)
			release(t, m, "a", "1")
			claim(t, m, "a", "3", receiver.InProgress)
		},
		"DoesNotForgetByARelease": func(t *testing.T, m *receiver.Memory) {
			claim(t, m, "a", "1", receiver.Claimed)
			commit(t, m, "a", "1")
			release(t, m, "a", "1")
			release(t, m, "a", "")
			claim(t, m, "a", "2", receiver.Handled)
		},
		"BelievesALateCommit": func(t *testing.T, m *receiver.Memory) {
			claim(t, m, "a", "1", receiver.Claimed)
			wait(lease)
			claim(t, m, "a", "2", receiver.Claimed)
			commit(t, m, "a", "1")
			claim(t, m, "a", "3", receiver.Handled)
		},
		"MakesRoomByForgettingWhatWasHandledFirst": func(t *testing.T, m *receiver.Memory) {
			for _, key := range []string{"a", "b", "c"} {
				claim(t, m, key, "1", receiver.Claimed)
				commit(t, m, key, "1")
			}
			claim(t, m, "d", "1", receiver.Claimed)
			claim(t, m, "b", "2", receiver.Handled)
			claim(t, m, "a", "2", receiver.Claimed)
		},
		"NeverForgetsAClaimToMakeRoom": func(t *testing.T, m *receiver.Memory) {
			for _, key := range []string{"a", "b", "c"} {
				claim(t, m, key, "1", receiver.Claimed)
			}
			if _, err := m.Claim(t.Context(), "d", "1", lease); !errors.Is(err, receiver.ErrFull) {
				t.Fatalf("got %v", err)
			}
			commit(t, m, "b", "1")
			claim(t, m, "d", "1", receiver.Claimed)
			claim(t, m, "a", "2", receiver.InProgress)
			wait(lease) // all three claims are over
			claim(t, m, "e", "1", receiver.Claimed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { check(t, receiver.NewMemory(3)) })
		})
	}

	t.Run("LetsOneOfManyAtATimeHaveAMessage", func(t *testing.T) {
		t.Parallel()
		m := receiver.NewMemory(1000)
		var claims [50]atomic.Int32
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := range claims {
					got, err := m.Claim(t.Context(), fmt.Sprint(i), fmt.Sprint(worker), lease)
					if err != nil {
						t.Error(err)
					}
					if got == receiver.Claimed {
						claims[i].Add(1)
						_ = m.Commit(t.Context(), fmt.Sprint(i), fmt.Sprint(worker), keep)
					}
				}
			})
		}
		wg.Wait()
		for i := range claims {
			if n := claims[i].Load(); n != 1 {
				t.Errorf("message %d was claimed %d times", i, n)
			}
		}
	})
}

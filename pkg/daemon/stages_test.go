package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// diary notes what happens in which order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

// stageThat notes when it is told to stop and when it leaves, which takes it
// some time.
func stageThat(d *diary, name string, takes time.Duration, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		d.note("%s told", name)
		time.Sleep(takes)
		d.note("%s left", name)
		return err
	}
}

func newStages(timeout time.Duration) *Stages {
	return NewStages(slog.New(slog.DiscardHandler), timeout)
}

// runStages runs them, stops them after a minute, and returns what Run said and
// how long stopping took.
func runStages(t *testing.T, s *Stages) (time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	var stopped time.Time
	time.AfterFunc(time.Minute, func() { stopped = time.Now(); cancel(ErrSignal) })
	err := s.Run(ctx)
	return time.Since(stopped), err
}

func TestStages(t *testing.T) {
	t.Parallel()

	t.Run("StopLastOneFirstAndOneAfterTheOther", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var d diary
			s := newStages(25 * time.Second)
			s.Add("pool", stageThat(&d, "pool", time.Second, nil))
			s.Add("intake", stageThat(&d, "intake", 2*time.Second, context.Canceled))
			s.Add("http", stageThat(&d, "http", 3*time.Second, nil))
			took, err := runStages(t, s)
			want := []string{"http told", "http left", "intake told", "intake left", "pool told", "pool left"}
			if err != nil || took != 6*time.Second || !slices.Equal(d.read(), want) {
				t.Errorf("got %v after %v: %v", err, took, d.read())
			}
		})
	})

	t.Run("StopInOrderWhenOneFails", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var d diary
			broken := errors.New("listener is gone")
			s := newStages(25 * time.Second)
			s.Add("pool", stageThat(&d, "pool", time.Second, nil))
			s.Add("catalog", func(context.Context) error { time.Sleep(time.Second); d.note("catalog failed"); return broken })
			s.Add("http", stageThat(&d, "http", time.Second, nil))
			err := s.Run(t.Context())
			if !errors.Is(err, broken) || err.Error() != "catalog: listener is gone" {
				t.Errorf("got %v", err)
			}
			if want := []string{"catalog failed", "http told", "http left", "pool told", "pool left"}; !slices.Equal(d.read(), want) {
				t.Errorf("got %v", d.read())
			}
		})
	})

	t.Run("StopWithoutErrorWhenOneIsDone", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var d diary
			s := newStages(25 * time.Second)
			s.Add("pool", stageThat(&d, "pool", 0, nil))
			s.Add("demo", func(context.Context) error { return nil })
			if err := s.Run(t.Context()); err != nil || len(d.read()) != 2 {
				t.Errorf("got %v: %v", err, d.read())
			}
		})
	})

	t.Run("TakeCanceledForAnErrorFromAStageThatWasNotToldToStop", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := newStages(time.Second)
			s.Add("loop", func(context.Context) error { return context.Canceled })
			if err := s.Run(t.Context()); err == nil {
				t.Error("no error")
			}
		})
	})

	t.Run("ReturnEveryErrorWithTheNameOfItsStage", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var d diary
			s := newStages(25 * time.Second)
			s.Add("pool", stageThat(&d, "pool", 0, errors.New("one")))
			s.Add("http", stageThat(&d, "http", 0, errors.New("two")))
			_, err := runStages(t, s)
			if err == nil || err.Error() != "http: two\npool: one" {
				t.Errorf("got %v", err)
			}
		})
	})

	t.Run("EndDrainAndTellEverybodyWhenTimeIsUp", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var d diary
			s := newStages(10 * time.Second)
			s.Add("pool", stageThat(&d, "pool", 0, nil))
			s.AddDrained("river", func(ctx, drain context.Context) error {
				<-ctx.Done()
				d.note("river told")
				<-drain.Done()
				d.note("river cut off")
				return drain.Err()
			})
			took, err := runStages(t, s)
			if err == nil || err.Error() != "river: context canceled" || took != 10*time.Second {
				t.Errorf("got %v after %v", err, took)
			}
			got := d.read()
			slices.Sort(got[1:]) // told at once: in any order
			if want := []string{"river told", "pool left", "pool told", "river cut off"}; !slices.Equal(got, want) {
				t.Errorf("got %v", got)
			}
		})
	})

	t.Run("ReturnWithoutAStageThatHangs", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var d diary
			release := make(chan struct{})
			s := newStages(10 * time.Second)
			s.Add("pool", stageThat(&d, "pool", 500*time.Millisecond, nil))
			s.Add("stuck", func(context.Context) error { <-release; return nil })
			s.Add("http", stageThat(&d, "http", time.Second, nil))
			took, err := runStages(t, s)
			if err == nil || err.Error() != "stuck has not stopped within 10s" || took != 11*time.Second {
				t.Errorf("got %v after %v", err, took)
			}
			if want := []string{"http told", "http left", "pool told", "pool left"}; !slices.Equal(d.read(), want) {
				t.Errorf("got %v", d.read())
			}
			close(release)
		})
	})

	t.Run("AreNothingWithoutAny", func(t *testing.T) {
		t.Parallel()
		if err := newStages(time.Second).Run(t.Context()); err == nil {
			t.Error("no error")
		}
	})
}

// Whatever the stages do, one is told to stop only after those added behind it
// have left, unless the time is up; and Run never takes longer than promised.
func TestStagesKeepTheirPromise(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		takes := rapid.SliceOfN(rapid.IntRange(0, 8), 1, 6).Draw(rt, "seconds")
		ends := rapid.IntRange(-1, len(takes)-1).Draw(rt, "which ends by itself")
		var broken string
		synctest.Test(t, func(t *testing.T) { broken = stagesPromiseBroken(t.Context(), takes, ends) })
		if broken != "" {
			rt.Fatal(broken)
		}
	})
}

// stagesPromiseBroken runs one stage for each entry of takes, which is how many
// seconds it needs to leave, and stops them by ending their context or by having
// the stage ends (unless negative) return.
func stagesPromiseBroken(ctx context.Context, takes []int, ends int) string {
	const timeout = 10 * time.Second
	var (
		mu         sync.Mutex // guards what follows
		stopped    time.Time
		told, left = make([]time.Time, len(takes)), make([]time.Time, len(takes))
	)
	note := func(moments ...*time.Time) {
		mu.Lock()
		defer mu.Unlock()
		for _, moment := range moments {
			*moment = time.Now()
		}
	}
	s := newStages(timeout)
	for i, seconds := range takes {
		s.Add(fmt.Sprint(i), func(ctx context.Context) error {
			if i == ends {
				time.Sleep(30 * time.Second)
				note(&stopped, &told[i], &left[i])
				return nil
			}
			<-ctx.Done()
			note(&told[i])
			// Never on the stroke of a deadline, where both outcomes are right.
			time.Sleep(time.Duration(seconds)*time.Second + time.Millisecond)
			note(&left[i])
			return nil
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if ends < 0 {
		time.AfterFunc(time.Minute, func() { note(&stopped); cancel() })
	}
	err := s.Run(ctx)
	returned := time.Now()
	time.Sleep(time.Minute) // for those that were left behind

	mu.Lock()
	defer mu.Unlock()
	if took := returned.Sub(stopped); took > timeout+afterDeadline {
		return fmt.Sprintf("stopping took %v", took)
	}
	late := false
	for i := range takes {
		late = late || left[i].Sub(stopped) > timeout+afterDeadline
		for j := i + 1; j < len(takes); j++ {
			if i != ends && told[i].Before(left[j]) && told[i].Sub(stopped) < timeout {
				return fmt.Sprintf("%d was told to stop before %d had left", i, j)
			}
		}
	}
	if mentioned := err != nil && strings.Contains(err.Error(), "has not stopped within 10s"); late != mentioned || !late && err != nil {
		return fmt.Sprintf("late is %v and the error %v", late, err)
	}
	return ""
}

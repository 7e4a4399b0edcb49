package dispatch

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestBatcher(t *testing.T) {
	t.Parallel()

	t.Run("GathersWhatComesWhileABatchIsUnderWay", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			var sizes []int
			b := newBatcher(1, 100, func(_ context.Context, ins []int) []int {
				sizes = append(sizes, len(ins))
				<-release
				outs := make([]int, len(ins))
				for i, in := range ins {
					outs[i] = in * in
				}
				return outs
			})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = b.Run(ctx) })
			var callers sync.WaitGroup
			for i := range 10 {
				callers.Go(func() {
					if got, err := b.Do(ctx, i); err != nil || got != i*i {
						t.Errorf("Do(%d) = %d, %v", i, got, err)
					}
				})
				synctest.Wait() // the first is alone, the others find it under way
			}
			close(release)
			callers.Wait()
			cancel()
			wg.Wait()
			if len(sizes) != 2 || sizes[0] != 1 || sizes[1] != 9 {
				t.Errorf("batches of %v, want 1 and 9", sizes)
			}
		})
	})

	t.Run("KeepsToItsLargestBatch", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			largest := 0
			b := newBatcher(1, 3, func(_ context.Context, ins []int) []int {
				largest = max(largest, len(ins))
				<-release
				return ins
			})
			ctx, cancel := context.WithCancel(t.Context())
			var wg, callers sync.WaitGroup
			wg.Go(func() { _ = b.Run(ctx) })
			for i := range 10 {
				callers.Go(func() { _, _ = b.Do(ctx, i) })
			}
			synctest.Wait()
			close(release)
			callers.Wait()
			cancel()
			wg.Wait()
			if largest > 3 {
				t.Errorf("a batch of %d", largest)
			}
		})
	})

	t.Run("LetsACallerLeaveAndAnswersTheOthers", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			b := newBatcher(1, 100, func(_ context.Context, ins []int) []int { <-release; return ins })
			ctx, cancel := context.WithCancel(t.Context())
			var wg, callers sync.WaitGroup
			wg.Go(func() { _ = b.Run(ctx) })
			impatient, leave := context.WithCancel(ctx)
			callers.Go(func() {
				if _, err := b.Do(impatient, 1); !errors.Is(err, context.Canceled) {
					t.Errorf("the one that left got %v", err)
				}
			})
			synctest.Wait()
			callers.Go(func() {
				if got, err := b.Do(ctx, 2); err != nil || got != 2 {
					t.Errorf("the one that stayed got %d, %v", got, err)
				}
			})
			synctest.Wait()
			leave()
			synctest.Wait()
			close(release)
			callers.Wait()
			cancel()
			wg.Wait()
		})
	})

	t.Run("RefusesOnceItHasStopped", func(t *testing.T) {
		t.Parallel()
		b := newBatcher(2, 10, func(_ context.Context, ins []int) []int { return ins })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Do(t.Context(), 1); !errors.Is(err, errStopped) {
			t.Errorf("got %v", err)
		}
	})
}

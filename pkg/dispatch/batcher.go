package dispatch

import (
	"context"
	"sync"
)

// batcher turns calls made by many goroutines into few calls with many items,
// without making anyone wait for company: a batch is whatever has gathered while
// the one before was under way.
type batcher[In, Out any] struct {
	queue    chan batchItem[In, Out]
	workers  int
	maxBatch int
	// do handles a batch and answers each item, in order. It must return exactly
	// one Out per In.
	do func(ctx context.Context, items []In) []Out
	// stopped is closed when the last worker has left.
	stopped chan struct{}
}

type batchItem[In, Out any] struct {
	in  In
	out chan Out // buffered 1
}

func newBatcher[In, Out any](workers, maxBatch int, do func(context.Context, []In) []Out) *batcher[In, Out] {
	return &batcher[In, Out]{
		queue:    make(chan batchItem[In, Out]),
		workers:  workers,
		maxBatch: maxBatch,
		do:       do,
		stopped:  make(chan struct{}),
	}
}

// Run handles batches until ctx ends. It must be called once.
func (b *batcher[In, Out]) Run(ctx context.Context) error {
	defer close(b.stopped)
	var wg sync.WaitGroup
	for range b.workers {
		wg.Go(func() { b.work(ctx) })
	}
	wg.Wait()
	return nil
}

func (b *batcher[In, Out]) work(ctx context.Context) {
	var (
		ins  []In
		outs []chan Out
	)
	for {
		select {
		case <-ctx.Done():
			return
		case item := <-b.queue:
			ins, outs = append(ins, item.in), append(outs, item.out)
		}
	gather:
		for len(ins) < b.maxBatch {
			select {
			case item := <-b.queue:
				ins, outs = append(ins, item.in), append(outs, item.out)
			default:
				break gather
			}
		}
		for i, out := range b.do(ctx, ins) {
			outs[i] <- out
		}
		clear(ins)
		ins, outs = ins[:0], outs[:0]
	}
}

// Do hands an item in and waits for its answer. It fails with ctx's error, or
// with errStopped once the batcher has stopped.
func (b *batcher[In, Out]) Do(ctx context.Context, in In) (Out, error) {
	var zero Out
	item := batchItem[In, Out]{in, make(chan Out, 1)}
	select {
	case b.queue <- item:
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	case <-b.stopped:
		return zero, errStopped
	}
	select {
	case out := <-item.out:
		return out, nil
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	case <-b.stopped:
		// The last worker may have answered on its way out.
		select {
		case out := <-item.out:
			return out, nil
		default:
			return zero, errStopped
		}
	}
}

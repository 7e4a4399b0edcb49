package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Garbage collection: Go's own rule lets the heap grow to twice what is alive in it,
// which for a service that is a few dozen MiB large means many collections a second
// under load.
const (
	leastGCPercent  = 100 // Go's default
	mostGCPercent   = 400
	collectInterval = time.Second
)

// gcPercent is how much the heap may grow before it is collected, in percent of what
// is alive: by spare bytes, within the two bounds. It is pure.
func gcPercent(live, spare uint64) int {
	if live == 0 {
		return mostGCPercent
	}
	return int(min(max(100*spare/live, leastGCPercent), mostGCPercent))
}

// TuneGC is a stage that has memory collected less often while there is little of it:
// the heap may grow by spare bytes, or by four times what is alive, whichever is less,
// and always by as much as is alive. A GOGC in the environment wins. It returns nil
// when ctx ends.
func TuneGC(lookup func(string) (string, bool), spare uint64) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if _, chosen := lookup("GOGC"); chosen {
			<-ctx.Done()
			return nil
		}
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		ticker := time.NewTicker(collectInterval)
		defer ticker.Stop()
		for now := 0; ; {
			metrics.Read(sample)
			// Setting it stops the world for a moment, so only what makes a difference is.
			if percent := gcPercent(sample[0].Value.Uint64(), spare); percent < now-10 || percent > now+10 {
				debug.SetGCPercent(percent)
				now = percent
			}
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	}
}

package daemon

import (
	"context"
	"runtime/debug"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestGCPercent(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, c := range []struct {
		live, spare uint64
		want        int
	}{
		{0, 200 * mib, 400}, {10 * mib, 200 * mib, 400}, {50 * mib, 200 * mib, 400}, {100 * mib, 200 * mib, 200}, {300 * mib, 200 * mib, 100},
	} {
		if got := gcPercent(c.live, c.spare); got != c.want {
			t.Errorf("with %d MiB alive and %d to spare: %d %%, want %d", c.live/mib, c.spare/mib, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		live, spare := rapid.Uint64Range(1, 1<<40).Draw(t, "live"), rapid.Uint64Range(0, 1<<32).Draw(t, "spare")
		if grown := live / 100 * uint64(gcPercent(live, spare)); grown > max(spare, live) {
			t.Fatalf("%d bytes may become %d more with %d to spare", live, grown, spare)
		}
	})
}

// TestTuneGC changes what is the whole process', so it is not parallel.
func TestTuneGC(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	run := func(set bool) int {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := TuneGC(func(string) (string, bool) { return "", set }, 1<<40)(ctx); err != nil {
			t.Error(err)
		}
		return debug.SetGCPercent(100)
	}
	if got := run(true); got != 100 {
		t.Errorf("at %d %% although GOGC is set", got)
	}
	if got := run(false); got != mostGCPercent {
		t.Errorf("at %d %%, want %d", got, mostGCPercent)
	}
}

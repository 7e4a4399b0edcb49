package main

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

func TestSizesFollowFromEachOther(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for name, tt := range map[string]struct{ given, want sizes }{
		"NothingIsChosen": {
			sizes{},
			sizes{10, intake.DefaultCommitters, intake.DefaultBufferEvents, intake.DefaultBufferBytes, intake.DefaultBatchEvents, intake.DefaultBatchBytes, intake.DefaultBatchDeliveries},
		},
		"CommittersAreChosen":                {sizes{Committers: 4}, sizes{12, 4, 16384, 128 * mib, 500, 4 * mib, 5000}},
		"OneCommitterIsChosen":               {sizes{Committers: 1}, sizes{9, 1, 4096, 32 * mib, 500, 4 * mib, 5000}},
		"ManyCommittersAreChosen":            {sizes{Committers: 64}, sizes{72, 64, 65536, 512 * mib, 500, 4 * mib, 5000}},
		"AsFewConnectionsAsItTakesAreChosen": {sizes{DatabaseConnections: 4}, sizes{4, 1, 4096, 32 * mib, 500, 4 * mib, 5000}},
		"FewConnectionsAreChosen":            {sizes{DatabaseConnections: 5}, sizes{5, 2, 8192, 64 * mib, 500, 4 * mib, 5000}},
		"TwentyConnectionsAreChosen":         {sizes{DatabaseConnections: 20}, sizes{20, 2, 8192, 64 * mib, 500, 4 * mib, 5000}},
		"AHundredConnectionsAreChosen":       {sizes{DatabaseConnections: 100}, sizes{100, 6, 24576, 192 * mib, 500, 4 * mib, 5000}},
		"AThousandConnectionsAreChosen":      {sizes{DatabaseConnections: 1000}, sizes{1000, 16, 65536, 512 * mib, 500, 4 * mib, 5000}},
		"BothAreChosen":                      {sizes{DatabaseConnections: 30, Committers: 8}, sizes{30, 8, 32768, 256 * mib, 500, 4 * mib, 5000}},
		"ASmallBufferIsChosen":               {sizes{BufferEvents: 100, BufferBytes: 2 * mib}, sizes{10, 2, 100, 2 * mib, 25, mib / 2, 250}},
		"ABufferOfOneEventIsChosen":          {sizes{BufferEvents: 1}, sizes{10, 2, 1, 64 * mib, 1, 4 * mib, 10}},
		"LargeBatchesAreChosen":              {sizes{BatchEvents: 2000, BatchBytes: 16 * mib}, sizes{10, 2, 8192, 64 * mib, 2000, 16 * mib, 20_000}},
		"AllIsChosen":                        {sizes{50, 3, 1000, 9 * mib, 10, 7 * mib, 11}, sizes{50, 3, 1000, 9 * mib, 10, 7 * mib, 11}},
	} {
		t.Run("When"+name, func(t *testing.T) {
			t.Parallel()
			if got := tt.given.derive(); got != tt.want {
				t.Errorf("sizes are %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Whatever is chosen that is valid, what follows from it is valid too, and leaves
// connections for all else.
func TestDerivedSizesAreValid(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		or := func(low, high int, name string) int {
			if rapid.Bool().Draw(t, name+" derived") {
				return 0
			}
			return rapid.IntRange(low, high).Draw(t, name)
		}
		given := sizes{
			DatabaseConnections: or(4, 1000, "connections"), Committers: or(1, 64, "committers"),
			BufferEvents: or(1, 1<<24, "buffer events"), BufferBytes: int64(or(1<<20, 1<<40, "buffer bytes")),
			BatchEvents: or(1, 10_000, "batch events"), BatchBytes: int64(or(1024, 256<<20, "batch bytes")), BatchDeliveries: or(1, 1_000_000, "batch deliveries"),
		}
		if given.checkConnections() != nil {
			t.Skip("not valid")
		}
		got := given.derive()
		if err := got.checkConnections(); err != nil {
			t.Fatalf("%+v: %v", got, err)
		}
		if got.derive() != got || got.Committers < 1 || got.BufferEvents < 1 || got.BufferBytes < 1<<20 ||
			got.BatchEvents < 1 || got.BatchBytes < 1 || got.BatchDeliveries < 1 {
			t.Fatalf("sizes are %+v", got)
		}
		// More connections never make for fewer committers.
		if given.Committers == 0 && given.DatabaseConnections > 0 {
			if more := (sizes{DatabaseConnections: given.DatabaseConnections + 1}).derive(); more.Committers < got.Committers {
				t.Fatalf("%+v, and with one connection more %+v", got, more)
			}
		}
	})
}

func TestTooFewConnectionsAreRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		given sizes
		want  string
	}{
		{sizes{DatabaseConnections: 10, Committers: 9}, "must be at least 12 for --committers 9: one for each, and 3 more; raise it, lower --committers, or leave either out"},
		{sizes{DatabaseConnections: 3}, "must be between 4 and 1000"},
		{sizes{DatabaseConnections: 1001}, "must be between 4 and 1000"},
		{sizes{Committers: 64}, ""},
		{sizes{DatabaseConnections: 12, Committers: 9}, ""},
	} {
		got := ""
		if err := tt.given.checkConnections(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.given, got, tt.want)
		}
	}
}

func TestSaysItsSizesOnceAtStart(t *testing.T) {
	t.Parallel()
	p := start(t, append(settings(pgtest.New(t)), "--database-connections=41", "--commit-batch-events=7")...)
	p.cancel()
	if err := <-p.ended; err != nil {
		t.Error(err)
	}
	said := 0
	for line := range p.logs {
		s, ok := line["sizes"].(map[string]any)
		if !ok {
			continue
		}
		said++
		if s["database_connections"] != 41.0 || s["committers"] != 3.0 || s["buffer_events"] != 12288.0 || s["batch_events"] != 7.0 || s["batch_deliveries"] != 70.0 {
			t.Errorf("sizes are %v", s)
		}
	}
	if said != 1 {
		t.Errorf("said %d times", said)
	}
}

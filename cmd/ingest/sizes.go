package main

import (
	"fmt"
	"log/slog"

	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/intake"
)

const (
	// leastOther is how many database connections ingest needs besides those of its
	// committers: one for finding out what became of a batch, and two for all that
	// is read, managed, counted and probed.
	leastOther = 3
	// readConnections is how many there are for the latter unless the number of all
	// is chosen.
	readConnections = 7
	// connectionsPerCommitter is how many connections it takes, beyond as many, for
	// one committer more than usual: more committers make smaller batches, and
	// measured worse on two cores.
	connectionsPerCommitter = 20
	maxDerivedCommitters    = 16

	bufferEventsPerCommitter = intake.DefaultBufferEvents / intake.DefaultCommitters
	bufferBytesPerCommitter  = intake.DefaultBufferBytes / intake.DefaultCommitters
	deliveriesPerEvent       = intake.DefaultBatchDeliveries / intake.DefaultBatchEvents
	// batchesPerCommitter is how many full batches for each committer the buffer
	// holds at least: one is being committed while the next one forms.
	batchesPerCommitter = 2
)

// sizes are the settings that follow from each other; 0: what follows from the
// others.
type sizes struct {
	// DatabaseConnections bounds the connection pools, and Committers is how many
	// batches of events are committed at the same time.
	DatabaseConnections, Committers int
	// BufferEvents and BufferBytes bound the events that wait to be committed.
	BufferEvents int
	BufferBytes  int64
	// BatchEvents, BatchBytes and BatchDeliveries bound what is committed together.
	BatchEvents     int
	BatchBytes      int64
	BatchDeliveries int
}

func (s *sizes) register(set *daemon.Settings) {
	const derived = "; 0: what follows from "
	set.Int(&s.DatabaseConnections, "database-connections", 0, "connections to the database, at most, besides the one that listens"+derived+"--committers")
	set.Check("database-connections", s.checkConnections)
	set.Int(&s.Committers, "committers", 0, "batches of events that are committed at the same time, each on its own connection"+derived+"--database-connections")
	set.Check("committers", func() error { return derivedOr(s.Committers, 1, 64) })
	set.Int(&s.BufferEvents, "buffer-events", 0, "events that may wait to be committed, more are answered with 503"+derived+"--committers")
	set.Check("buffer-events", func() error { return derivedOr(s.BufferEvents, 1, 1<<24) })
	set.Int64(&s.BufferBytes, "buffer-bytes", 0, "memory for events that wait to be committed, in bytes"+derived+"--committers")
	set.Check("buffer-bytes", func() error { return derivedOr(s.BufferBytes, 1<<20, 1<<40) })
	set.Int(&s.BatchEvents, "commit-batch-events", 0, "events that are committed together, at most"+derived+"--buffer-events and --committers")
	set.Check("commit-batch-events", func() error { return derivedOr(s.BatchEvents, 1, 10_000) })
	set.Int64(&s.BatchBytes, "commit-batch-bytes", 0, "bytes of events that are committed together, at most"+derived+"--buffer-bytes and --committers")
	set.Check("commit-batch-bytes", func() error { return derivedOr(s.BatchBytes, 1024, 256<<20) })
	set.Int(&s.BatchDeliveries, "commit-batch-deliveries", 0, "deliveries that are committed together, at most"+derived+"--commit-batch-events")
	set.Check("commit-batch-deliveries", func() error { return derivedOr(s.BatchDeliveries, 1, 1_000_000) })
}

func derivedOr[T int | int64](value, low, high T) error {
	if value == 0 {
		return nil
	}
	return within(value, low, high)
}

func (s *sizes) checkConnections() error {
	switch least := s.Committers + leastOther; {
	case s.DatabaseConnections == 0:
		return nil
	case s.Committers > 0 && s.DatabaseConnections < least:
		return fmt.Errorf("must be at least %d for --committers %d: one for each, and %d more; raise it, lower --committers, or leave either out",
			least, s.Committers, leastOther)
	}
	return within(s.DatabaseConnections, 1+leastOther, 1000)
}

// derive returns the sizes with everything filled in. They must be valid.
func (s sizes) derive() sizes {
	if s.Committers == 0 {
		s.Committers = committersFor(s.DatabaseConnections)
	}
	if s.DatabaseConnections == 0 {
		s.DatabaseConnections = s.Committers + 1 + readConnections
	}
	// Beyond some committers more of them call for no larger buffer: it is memory.
	buffers := min(s.Committers, maxDerivedCommitters)
	if s.BufferEvents == 0 {
		s.BufferEvents = buffers * bufferEventsPerCommitter
	}
	if s.BufferBytes == 0 {
		s.BufferBytes = int64(buffers) * bufferBytesPerCommitter
	}
	batches := batchesPerCommitter * s.Committers
	if s.BatchEvents == 0 {
		s.BatchEvents = max(1, min(intake.DefaultBatchEvents, s.BufferEvents/batches))
	}
	if s.BatchBytes == 0 {
		s.BatchBytes = max(1, min(intake.DefaultBatchBytes, s.BufferBytes/int64(batches)))
	}
	if s.BatchDeliveries == 0 {
		s.BatchDeliveries = s.BatchEvents * deliveriesPerEvent
	}
	return s
}

// committersFor is how many committers go with so many connections; 0 stands for
// as many as it takes.
func committersFor(connections int) int {
	if connections == 0 {
		return intake.DefaultCommitters
	}
	more := max(0, connections-connectionsPerCommitter) / connectionsPerCommitter
	usual := min(intake.DefaultCommitters+more, maxDerivedCommitters)
	return max(1, min(usual, connections-leastOther))
}

// LogValue implements slog.LogValuer.
func (s sizes) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Int("database_connections", s.DatabaseConnections), slog.Int("committers", s.Committers),
		slog.Int("buffer_events", s.BufferEvents), slog.Int64("buffer_bytes", s.BufferBytes),
		slog.Int("batch_events", s.BatchEvents), slog.Int64("batch_bytes", s.BatchBytes), slog.Int("batch_deliveries", s.BatchDeliveries),
	)
}

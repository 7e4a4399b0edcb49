package intake

import (
	"context"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// maxRepeats is how often a transaction is repeated that failed for a passing
// reason and is known not to have committed.
const maxRepeats = 3

// commitLoop commits batches until nothing is queued and nothing more will be.
func (in *Intake) commitLoop(ctx context.Context) {
	for in.waitForWork() {
		in.commitQueued(ctx)
	}
}

// commitQueued commits batch after batch on one connection until nothing is
// queued or the connection is lost.
func (in *Intake) commitQueued(ctx context.Context) {
	// The connection first: the batch forms while waiting for it.
	s := &session{in: in}
	defer s.release()
	if err := s.ready(ctx); err != nil {
		in.databaseAway(ctx, err)
		return
	}
	for {
		batch := in.take()
		if len(batch) == 0 {
			return
		}
		unknown := in.commit(ctx, s, batch, firstTry)
		if len(unknown) > 0 {
			in.metrics.unknownBatches.Inc()
			in.resolvers.Go(func() { in.resolve(ctx, unknown) })
		}
		if s.broken() {
			return
		}
	}
}

// resolve finds out what became of events that were sent and not confirmed, by
// sending them again with the same ids until there is an answer. Whether the
// callers are still there makes no difference.
func (in *Intake) resolve(ctx context.Context, items []*pending) {
	ctx, cancel := context.WithTimeout(ctx, in.limits.unknown)
	defer cancel()
	s := &session{in: in}
	defer s.release()
	for gap := in.limits.retryGap; ; gap = min(2*gap, time.Second/2) {
		select {
		case <-ctx.Done():
		case <-time.After(gap/2 + rand.N(gap)):
			items = in.commit(ctx, s, items, furtherTry)
		}
		if len(items) == 0 {
			return
		}
		if ctx.Err() != nil {
			for _, p := range items {
				in.finish(p, outcome{err: ErrOutcomeUnknown, reason: reasonUnknown})
			}
			in.logger.ErrorContext(ctx, "gave up finding out whether events were stored", "events", len(items))
			return
		}
	}
}

// try says what is known about the events before a commit.
type try bool

const (
	firstTry   try = false // they are not stored: a failed transaction settles that
	furtherTry try = true  // they may be: only an answer by id settles that
)

// commit stores items, in one transaction if all of them are sound, and answers
// those whose outcome is known then. It returns the others.
func (in *Intake) commit(ctx context.Context, s *session, items []*pending, t try) (unknown []*pending) {
	repeats := 0
	for work := [][]*pending{items}; len(work) > 0; {
		part := work[len(work)-1]
		work = work[:len(work)-1]

		v, rest, err := in.commitPart(ctx, s, part, t)
		if v == verdictDone {
			unknown = append(unknown, rest...)
			continue
		}
		if v == verdictData || v == verdictKeyHeld {
			if parts := split(part, v); len(parts) > 1 {
				work = append(work, parts...)
				continue
			}
			if len(part) > 1 { // a group
				v, rest, err = in.commitSound(ctx, s, part, t)
				if v == verdictDone {
					unknown = append(unknown, rest...)
					continue
				}
			}
		}
		again := false
		switch v {
		case verdictRepeat:
			again = repeats < maxRepeats
		case verdictPartition:
			again = repeats < maxRepeats && in.makePartitions(ctx, s)
		case verdictNotSent:
			// A connection that was dead already; the next one is new. With the
			// database away it fails at once.
			again = repeats < maxRepeats && s.ready(ctx) == nil
		case verdictDone, verdictData, verdictKeyHeld, verdictFailed, verdictUnknown:
		}
		if again {
			repeats++
			work = append(work, part)
			continue
		}
		unknown = append(unknown, in.settle(ctx, part, v, t, err)...)
	}
	return unknown
}

// settle answers the events of a transaction that did not commit and is not
// repeated, as far as its verdict tells what became of them, and returns the
// others.
func (in *Intake) settle(ctx context.Context, items []*pending, v verdict, t try, err error) (unknown []*pending) {
	var o outcome
	switch v {
	case verdictDone, verdictUnknown:
		return items
	case verdictData:
		// Also on a further try: had an earlier one stored it, its data would be
		// sound.
		o = outcome{err: errData(err), reason: reasonInvalid}
		in.logger.WarnContext(ctx, "the database refused an event's data", "error", err)
	case verdictKeyHeld:
		if t == furtherTry {
			return items // held, most likely, by the try before
		}
		in.holdKeys(items)
		o = outcome{err: errKeyHeld(), reason: reasonConflict}
	case verdictNotSent, verdictFailed, verdictRepeat, verdictPartition:
		if t == furtherTry {
			return items
		}
		o = outcome{err: unavailable(messageTrouble), reason: reasonFailed}
		if v == verdictNotSent {
			o = outcome{err: unavailable(messageAway), reason: reasonAway}
		}
		in.logger.ErrorContext(ctx, "could not store events", "events", len(items), "error", err)
	}
	for _, p := range items {
		in.finish(p, o)
	}
	return nil
}

// split divides a batch that failed because of some of its events, but no group.
// One that cannot be divided comes back whole.
func split(items []*pending, v verdict) [][]*pending {
	units := slices.Collect(byUnit(items))
	if len(units) < 2 {
		return [][]*pending{items}
	}
	if v == verdictKeyHeld {
		var keyed, others []*pending
		for _, u := range units {
			if hasKey(u) {
				keyed = append(keyed, u...)
			} else {
				others = append(others, u...)
			}
		}
		if len(keyed) > 0 && len(others) > 0 {
			return [][]*pending{keyed, others} // others come first, from the end
		}
	}
	half := len(units) / 2
	return [][]*pending{slices.Concat(units[half:]...), slices.Concat(units[:half]...)}
}

// byUnit are the neighbours in items that are stored together.
func byUnit(items []*pending) iter.Seq[[]*pending] {
	return func(yield func([]*pending) bool) {
		for len(items) > 0 {
			n := slices.IndexFunc(items, func(p *pending) bool { return p.unit != items[0].unit })
			if n < 0 {
				n = len(items)
			}
			if !yield(items[:n:n]) {
				return
			}
			items = items[n:]
		}
	}
}

func hasKey(items []*pending) bool {
	return slices.ContainsFunc(items, func(p *pending) bool { return p.event.Key != nil })
}

// commitPart tries one transaction. If it committed, its events are answered
// except for those returned as rest, about which nothing could be found out.
func (in *Intake) commitPart(ctx context.Context, s *session, items []*pending, t try) (v verdict, rest []*pending, err error) {
	if err := s.ready(ctx); err != nil {
		return verdictNotSent, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, in.limits.commit)
	defer cancel()

	wait := in.limits.keyWait
	if t == furtherTry {
		// An earlier try may still be running and hold its own keys.
		wait = in.limits.commit / 2
	}
	begun := time.Now()
	inserted, err := in.acceptor.Accept(ctx, s.conn, eventsOf(items), wait)
	took := time.Since(begun)
	in.metrics.commitDuration.Observe(took.Seconds())
	in.metrics.batchEvents.Observe(float64(len(items)))
	v = s.judge(err)
	if v == verdictKeyHeld && !hasKey(items) {
		v = verdictFailed // some other lock
	}
	in.noteProgress(ctx, v)
	in.logBatch(ctx, items, len(inserted), took, v, err)
	if v != verdictDone {
		return v, nil, err
	}

	rest, err = in.conclude(ctx, s, items, inserted)
	return verdictDone, rest, err
}

func eventsOf(items []*pending) []*postgres.NewEvent {
	events := make([]*postgres.NewEvent, len(items))
	for i, p := range items {
		events[i] = &p.event
	}
	return events
}

// conclude answers the events of a committed transaction, which inserted those
// with these ids, and returns the ones about which nothing could be found out.
func (in *Intake) conclude(ctx context.Context, s *session, items []*pending, inserted []webhook.ID) (rest []*pending, err error) {
	stored := make(map[webhook.ID]bool, len(inserted))
	for _, id := range inserted {
		stored[id] = true
	}
	for _, p := range items {
		if stored[p.event.ID] {
			in.stored(p)
		} else {
			rest = append(rest, p)
		}
	}
	if len(rest) > 0 {
		rest, err = in.explain(ctx, s, rest)
	}
	return rest, err
}

// explain answers events that a committed transaction left out: each is stored
// already, by an earlier try or under its key by an earlier submission. It
// returns those that it could not find out about.
func (in *Intake) explain(ctx context.Context, s *session, items []*pending) (rest []*pending, err error) {
	ids := make([]webhook.ID, 0, len(items))
	names := make([]postgres.KeyName, 0, len(items))
	for _, p := range items {
		ids = append(ids, p.event.ID)
		if p.event.Key != nil {
			names = append(names, p.keyName())
		}
	}
	targets, err := postgres.StoredTargets(ctx, s.conn, ids)
	if err != nil {
		return items, err
	}
	keys, err := postgres.StoredKeys(ctx, s.conn, names)
	if err != nil {
		return items, err
	}
	for _, p := range items {
		if _, own := targets[p.event.ID]; own {
			in.stored(p)
			continue
		}
		if p.event.Key == nil {
			rest = append(rest, p)
			continue
		}
		key, known := keys[p.keyName()]
		switch {
		case !known || key.EventID == p.event.ID:
			rest = append(rest, p) // what stood in the way has gone since
		case key.Fingerprint == p.event.Key.Fingerprint:
			in.finish(p, outcome{receipt: Receipt{ID: key.EventID, WebhookIDs: key.WebhookIDs, Dropped: key.Dropped, Replayed: true}})
		default:
			in.finish(p, outcome{err: ErrKeyTaken, reason: reasonMismatch})
		}
	}
	return rest, nil
}

// stored answers p with its receipt.
func (in *Intake) stored(p *pending) {
	in.metrics.accepted.Inc()
	in.metrics.deliveries.Add(float64(len(p.event.WebhookIDs) - len(p.event.Dropped)))
	var dropped []webhook.ID
	for _, d := range p.event.Dropped {
		dropped = append(dropped, d.WebhookID)
	}
	in.finish(p, outcome{receipt: Receipt{ID: p.event.ID, WebhookIDs: p.event.WebhookIDs, Dropped: dropped}})
}

// makePartitions makes up for partitions that nobody made in time, and reports
// whether the transaction is worth repeating.
func (in *Intake) makePartitions(ctx context.Context, s *session) bool {
	ctx, cancel := context.WithTimeout(ctx, in.limits.commit)
	defer cancel()
	made, err := postgres.EnsurePartitions(ctx, s.conn, 1)
	if err != nil {
		in.logger.ErrorContext(ctx, "could not make a missing partition", "error", err)
		return false
	}
	in.logger.WarnContext(ctx, "made missing partitions", "made", made)
	return true
}

// noteProgress keeps what Submit and the watch for stalls need to know.
func (in *Intake) noteProgress(ctx context.Context, v verdict) {
	in.mu.Lock()
	now := time.Now()
	back := false
	switch v {
	case verdictUnknown, verdictNotSent:
		in.suspectUntil = now.Add(in.limits.suspect)
	case verdictDone, verdictData, verdictKeyHeld, verdictPartition, verdictRepeat, verdictFailed:
		in.progress = now
		back, in.away = in.away, false
	}
	in.mu.Unlock()
	if back {
		in.logger.InfoContext(ctx, "the database is back: storing events again")
	}
}

// databaseAway refuses what is queued: none of it was sent.
func (in *Intake) databaseAway(ctx context.Context, err error) {
	if ctx.Err() != nil {
		in.refuseQueued(time.Now(), 0, reasonStopping, unavailable(messageStopping))
		return
	}
	in.mu.Lock()
	news := !in.away
	in.away = true
	in.awayUntil = time.Now().Add(in.limits.away)
	in.mu.Unlock()
	if news {
		in.logger.ErrorContext(ctx, "the database is away: refusing events", "error", err)
	}
	in.refuseQueued(time.Now(), 0, reasonAway, unavailable(messageAway))
}

// holdKeys remembers for a moment that keys are held elsewhere, so that repeated
// submissions do not make batches wait for them.
func (in *Intake) holdKeys(items []*pending) {
	in.mu.Lock()
	defer in.mu.Unlock()
	until := time.Now().Add(in.limits.keyHeld)
	for _, p := range items {
		in.held[p.keyName()] = until
	}
}

// logBatch writes one line per transaction.
func (in *Intake) logBatch(ctx context.Context, items []*pending, inserted int, took time.Duration, v verdict, err error) {
	if !in.logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	var (
		bytes      int64
		deliveries int
		keys       int
	)
	for _, p := range items {
		bytes += p.size
		deliveries += len(p.event.WebhookIDs)
		if p.event.Key != nil {
			keys++
		}
	}
	attrs := []any{
		"outcome", v.String(), "events", len(items), "inserted", inserted, "deliveries", deliveries,
		"keys", keys, "bytes", bytes, "duration", took,
		"first_event_id", items[0].event.ID, "last_event_id", items[len(items)-1].event.ID,
	}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	message := "committed a batch"
	if v != verdictDone {
		message = "could not commit a batch"
	}
	in.logger.DebugContext(ctx, message, attrs...)
}

package intake

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// probeWait is how long one look for a held key waits for it: the whole group
// has waited longer already.
const probeWait = time.Millisecond

// commitSound stores what can be stored of a group that failed because of some
// of its events, in one transaction, and answers all of them: it looks for those
// that fail by halves, each half behind a savepoint. If it does not commit,
// nothing is answered; what is returned then is as from commitPart.
func (in *Intake) commitSound(ctx context.Context, s *session, items []*pending, t try) (v verdict, rest []*pending, err error) {
	if err := s.ready(ctx); err != nil {
		return verdictNotSent, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, in.limits.commit)
	defer cancel()
	begun := time.Now()
	sieve := &sieve{in: in, s: s, try: t}
	v, err = sieve.run(ctx, items)
	took := time.Since(begun)
	in.metrics.commitDuration.Observe(took.Seconds())
	in.metrics.batchEvents.Observe(float64(len(sieve.sound)))
	in.noteProgress(ctx, v)
	in.logBatch(ctx, items, len(sieve.inserted), took, v, err)
	if v != verdictDone {
		return v, nil, err
	}
	for _, f := range sieve.failed {
		rest = append(rest, in.settle(ctx, []*pending{f.item}, f.verdict, t, f.err)...)
	}
	unexplained, err := in.conclude(ctx, s, sieve.sound, sieve.inserted)
	return verdictDone, append(rest, unexplained...), err
}

// sieve is the search for the sound events of a group, in one transaction.
type sieve struct {
	in  *Intake
	s   *session
	try try

	sound    []*pending
	inserted []webhook.ID // of sound
	failed   []failure
}

// failure is one event that cannot be stored.
type failure struct {
	item    *pending
	verdict verdict
	err     error
}

func (f *sieve) run(ctx context.Context, items []*pending) (verdict, error) {
	tx, err := f.s.conn.Begin(ctx)
	if err != nil {
		return f.before(err), err
	}
	// After a commit it does nothing. It gets time of its own: without it the
	// connection could not be used again.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.in.limits.acquire)
		defer cancel()
		_ = tx.Rollback(ctx)
	}()
	// Keys are claimed in the order that Accept claims them in, over all parts:
	// then two transactions that want the same ones do not wait for each other.
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(a, b *pending) int {
		switch x, y := a.event.Key, b.event.Key; {
		case x == nil && y == nil:
			return 0
		case x == nil:
			return -1
		case y == nil:
			return 1
		default:
			return cmp.Or(strings.Compare(a.event.Tenant, b.event.Tenant), strings.Compare(x.Key, y.Key))
		}
	})
	for _, part := range halves(items) {
		if v, err := f.probe(ctx, tx, part); err != nil {
			return v, err
		}
	}
	if len(f.sound) == 0 {
		return verdictDone, nil // rolled back, and nothing is lost by that
	}
	err = tx.Commit(ctx)
	v := f.s.judge(err)
	if v == verdictNotSent || v == verdictFailed {
		// After a simple query pgx reports a connection that broke before the answer
		// as one that was closed before the request (v5.12).
		v = verdictUnknown
		if errors.Is(err, pgx.ErrTxCommitRollback) {
			v = verdictFailed
		}
	}
	return v, err
}

// probe stores a part of the group behind a savepoint, or what it can of it. An
// error ends the transaction.
func (f *sieve) probe(ctx context.Context, tx pgx.Tx, items []*pending) (verdict, error) {
	point, err := tx.Begin(ctx)
	if err != nil {
		return f.before(err), err
	}
	inserted, err := f.in.acceptor.Accept(ctx, point, eventsOf(items), probeWait)
	if err == nil {
		err = point.Commit(ctx)
	}
	if err == nil {
		f.sound = append(f.sound, items...)
		f.inserted = append(f.inserted, inserted...)
		return verdictDone, nil
	}
	v := f.before(err)
	switch {
	case v == verdictData:
	case v == verdictKeyHeld && hasKey(items) && f.try == firstTry:
	case v == verdictKeyHeld && !hasKey(items):
		return verdictFailed, err // some other lock
	default: // on a further try a key is held, most likely, by the try before
		return v, err
	}
	if rollbackErr := point.Rollback(ctx); rollbackErr != nil {
		return f.before(rollbackErr), rollbackErr
	}
	if len(items) == 1 {
		f.failed = append(f.failed, failure{items[0], v, err})
		return verdictDone, nil
	}
	for _, part := range halves(items) {
		if v, err := f.probe(ctx, tx, part); err != nil {
			return v, err
		}
	}
	return verdictDone, nil
}

// before judges an error from before the commit was sent: whatever became of the
// connection, the transaction is rolled back.
func (f *sieve) before(err error) verdict {
	if v := f.s.judge(err); v != verdictUnknown {
		return v
	}
	return verdictNotSent
}

func halves(items []*pending) [][]*pending {
	half := len(items) / 2
	return [][]*pending{items[:half], items[half:]}
}

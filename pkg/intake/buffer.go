package intake

import (
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// pending is one Submit.
type pending struct {
	event postgres.NewEvent // its ID is set when it is first taken into a batch
	size  int64
	at    time.Time // when it was submitted

	// queued is true while it waits for a committer, and withdrawn when its
	// caller left during that time; guarded by Intake.mu.
	queued, withdrawn bool
	// followers have the same key, and are answered after this one; guarded by
	// Intake.mu.
	followers []*pending

	done    chan struct{} // closed when receipt and err are set
	receipt Receipt
	err     error
}

func newPending(item Item) *pending {
	p := &pending{
		event: postgres.NewEvent{
			Event: webhook.Event{
				Tenant:      item.Tenant,
				Type:        item.Type,
				Payload:     item.Payload,
				ContentType: item.ContentType,
				OccurredAt:  item.OccurredAt,
				Metadata:    item.Metadata,
				WebhookIDs:  item.WebhookIDs,
			},
			Key: item.Key,
		},
		at:   time.Now(),
		done: make(chan struct{}),
	}
	size := overhead + len(item.Payload) + len(item.Tenant) + len(item.Type) + len(item.ContentType) + 16*len(item.WebhookIDs)
	for key, value := range item.Metadata {
		size += len(key) + len(value)
	}
	if item.Key != nil {
		size += len(item.Key.Key)
	}
	p.size = int64(size)
	return p
}

func (p *pending) keyName() postgres.KeyName {
	return postgres.KeyName{Tenant: p.event.Tenant, Key: p.event.Key.Key}
}

// repeats reports whether p is the same submission as other, which has the same
// key.
func (p *pending) repeats(other *pending) bool {
	return p.event.Key.Fingerprint == other.event.Key.Fingerprint
}

// outcome is what became of one pending.
type outcome struct {
	receipt Receipt
	err     error
	reason  string // why it was refused, if it was
}

// enter takes p into the buffer, or says why not. A submission whose key another
// one is being stored under waits for that one's outcome.
func (in *Intake) enter(p *pending) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.refusal(p.size, p.at); err != nil {
		in.metrics.refuse(err.reason)
		return err.err
	}
	if p.event.Key != nil && p.at.Before(in.held[p.keyName()]) {
		in.metrics.refuse(reasonConflict)
		return errKeyHeld()
	}
	in.events++
	in.bytes += p.size
	in.place(p)
	return nil
}

// refusal is why an event of this size is not taken now. The caller holds mu.
func (in *Intake) refusal(size int64, now time.Time) *refused {
	switch {
	case in.stopping:
		return &refused{unavailable(messageStopping), reasonStopping}
	case now.Before(in.awayUntil):
		return &refused{unavailable(messageAway), reasonAway}
	case in.events >= in.cfg.BufferEvents,
		in.events > 0 && in.bytes+size > in.cfg.BufferBytes:
		return &refused{unavailable(messageFull), reasonFull}
	}
	return nil
}

// place puts p behind the pending that has its key, or into the queue. The
// caller holds mu.
func (in *Intake) place(p *pending) {
	if p.event.Key != nil {
		name := p.keyName()
		if first, taken := in.keys[name]; taken {
			first.followers = append(first.followers, p)
			return
		}
		in.keys[name] = p
	}
	p.queued = true
	in.queue.push(p)
	in.work.Signal()
}

// withdraw takes p out of the buffer if no committer has it and nobody waits for
// it.
func (in *Intake) withdraw(p *pending) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !p.queued || len(p.followers) > 0 {
		return false
	}
	p.queued, p.withdrawn = false, true
	in.releaseKey(p)
	// It stays in the queue, and is counted until it comes out of it.
	return true
}

// waitForWork blocks until something is queued. It returns false when nothing is
// and nothing more will be.
func (in *Intake) waitForWork() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.queue.len() == 0 && !in.stopping {
		in.work.Wait()
	}
	return in.queue.len() > 0
}

// take is the next batch: what waits, as far as it fits. It is empty when
// nothing waits.
func (in *Intake) take() []*pending {
	now := time.Now()
	id := in.cfg.Clock.Now()
	in.mu.Lock()
	defer in.mu.Unlock()
	var (
		batch      []*pending
		bytes      int64
		deliveries int
	)
	for in.queue.len() > 0 && len(batch) < in.cfg.BatchEvents {
		p := in.queue.peek()
		if p.withdrawn {
			in.queue.pop()
			in.release(p)
			continue
		}
		n := len(p.event.WebhookIDs)
		if len(batch) > 0 && (bytes+p.size > in.cfg.BatchBytes || deliveries+n > in.cfg.BatchDeliveries) {
			break
		}
		in.queue.pop()
		p.queued = false
		// Ids of one batch sort in the order of submission.
		p.event.ID = webhook.NewID(id.Add(time.Duration(len(batch)) * idStep))
		bytes += p.size
		deliveries += n
		batch = append(batch, p)
		in.metrics.waitDuration.Observe(now.Sub(p.at).Seconds())
	}
	if in.queue.len() > 0 {
		in.work.Signal() // for another committer
	}
	return batch
}

// idStep is the least distance in time that shows in the order of two ids.
const idStep = time.Millisecond/4096 + 1

// refuseQueued answers what has waited for longer than age with err.
func (in *Intake) refuseQueued(now time.Time, age time.Duration, reason string, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.queue.len() > 0 && now.Sub(in.queue.peek().at) >= age {
		p := in.queue.pop()
		if p.withdrawn {
			in.release(p)
			continue
		}
		p.queued = false
		in.answer(p, outcome{err: err, reason: reason})
	}
}

// finish answers p.
func (in *Intake) finish(p *pending, o outcome) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.answer(p, o)
}

// answer hands p its outcome, and its followers theirs. The caller holds mu.
func (in *Intake) answer(p *pending, o outcome) {
	in.releaseKey(p)
	followers := p.followers
	p.followers = nil
	in.tell(p, o)
	for _, f := range followers {
		switch {
		case o.err == nil && f.repeats(p):
			replay := o
			replay.receipt.Replayed = true
			in.tell(f, replay)
		case o.err == nil:
			in.tell(f, outcome{err: errKeyTaken(), reason: reasonMismatch})
		case f.repeats(p) || o.reason != reasonMismatch && o.reason != reasonInvalid:
			in.tell(f, o)
		default:
			// What stopped p was p's own fault: f gets a try of its own.
			in.place(f)
		}
	}
}

// tell sets an outcome and wakes the caller. The caller holds mu.
func (in *Intake) tell(p *pending, o outcome) {
	switch {
	case o.err != nil:
		in.metrics.refuse(o.reason)
	case o.receipt.Replayed:
		in.metrics.replayed.Inc()
	}
	p.receipt, p.err = o.receipt, o.err
	in.release(p)
	close(p.done)
}

// release stops counting p. The caller holds mu.
func (in *Intake) release(p *pending) {
	in.events--
	in.bytes -= p.size
}

// releaseKey lets others use the key of p. The caller holds mu.
func (in *Intake) releaseKey(p *pending) {
	if p.event.Key != nil && in.keys[p.keyName()] == p {
		delete(in.keys, p.keyName())
	}
}

// fifo is a queue whose memory is bounded by about twice what it holds.
type fifo struct {
	items []*pending
	head  int
}

func (q *fifo) len() int        { return len(q.items) - q.head }
func (q *fifo) peek() *pending  { return q.items[q.head] }
func (q *fifo) push(p *pending) { q.items = append(q.items, p) }

func (q *fifo) pop() *pending {
	p := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	switch {
	case q.head == len(q.items):
		q.items, q.head = q.items[:0], 0
	case q.head > 1024 && 2*q.head > len(q.items):
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return p
}

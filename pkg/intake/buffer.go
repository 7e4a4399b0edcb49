package intake

import (
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// unit is what is stored in one transaction because it was submitted together:
// one event, or a group.
type unit struct {
	share *share // whose part of the buffer it takes
	// items wait for a committer together. Those that wait for another submission
	// with their key are not among them. Guarded by Intake.mu while queued.
	items      []*pending
	size       int64
	deliveries int
	at         time.Time // when it was submitted
	number     uint64    // in the order of queueing

	// queued is true while it waits for a committer, and withdrawn when its
	// caller left during that time; guarded by Intake.mu.
	queued, withdrawn bool
}

// add puts p among what waits.
func (u *unit) add(p *pending) {
	u.items = append(u.items, p)
	u.size += p.size
	u.deliveries += len(p.event.WebhookIDs)
}

// pending is one event of a Submit.
type pending struct {
	event postgres.NewEvent // its ID is set when it is first taken into a batch
	size  int64
	at    time.Time // when it was submitted

	// unit is what it was submitted with, and later what it is stored with: one
	// that waited for another submission may get a try of its own. share is what
	// it is counted in. Guarded by Intake.mu until it is taken into a batch.
	unit  *unit
	share *share
	// followers have the same key, and are answered after this one; withdrawn is
	// true when the caller left before any of it was sent. Guarded by Intake.mu.
	followers []*pending
	withdrawn bool

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
				OrderingKey: item.OrderingKey,
				WebhookIDs:  item.WebhookIDs,
			},
			Key:     item.Key,
			Dropped: item.Dropped,
		},
		at:   time.Now(),
		done: make(chan struct{}),
	}
	size := overhead + len(item.Payload) + len(item.Tenant) + len(item.Type) + len(item.ContentType) + len(item.OrderingKey) + 16*len(item.WebhookIDs)
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

// enter takes what was submitted together into the buffer, all of it or nothing,
// or says why not. Events whose key is held elsewhere are answered at once. A submission whose key another one is being stored under waits for
// that one's outcome.
func (in *Intake) enter(items []*pending) error {
	size := int64(0)
	for _, p := range items {
		size += p.size
	}
	at := items[0].at
	in.mu.Lock()
	defer in.mu.Unlock()
	refused := in.refusal(at)
	s := in.shareOf(items)
	if refused == nil {
		refused = in.admit(s, len(items), size)
	}
	if refused != nil {
		in.dropShare(s)
		in.metrics.refuse(refused.reason, len(items))
		return refused.err
	}
	u := &unit{share: s, at: at, items: make([]*pending, 0, len(items))}
	for _, p := range items {
		p.unit, p.share = u, s
		in.count(p)
	}
	for _, p := range items {
		if p.event.Key != nil && at.Before(in.held[p.keyName()]) {
			in.tell(p, outcome{err: errKeyHeld(), reason: reasonConflict})
			continue
		}
		in.place(p)
	}
	in.enqueue(u)
	return nil
}

// refusal is why nothing is taken now. The caller holds mu.
func (in *Intake) refusal(now time.Time) *refused {
	switch {
	case in.stopping:
		return &refused{unavailable(messageStopping), reasonStopping}
	case now.Before(in.awayUntil):
		return &refused{unavailable(messageAway), reasonAway}
	}
	return nil
}

// place puts p behind the pending that has its key, or into its unit. The caller
// holds mu.
func (in *Intake) place(p *pending) {
	if p.event.Key != nil {
		name := p.keyName()
		if first, taken := in.keys[name]; taken {
			first.followers = append(first.followers, p)
			return
		}
		in.keys[name] = p
	}
	p.unit.add(p)
}

// enqueue has u wait for a committer, if there is anything in it. The caller
// holds mu.
func (in *Intake) enqueue(u *unit) {
	if len(u.items) == 0 {
		return
	}
	u.queued = true
	in.numbered++
	u.number = in.numbered
	in.queue.push(u)
	in.work.Signal()
}

// withdraw takes out of the buffer what no committer has and nobody else waits
// for, and marks it. What of a group waits for another submission stays.
func (in *Intake) withdraw(items []*pending) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, p := range items {
		in.withdrawUnit(p.unit)
	}
}

func (in *Intake) withdrawUnit(u *unit) {
	if !u.queued {
		return
	}
	for _, p := range u.items {
		for _, f := range p.followers {
			if f.unit != u {
				return
			}
		}
	}
	u.queued, u.withdrawn = false, true
	for _, p := range u.items {
		p.withdrawn = true
		in.releaseKey(p)
		for _, f := range p.followers {
			f.withdrawn = true
			in.release(f)
		}
		p.followers = nil
	}
	// It stays in the queue, and is counted until it comes out of it.
}

// discard stops counting a unit that was withdrawn. The caller holds mu.
func (in *Intake) discard(u *unit) {
	for _, p := range u.items {
		in.release(p)
	}
}

// waitForWork blocks until something is queued. It returns false when nothing is
// and nothing more will be.
func (in *Intake) waitForWork() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.queue.empty() && !in.stopping {
		in.work.Wait()
	}
	return !in.queue.empty()
}

// take is the next batch: of what waits, tenant by tenant, as much as fits. A
// unit is never divided. It is empty when nothing waits.
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
	for !in.queue.empty() && len(batch) < in.cfg.BatchEvents {
		u := in.queue.peek()
		if u.withdrawn {
			in.queue.drop()
			in.discard(u)
			continue
		}
		if len(batch) > 0 && (len(batch)+len(u.items) > in.cfg.BatchEvents ||
			bytes+u.size > in.cfg.BatchBytes || deliveries+u.deliveries > in.cfg.BatchDeliveries) {
			break
		}
		in.queue.pop(in.batchShare(u))
		u.queued = false
		bytes += u.size
		deliveries += u.deliveries
		for _, p := range u.items {
			// Ids of one batch sort in the order of taking, which is that of submission
			// within a tenant.
			p.event.ID = webhook.NewID(id.Add(time.Duration(len(batch)) * idStep))
			batch = append(batch, p)
			in.metrics.waitDuration.Observe(now.Sub(p.at).Seconds())
		}
	}
	if !in.queue.empty() {
		in.work.Signal() // for another committer
	}
	return batch
}

// batchShare is how much of a batch u takes: the largest of its parts of the
// three bounds.
func (in *Intake) batchShare(u *unit) float64 {
	return max(
		float64(len(u.items))/float64(in.cfg.BatchEvents),
		float64(u.size)/float64(in.cfg.BatchBytes),
		float64(u.deliveries)/float64(in.cfg.BatchDeliveries))
}

// idStep is the least distance in time that shows in the order of two ids.
const idStep = time.Millisecond/4096 + 1

// refuseQueued answers what has waited for longer than age with err.
func (in *Intake) refuseQueued(now time.Time, age time.Duration, reason string, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, u := range in.queue.popOlder(now.Add(-age)) {
		in.refuseUnit(u, reason, err)
	}
}

// refuseUnit answers a unit that has come out of the queue. The caller holds mu.
func (in *Intake) refuseUnit(u *unit, reason string, err error) {
	if u.withdrawn {
		in.discard(u)
		return
	}
	u.queued = false
	for _, p := range u.items {
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
			in.tell(f, outcome{err: ErrKeyTaken, reason: reasonMismatch})
		case f.repeats(p) || o.reason != reasonMismatch && o.reason != reasonInvalid:
			in.tell(f, o)
		default:
			// What stopped p was p's own fault: f gets a try of its own.
			f.unit = &unit{share: f.share, at: f.at}
			in.place(f)
			in.enqueue(f.unit)
		}
	}
}

// tell sets an outcome and wakes the caller. The caller holds mu.
func (in *Intake) tell(p *pending, o outcome) {
	switch {
	case o.err != nil:
		in.metrics.refuse(o.reason, 1)
	case o.receipt.Replayed:
		in.metrics.replayed.Inc()
	}
	p.receipt, p.err = o.receipt, o.err
	in.release(p)
	close(p.done)
}

// count counts p as held in memory. The caller holds mu.
func (in *Intake) count(p *pending) {
	in.events++
	in.bytes += p.size
	p.share.events++
	p.share.bytes += p.size
}

// release stops counting p. The caller holds mu.
func (in *Intake) release(p *pending) {
	in.events--
	in.bytes -= p.size
	p.share.events--
	p.share.bytes -= p.size
	in.dropShare(p.share)
}

// releaseKey lets others use the key of p. The caller holds mu.
func (in *Intake) releaseKey(p *pending) {
	if p.event.Key != nil && in.keys[p.keyName()] == p {
		delete(in.keys, p.keyName())
	}
}

func (in *Intake) wasWithdrawn(p *pending) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return p.withdrawn
}

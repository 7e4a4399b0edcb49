package fairqueue

import (
	"container/heap"
	"sync"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// ring is the lanes that have, or may have, something to fetch, in the order in
// which they will be served: a round robin in which each turn offers every lane
// an equal share of the free slots.
//
// mu guards everything below it. A lane is in the map while it is active, has
// something in flight, waits for a due time, or has missed something; nothing else of the
// hundred thousand lanes a database may hold is kept.
type ring struct {
	mu     sync.Mutex
	lanes  map[webhook.ID]*lane
	active []*lane // a queue: served from the front
	due    dueHeap // lanes to wake at a known time
	// limits is what is known of webhooks' limits. A lane whose limit is not
	// known is not fetched until it has been learned.
	limits map[webhook.ID]Limit
	// changed are the webhooks that were unlearned since limits were last asked
	// for, and allChanged says that all were: what is being read of them may be
	// what they were before.
	changed    map[webhook.ID]struct{}
	allChanged bool
	// sharers is how many dispatchers share a webhook's cap, at least 1.
	sharers int
}

// Limit is what a webhook's own settings say about fetching its lane.
type Limit struct {
	// MaxInFlight is how many requests the webhook may have under way at once,
	// over all dispatchers.
	MaxInFlight int
	// Gated says that the webhook is paused or disabled.
	Gated bool
}

// maxLimits bounds the memory that limits take; past it they are learned anew.
const maxLimits = 500_000

type lane struct {
	id       webhook.ID
	queued   bool // in ring.active
	granted  bool // a fetch that has not come back holds a grant of it
	inFlight int
	// capped says that the lane had more to give when it reached its cap, so a
	// freed slot must wake it.
	capped bool
	// gateUntil is when the gate that the receiver asked for opens; zero: none.
	gateUntil time.Time
	// missed says that the lane was woken while it was shut.
	missed bool
	dueAt  time.Time
	// dueIndex is the lane's place in ring.due, or -1.
	dueIndex int
}

// grant is one lane's part of a fetch.
type grant struct {
	lane  *lane
	limit int
}

func newRing() *ring {
	return &ring{lanes: map[webhook.ID]*lane{}, limits: map[webhook.ID]Limit{}, changed: map[webhook.ID]struct{}{}, sharers: 1}
}

// room is how many more jobs of a lane this dispatcher may have in flight: its
// equal part of the webhook's cap, and at least one, less what it has. A lane
// whose limit is not known yet has room, since it is asked for before a fetch.
func (r *ring) room(l *lane) int {
	limit, known := r.limits[l.id]
	if !known {
		return 1
	}
	return max(1, limit.MaxInFlight/r.sharers) - l.inFlight
}

// share tells the ring among how many dispatchers caps are divided.
func (r *ring) share(sharers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sharers = max(1, sharers)
}

// unknown lists the lanes among the first n of the ring whose limits must be
// learned before they can be fetched. Whoever asks reads them and calls learn.
func (r *ring) unknown(n int) []webhook.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.changed)
	r.allChanged = false
	var ids []webhook.ID
	for _, l := range r.active[:min(n, len(r.active))] {
		if _, known := r.limits[l.id]; !known {
			ids = append(ids, l.id)
		}
	}
	return ids
}

// learn takes note of limits, except of webhooks that changed while they were
// being read: those stay unknown.
func (r *ring) learn(limits map[webhook.ID]Limit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.limits)+len(limits) > maxLimits {
		clear(r.limits)
	}
	for id, limit := range limits {
		if _, changed := r.changed[id]; !changed && !r.allChanged {
			r.limits[id] = limit
		}
	}
}

// shut reports whether a lane may not be fetched, whatever its cap: its webhook
// is paused or disabled, or its receiver asked for time.
func (r *ring) shut(l *lane) bool {
	return !l.gateUntil.IsZero() || r.limits[l.id].Gated
}

// unlearn forgets a webhook's limit, so that the next fetch asks for it, and
// wakes the lane if a gate without an end held it back.
func (r *ring) unlearn(id webhook.ID) (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.limits, id)
	r.changed[id] = struct{}{}
	return r.reconsider(r.lanes[id])
}

// unlearnAll is unlearn for every webhook.
func (r *ring) unlearnAll() (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.limits)
	r.allChanged = true
	for _, l := range r.lanes {
		woken = r.reconsider(l) || woken
	}
	return woken
}

// reconsider wakes a lane that was held back by what was known of its webhook,
// which is known no more. A gate that the receiver asked for stays.
func (r *ring) reconsider(l *lane) bool {
	if l == nil || !l.capped && !l.missed {
		return false
	}
	l.capped = false
	if r.shut(l) {
		return false
	}
	l.missed = false
	return r.wakeLocked(l)
}

// wake puts a lane at the end of the ring unless it is there. It reports
// whether there is something new to fetch.
func (r *ring) wake(id webhook.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wakeLocked(r.get(id))
}

func (r *ring) get(id webhook.ID) *lane {
	l := r.lanes[id]
	if l == nil {
		l = &lane{id: id, dueIndex: -1}
		r.lanes[id] = l
	}
	return l
}

func (r *ring) wakeLocked(l *lane) bool {
	switch {
	case l.queued:
		return false
	case r.shut(l):
		l.missed = true
		return false
	case r.room(l) <= 0:
		l.capped = true
		return false
	}
	l.queued = true
	r.active = append(r.active, l)
	return true
}

// wakeAt wakes a lane when the time comes, or sooner if something else does.
func (r *ring) wakeAt(id webhook.ID, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.get(id)
	switch {
	case l.dueIndex < 0:
		l.dueAt = at
		heap.Push(&r.due, l)
	case at.Before(l.dueAt):
		l.dueAt = at
		heap.Fix(&r.due, l.dueIndex)
	}
}

// wakeDue wakes the lanes whose time has come and the ones whose gate has run
// out. It reports whether there is something new to fetch, and when to look
// again (zero: no time is known).
func (r *ring) wakeDue(now time.Time) (woken bool, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.due) > 0 {
		l := r.due[0]
		if l.dueAt.After(now) {
			return woken, l.dueAt
		}
		heap.Pop(&r.due)
		if l.gateUntil.After(now) {
			l.missed, l.dueAt = true, l.gateUntil
			heap.Push(&r.due, l)
			continue
		}
		l.gateUntil, l.missed = time.Time{}, false
		woken = r.wakeLocked(l) || woken
		r.forget(l)
	}
	return woken, time.Time{}
}

// gate keeps a lane from being fetched until the given time. It never shortens
// another gate.
func (r *ring) gate(id webhook.ID, until time.Time) {
	r.mu.Lock()
	l := r.get(id)
	stands := until.Before(l.gateUntil)
	if !stands {
		l.gateUntil, l.missed = until, true
	}
	r.mu.Unlock()
	if !stands {
		r.wakeAt(id, until)
	}
}

// take removes lanes from the front of the ring and gives each its share of the
// free slots. Lanes are out of the ring BEFORE the database is asked: a
// notification that arrives meanwhile puts its lane back, so none is lost.
func (r *ring) take(free, maxLanes int) []grant {
	r.mu.Lock()
	defer r.mu.Unlock()
	if free <= 0 || len(r.active) == 0 {
		return nil
	}
	share := max(1, free/len(r.active))
	var (
		grants []grant
		later  []*lane
		n      int
	)
	for _, l := range r.active {
		if free <= 0 || len(grants) >= maxLanes {
			break
		}
		n++
		l.queued = false
		_, known := r.limits[l.id]
		room := r.room(l)
		switch {
		case r.shut(l):
			l.missed = true
			continue
		case !known:
			later = append(later, l)
			continue
		case room <= 0:
			l.capped = true
			continue
		}
		limit := min(share, room, free)
		free -= limit
		l.granted = true
		grants = append(grants, grant{l, limit})
	}
	r.active = r.active[n:]
	if len(r.active) == 0 {
		r.active = nil // lets go of the array
	}
	for _, l := range later {
		r.wakeLocked(l)
	}
	return grants
}

// settle takes note of what a fetch brought: fetched per lane, of the grants
// that were asked for. A lane that filled its limit may have more and goes to
// the end of the ring; the others had nothing more that is due.
func (r *ring) settle(grants []grant, fetched map[webhook.ID]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range grants {
		n := fetched[g.lane.id]
		g.lane.granted = false
		g.lane.inFlight += n
		if n >= g.limit {
			r.wakeLocked(g.lane)
		}
		r.forget(g.lane)
	}
}

// putBack returns grants to the ring after a fetch that failed.
func (r *ring) putBack(grants []grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range grants {
		g.lane.granted = false
		r.wakeLocked(g.lane)
		r.forget(g.lane)
	}
}

// finish frees a slot of a lane. It reports whether the lane was at its cap with
// more to give, and so must be fetched again.
func (r *ring) finish(id webhook.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lanes[id]
	if l == nil || l.inFlight == 0 {
		return false
	}
	l.inFlight--
	woken := false
	if l.capped && r.room(l) > 0 {
		l.capped = false
		woken = r.wakeLocked(l)
	}
	r.forget(l)
	return woken
}

// forget drops a lane that holds no state.
func (r *ring) forget(l *lane) {
	if !l.queued && !l.granted && l.inFlight == 0 && !l.missed && !l.capped && l.dueIndex < 0 {
		delete(r.lanes, l.id)
	}
}

// stats counts the lanes for metrics.
func (r *ring) stats() (active, gated, inFlight int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lanes {
		if l.missed {
			gated++
		}
		inFlight += l.inFlight
	}
	return len(r.active), gated, inFlight
}

// dueHeap orders lanes by when they fall due.
type dueHeap []*lane

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].dueAt.Before(h[j].dueAt) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].dueIndex, h[j].dueIndex = i, j
}

func (h *dueHeap) Push(x any) {
	l := x.(*lane)
	l.dueIndex = len(*h)
	*h = append(*h, l)
}

func (h *dueHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.dueIndex = -1
	return l
}

package fairqueue

import (
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// ring is the lanes that have, or may have, something to fetch, in the order in
// which they will be served: a deficit round robin, in which each turn offers every
// lane a share of the free slots by its weight.
//
// mu guards everything below it. A lane is in the map while it is active, has
// something in flight, waits for a due time or for tokens, or has missed something;
// nothing else of the hundred thousand lanes a database may hold is kept.
type ring struct {
	now func() time.Time // the database's clock
	// strange is raised when there are lanes whose limits must be learned, thirst when
	// lanes need tokens, and timer when there is a new due time. All are signals.
	strange, thirst, timer chan struct{}

	mu     sync.Mutex
	lanes  map[webhook.ID]*lane
	active []*lane // a queue: served from the front
	weight int     // of the active lanes together
	// crowded says that the last fetch passed over active lanes since they had too
	// much in flight for the slots that are left.
	crowded bool
	due     dueHeap // lanes to wake at a known time
	// limits is what is known of webhooks' limits. A lane whose limit is not
	// known is not fetched until it has been learned.
	limits map[webhook.ID]Limit
	// orders are the lanes that this dispatcher owned for their order when their limits
	// were learned.
	orders map[webhook.ID]struct{}
	// strangers are the lanes whose limits must be learned.
	strangers []*lane
	// sharers is how many dispatchers share a webhook's cap, at least 1.
	sharers int
	// hosts are the target hosts of the lanes in memory, and hostCap how many
	// requests each may get at once, over all dispatchers; 0: any number.
	hosts   map[string]*host
	hostCap int
	// hostExcess is how many requests beyond their parts other dispatchers are making
	// of hosts.
	hostExcess map[string]int
	// paces are how much webhooks have shown to be able to take.
	paces map[webhook.ID]*pace
	// thirsty are the lanes that need tokens, and returns the tokens to give back.
	thirsty []*lane
	returns []postgres.TokenAsk
}

// maxRoom stands for any number of slots.
const maxRoom = 1 << 30

type lane struct {
	id       webhook.ID
	queued   bool // in ring.active
	granted  int  // slots that a fetch which has not come back may fill
	inFlight int
	weight   int // that it counts for in ring.weight while it is queued
	// deficit is how many jobs the lane may still take in its turn, and inTurn says
	// that its turn was cut short: it goes on before anybody else's.
	deficit int
	inTurn  bool
	// capped says that the lane had more to give when it reached its cap, so a
	// freed slot must wake it.
	capped bool
	// gateUntil is when the gate opens; zero: none.
	gateUntil time.Time
	// missed says that the lane was woken while it was shut.
	missed bool
	dueAt  time.Time
	// dueIndex is the lane's place in ring.due, or -1.
	dueIndex int

	strange bool // in ring.strangers, or being learned of
	changed bool // its webhook has changed since its limit was last asked for

	host       *host // nil: its limit is not known, or names none
	hostName   string
	awaitsHost bool // in host.waiting
	// former are the hosts that it pointed to before and has requests under way to,
	// oldest first.
	former []former

	// tokens may be spent until tokensUntil; they were taken at tokensAt.
	tokens                int
	tokensAt, tokensUntil time.Time
	dryUntil              time.Time // the bucket has nothing before
	thirsty               bool      // in ring.thirsty, or being asked for

	round round // of a lane ordered by key

	floor
}

// grant is one lane's part of a fetch.
type grant struct {
	lane  *lane
	host  *host // the lane's at that time
	limit int
	// from is the lower bound of scheduled_at below which the fetch need not look;
	// zero: it looks at everything.
	from time.Time
	// newest is the latest scheduled_at of what was fetched; zero: of nothing.
	newest time.Time

	// ordering is the order that the lane keeps, and epoch that of its owner's lease.
	ordering webhook.Ordering
	epoch    int64
	// after is the key that the walk of a lane ordered by key began after, last the one
	// that it looked at last, and end says that there was none behind that.
	after, last string
	end         bool
}

func newRing(now func() time.Time) *ring {
	return &ring{
		now: now, strange: make(chan struct{}, 1), thirst: make(chan struct{}, 1), timer: make(chan struct{}, 1),
		lanes: map[webhook.ID]*lane{}, limits: map[webhook.ID]Limit{}, orders: map[webhook.ID]struct{}{},
		hosts: map[string]*host{}, paces: map[webhook.ID]*pace{}, sharers: 1,
	}
}

// share is a lane's part of its cap on this dispatcher: an equal one, and at
// least one, or all of it where the lane has no other dispatcher.
func (r *ring) share(limit Limit) int {
	most := max(1, limit.MaxInFlight/r.sharers)
	switch {
	case limit.Probe:
		most = 1
	case limit.Owned:
		most = limit.MaxInFlight
	}
	if limit.MaxHere > 0 {
		most = min(most, limit.MaxHere)
	}
	return most
}

// room is how many more jobs of a lane this dispatcher may have in flight: its
// part of the cap, or less where the receiver has shown that it can take less, and
// no more than the target host may get.
func (r *ring) room(l *lane, limit Limit) int {
	most := r.share(limit)
	if p := r.paces[l.id]; p != nil {
		most = min(most, max(1, int(p.limit)))
	}
	return min(most-l.inFlight-l.granted, r.hostRoom(l))
}

// setSharers tells the ring among how many dispatchers caps are divided.
func (r *ring) setSharers(sharers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sharers = max(1, sharers)
}

// shut reports whether a lane may not be fetched, whatever its cap: its webhook
// is paused or disabled, or its gate is closed.
func (r *ring) shut(l *lane) bool {
	return !l.gateUntil.IsZero() || r.limits[l.id].Gated
}

// wake puts a lane at the end of the ring unless it is there. It reports
// whether there is something new to fetch.
func (r *ring) wake(id webhook.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.get(id)
	l.round.laps = 0
	return r.wakeLocked(l)
}

func (r *ring) get(id webhook.ID) *lane {
	l := r.lanes[id]
	if l == nil {
		l = &lane{id: id, dueIndex: -1}
		r.lanes[id] = l
		r.moveHost(l, r.limits[id].Host)
	}
	return l
}

func (r *ring) wakeLocked(l *lane) bool {
	if l.queued || l.thirsty || l.strange {
		return false
	}
	if r.shut(l) {
		l.missed = true
		return false
	}
	now := r.now()
	limit, known := r.limitOf(l.id, now)
	switch {
	case !known:
		l.strange = true
		r.strangers = append(r.strangers, l)
		signal(r.strange)
		return false
	case r.room(l, limit) <= 0:
		l.capped = true
		r.awaitHost(l)
		return false
	case limit.RatePerSecond > 0 && l.usable(now) == 0:
		r.needToken(l, now)
		return false
	}
	l.queued = true
	l.weight = max(1, limit.Weight)
	r.weight += l.weight
	if l.inTurn {
		r.active = slices.Insert(r.active, 0, l)
	} else {
		r.active = append(r.active, l)
	}
	return true
}

// wakeAt wakes a lane when the time comes, or sooner if something else does.
func (r *ring) wakeAt(id webhook.ID, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakeAtLocked(r.get(id), at)
}

func (r *ring) wakeAtLocked(l *lane, at time.Time) {
	switch {
	case l.dueIndex < 0:
		l.dueAt = at
		heap.Push(&r.due, l)
	case at.Before(l.dueAt):
		l.dueAt = at
		heap.Fix(&r.due, l.dueIndex)
	}
	if r.due[0] == l {
		signal(r.timer) // it is the next
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
		if !l.gateUntil.IsZero() {
			// What comes after the gate, such as a single probe, must be asked for.
			l.gateUntil = time.Time{}
			delete(r.limits, l.id)
		}
		l.missed, l.round.laps = false, 0
		woken = r.wakeLocked(l) || woken
		r.forget(l)
	}
	return woken, time.Time{}
}

// gate keeps a lane from being fetched until the given time. It never shortens
// another gate.
func (r *ring) gate(id webhook.ID, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gateLocked(r.get(id), until)
}

// gateClosed is gate for one that closed elsewhere, or as others see it. A lane that has
// nothing waiting is not taken into memory for it: it will be asked about.
func (r *ring) gateClosed(id webhook.ID, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lanes[id]
	if l == nil {
		delete(r.limits, id)
		return
	}
	r.gateLocked(l, until)
}

func (r *ring) gateLocked(l *lane, until time.Time) {
	if until.Before(l.gateUntil) {
		return
	}
	l.gateUntil, l.missed = until, true
	r.wakeAtLocked(l, until)
}

// take removes lanes from the front of the ring and gives each its share of the
// free slots, of which not all may be filled now. Lanes are out of the ring BEFORE
// the database is asked: a notification that arrives meanwhile puts its lane back,
// so none is lost.
//
// No lane gets more in flight than twice the slots that are left after that, times
// its weight. So one alone can fill two thirds of them, and n lanes whose receivers
// hang, whatever their caps, leave one part in 2n+1 to those that have nothing in
// flight.
func (r *ring) take(free, slots, maxLanes int) []grant {
	r.mu.Lock()
	defer r.mu.Unlock()
	if free <= 0 || len(r.active) == 0 {
		return nil
	}
	var (
		now     = r.now()
		quantum = max(1, free/max(1, r.weight))
		grants  []grant
		later   []*lane
		n       int
	)
	r.crowded = false
	for _, l := range r.active {
		if free <= 0 || len(grants) >= maxLanes {
			break
		}
		n++
		r.dequeued(l)
		if r.shut(l) {
			l.missed = true
			continue
		}
		limit, known := r.limitOf(l.id, now)
		if !known {
			later = append(later, l)
			continue
		}
		room := r.room(l, limit)
		if room <= 0 {
			l.capped = true
			r.awaitHost(l)
			continue
		}
		if limit.RatePerSecond > 0 {
			tokens := l.usable(now)
			if tokens == 0 {
				r.needToken(l, now)
				continue
			}
			room = min(room, tokens)
		}
		part := slotsFor(l.inFlight+l.granted, slots, limit.Weight)
		if part <= 0 {
			later = append(later, l)
			r.crowded = true
			continue
		}
		room = min(room, part)
		if !l.inTurn {
			l.deficit += quantum * max(1, limit.Weight)
		}
		l.inTurn = false
		offer := min(l.deficit, room, free)
		free -= offer
		slots -= offer
		l.granted += offer
		l.deficit -= offer
		if l.deficit > 0 && free <= 0 && offer < room {
			l.inTurn = true // the slots ended before its turn did
		} else {
			l.deficit = 0
		}
		if l.host != nil {
			l.host.granted += offer
		}
		g := grant{lane: l, host: l.host, limit: offer, ordering: webhook.OrderingNone}
		if limit.Ordering.Ordered() {
			g.ordering, g.epoch, g.after = limit.Ordering, limit.Epoch, l.round.after
		} else {
			g.from = l.from(now)
		}
		grants = append(grants, g)
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

// dequeued takes note that a lane is not in the ring any more.
func (r *ring) dequeued(l *lane) {
	l.queued = false
	r.weight -= l.weight
}

// slotsFor is how many of the slots that are left a lane of this weight may fill that
// has so many in flight: as long as it does not have more than twice its weight times
// what is left then, and the last one if it has no more than that. It is pure.
func slotsFor(inFlight, left, weight int) int {
	most := 2 * max(1, weight)
	return max(0, (most*left-inFlight+most)/(most+1))
}

// ungrant ends a grant that brought n jobs.
func (r *ring) ungrant(g grant, n int) {
	g.lane.granted -= g.limit
	g.lane.inFlight += n
	if g.host != nil {
		g.host.granted -= g.limit
		g.host.inFlight += n
	}
	r.arrive(g, n)
}

// settle takes note of what a fetch brought: fetched per lane, of the grants
// that were asked for. A lane that filled its limit may have more and goes to
// the end of the ring; the others had nothing more that is due.
func (r *ring) settle(grants []grant, fetched map[webhook.ID]int) (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	hosts := make([]*host, 0, len(grants))
	for _, g := range grants {
		l, n := g.lane, fetched[g.lane.id]
		hosts = append(hosts, g.host)
		r.ungrant(g, n)
		l.tokens = max(0, l.tokens-n)
		again := l.looked(g, n, now)
		more := g.ordering == webhook.OrderingKey && l.round.walked(g.after, g.last, g.end)
		switch {
		case n >= g.limit || more:
			r.wakeLocked(l)
		default:
			l.inTurn, l.deficit = false, 0
			r.giveBack(l, r.limits[l.id], now)
			if !again.IsZero() {
				r.wakeAtLocked(l, again)
			}
			woken = r.uncap(l) || woken // it was woken while the grant took its room
		}
		r.forget(l)
	}
	// What was granted and not used of a host is free for others.
	for _, h := range hosts {
		woken = r.freeHost(h) || woken
	}
	return woken
}

// putBack returns grants to the ring after a fetch that failed.
func (r *ring) putBack(grants []grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	hosts := make([]*host, len(grants))
	for i, g := range grants {
		hosts[i] = g.host
		r.ungrant(g, 0)
		r.uncap(g.lane)
		r.wakeLocked(g.lane)
		r.forget(g.lane)
	}
	for _, h := range hosts {
		r.freeHost(h)
	}
}

// finish frees a slot of a lane. It reports whether there may be a lane that was
// held back by what is free now.
func (r *ring) finish(id webhook.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lanes[id]
	if l == nil || l.inFlight == 0 {
		return false
	}
	l.inFlight--
	h := r.depart(l)
	woken := r.uncap(l)
	if !l.capped && r.limits[id].Ordering.Ordered() {
		// What waited for the one that is done can be fetched.
		l.round.laps = 0
		woken = r.wakeLocked(l) || woken
	}
	woken = r.freeHost(h) || woken
	r.forget(l)
	return woken || r.crowded
}

// uncap wakes a lane that was at its cap, if there is room now. One that waits for
// its host has others before it.
func (r *ring) uncap(l *lane) bool {
	if !l.capped || l.awaitsHost || r.room(l, r.limits[l.id]) <= 0 {
		return false
	}
	l.capped = false
	return r.wakeLocked(l)
}

// observe takes note of how an attempt of a webhook went.
func (r *ring) observe(id webhook.ID, started, ended time.Time, s Signal) {
	if s == SignalNone {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	limit, known := r.limits[id]
	if !known {
		return
	}
	p := r.paces[id]
	most := r.share(limit)
	if p == nil {
		p = &pace{limit: float64(most)}
		r.paces[id] = p
	}
	inFlight := 0
	if l := r.lanes[id]; l != nil {
		inFlight = l.inFlight
	}
	p.observe(started, ended, s, inFlight, most)
}

// sweep forgets what has been of no use lately.
func (r *ring) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for id, p := range r.paces {
		if p.idle(now) {
			delete(r.paces, id)
		}
	}
}

// forget drops a lane that holds no state.
func (r *ring) forget(l *lane) {
	if !l.queued && !l.thirsty && !l.strange && l.granted == 0 && l.inFlight == 0 && !l.missed && !l.capped && l.dueIndex < 0 && !l.awaitsHost {
		r.leaveHost(l)
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
	return len(r.active) + len(r.strangers), gated, inFlight
}

// slowed counts the lanes whose pace is below what their caps would allow here.
func (r *ring) slowed() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.paces {
		if limit, known := r.limits[id]; known && int(p.limit) < r.share(limit) {
			n++
		}
	}
	return n
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

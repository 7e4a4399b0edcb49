package fairqueue

import "slices"

// host is what the webhooks that point to one target host share.
type host struct {
	name     string
	inFlight int // requests under way
	granted  int // slots that a fetch under way may fill
	// waiting are the lanes that had more to give when the host was at its limit.
	waiting []*lane
	lanes   int // lanes in memory that point to it, or have something under way there
}

// former is a host that a lane pointed to before, and what it has under way there.
type former struct {
	host              *host // nil: none, which counts nothing
	name              string
	inFlight, granted int
}

// moveHost lets a lane count for its host from now on. What it has under way stays with
// the host that it goes to.
func (r *ring) moveHost(l *lane, name string) {
	if l.hostName == name {
		return
	}
	r.leaveHost(l)
	if name != "" {
		h := r.hosts[name]
		if h == nil {
			h = &host{name: name}
			r.hosts[name] = h
		}
		h.lanes++
		l.host, l.hostName = h, name
	}
	// What it has under way to a host that it comes back to is the present one's again.
	l.former = slices.DeleteFunc(l.former, func(f former) bool {
		if f.host != l.host {
			return false
		}
		r.dropHost(f)
		return true
	})
}

// leaveHost ends what a lane has to do with its host, but for what it has under way
// there.
func (r *ring) leaveHost(l *lane) {
	if l.awaitsHost {
		l.awaitsHost = false
		l.host.waiting = slices.DeleteFunc(l.host.waiting, func(w *lane) bool { return w == l })
	}
	left := former{host: l.host, name: l.hostName, inFlight: l.inFlight, granted: l.granted}
	for _, f := range l.former {
		left.inFlight -= f.inFlight
		left.granted -= f.granted
	}
	l.host, l.hostName = nil, ""
	if left.inFlight > 0 || left.granted > 0 {
		l.former = append(l.former, left)
		return
	}
	r.dropHost(left)
}

// dropHost forgets a host that no lane has to do with any more.
func (r *ring) dropHost(f former) {
	if f.host == nil {
		return
	}
	f.host.lanes--
	if f.host.lanes == 0 {
		delete(r.hosts, f.name)
	}
}

// arrive takes note for a lane that has moved to another host of a grant from before,
// which has ended and brought n jobs.
func (r *ring) arrive(g grant, n int) {
	l := g.lane
	if g.host == l.host {
		return
	}
	for i := range l.former {
		if l.former[i].host == g.host && l.former[i].granted >= g.limit {
			l.former[i].granted -= g.limit
			l.former[i].inFlight += n
			break
		}
	}
	r.dropFormer(l)
}

// depart takes note of the end of one of a lane's requests, and returns the host that
// has room for another. Of several hosts it is taken for the one that the lane left
// first, so that none gets more than it may but one that was left.
func (r *ring) depart(l *lane) *host {
	h := l.host
	for i := range l.former {
		if l.former[i].inFlight > 0 {
			l.former[i].inFlight--
			h = l.former[i].host
			break
		}
	}
	if h != nil {
		h.inFlight--
	}
	r.dropFormer(l)
	return h
}

// dropFormer forgets the hosts that a lane has nothing more under way to.
func (r *ring) dropFormer(l *lane) {
	l.former = slices.DeleteFunc(l.former, func(f former) bool {
		if f.inFlight > 0 || f.granted > 0 {
			return false
		}
		r.dropHost(f)
		return true
	})
}

// hostLeft is how many more requests a host may get from here: an equal part of its
// limit, or what is left of that beside others who have more than theirs.
func (r *ring) hostLeft(h *host) int {
	return hostShare(r.hostCap, r.sharers, r.hostExcess[h.name]) - h.inFlight - h.granted
}

// hostRoom is how many more requests a lane may send to its host from here: as of the
// slots of a fetch, no more than twice what is left after that, times its weight. So
// one whose requests hang leaves room for others that share the host.
func (r *ring) hostRoom(l *lane) int {
	if l.host == nil || r.hostCap == 0 {
		return maxRoom
	}
	here := l.inFlight + l.granted
	for _, f := range l.former {
		here -= f.inFlight + f.granted
	}
	return slotsFor(here, r.hostLeft(l.host), r.limits[l.id].Weight)
}

// hostShare is how many of cap requests at once a dispatcher may make, of so many that
// share them, when the others have so many more than their parts. It is pure.
func hostShare(cap, sharers, excess int) int {
	part := max(1, cap/sharers)
	if excess == 0 {
		return part
	}
	return max(0, min(part, cap-(sharers-1)*part-excess))
}

// ShareHosts tells the queue how many requests beyond their parts other dispatchers are
// making of hosts, by the name in Limit.Host: those are left to them. A host that is not
// named gets its part from here.
func (q *Queue) ShareHosts(excess map[string]int) {
	if q.ring.setHostExcess(excess) {
		signal(q.kick)
	}
}

func (r *ring) setHostExcess(excess map[string]int) (woken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hostExcess = excess
	for _, h := range r.hosts {
		woken = r.freeHost(h) || woken
	}
	return woken
}

// awaitHost remembers a lane that its host's limit holds back.
func (r *ring) awaitHost(l *lane) {
	if l.host != nil && !l.awaitsHost && r.hostRoom(l) <= 0 {
		l.awaitsHost = true
		l.host.waiting = append(l.host.waiting, l)
	}
}

// freeHost wakes the lanes, the one that waited longest first, for which a host
// has room again.
func (r *ring) freeHost(h *host) (woken bool) {
	if h == nil {
		return false
	}
	// Each that goes into the ring will take at least one slot.
	for i, n := 0, 0; i < len(h.waiting) && r.hostLeft(h) > n; {
		l := h.waiting[i]
		if r.hostRoom(l) <= 0 {
			i++ // it has its part
			continue
		}
		if i == 0 {
			h.waiting = h.waiting[1:]
		} else {
			h.waiting = slices.Delete(h.waiting, i, i+1)
		}
		l.awaitsHost = false
		if l.capped {
			l.capped = false
			woken = r.wakeLocked(l) || woken
		}
		if l.queued {
			n++
		}
		r.forget(l)
	}
	if len(h.waiting) == 0 {
		h.waiting = nil
	}
	return woken
}

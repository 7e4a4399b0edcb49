package fairqueue

import "slices"

// host is what the webhooks that point to one target host share.
type host struct {
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
			h = &host{}
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

// hostRoom is how many more requests a lane's host may get from here.
func (r *ring) hostRoom(l *lane) int {
	if l.host == nil || r.hostCap == 0 {
		return maxRoom
	}
	return max(1, r.hostCap/r.sharers) - l.host.inFlight - l.host.granted
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
	for n := 0; len(h.waiting) > 0; {
		l := h.waiting[0]
		// Each that went into the ring will take at least one slot.
		if r.hostRoom(l) <= n {
			break
		}
		h.waiting = h.waiting[1:]
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

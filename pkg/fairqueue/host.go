package fairqueue

import "slices"

// host is what the webhooks that point to one target host share.
type host struct {
	inFlight int // requests under way
	granted  int // slots that a fetch under way may fill
	// waiting are the lanes that had more to give when the host was at its limit.
	waiting []*lane
	lanes   int // lanes in memory that point to it
}

// moveHost lets a lane count for its host. One with requests under way stays with
// the host that they go to.
func (r *ring) moveHost(l *lane, name string) {
	if l.hostName == name || l.inFlight > 0 || l.granted > 0 {
		return
	}
	r.leaveHost(l)
	if name == "" {
		return
	}
	h := r.hosts[name]
	if h == nil {
		h = &host{}
		r.hosts[name] = h
	}
	h.lanes++
	l.host, l.hostName = h, name
}

// leaveHost ends what a lane has to do with its host.
func (r *ring) leaveHost(l *lane) {
	if l.host == nil {
		return
	}
	if l.awaitsHost {
		l.awaitsHost = false
		l.host.waiting = slices.DeleteFunc(l.host.waiting, func(w *lane) bool { return w == l })
	}
	l.host.lanes--
	if l.host.lanes == 0 {
		delete(r.hosts, l.hostName)
	}
	l.host, l.hostName = nil, ""
}

// hostRoom is how many more requests a lane's host may get from here: an equal part of
// its limit, or what is left of that beside others who have more than theirs.
func (r *ring) hostRoom(l *lane) int {
	if l.host == nil || r.hostCap == 0 {
		return maxRoom
	}
	return hostShare(r.hostCap, r.sharers, r.hostExcess[l.hostName]) - l.host.inFlight - l.host.granted
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

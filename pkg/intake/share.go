package intake

// shareFloor is the part of the buffer that every tenant may hold, however many
// others there are.
const shareFloor = 64 // one of so many parts

// share is a tenant's part of the buffer and its place in the queue. All of it
// is guarded by Intake.mu.
type share struct {
	tenant string
	// events and bytes count what the tenant submitted and has no answer for.
	events int
	bytes  int64

	units fifo // that wait for a committer, oldest first
	// turn is where the queue has it, -1 while units is empty. start is when its
	// first unit may be taken, and finish when its next one may, in the queue's
	// time.
	turn          int
	start, finish float64
}

// mixed stands for the tenant of all groups whose events belong to several: such
// a group is stored together, so it cannot take turns with itself. No tenant has
// this name.
const mixed = ""

// shareOf is the share of the tenant of what was submitted together. The caller
// holds mu, and calls dropShare if it puts nothing in.
func (in *Intake) shareOf(items []*pending) *share {
	tenant := items[0].event.Tenant
	for _, p := range items[1:] {
		if p.event.Tenant != tenant {
			tenant = mixed
			break
		}
	}
	s, known := in.shares[tenant]
	if !known {
		s = &share{tenant: tenant, turn: -1, finish: in.queue.debt(tenant)}
		in.shares[tenant] = s
	}
	return s
}

// dropShare forgets a share that holds nothing. The caller holds mu.
func (in *Intake) dropShare(s *share) {
	if s.events > 0 || in.shares[s.tenant] != s {
		return
	}
	delete(in.shares, s.tenant)
	in.queue.remember(s.tenant, s.finish)
}

// admit makes sure that the buffer has room for so many more events and bytes of
// a tenant, or says why not. The caller holds mu.
//
// While less than half of the buffer is in use everybody may use it. Above that,
// a tenant that holds something already may hold at most its share: one of as
// many equal parts as there are tenants. A buffer that one tenant filled before
// others came makes room for them by refusing what that tenant submitted last.
func (in *Intake) admit(s *share, events int, bytes int64) *refused {
	pressed := 2*(in.events+events) > in.cfg.BufferEvents || 2*(in.bytes+bytes) > in.cfg.BufferBytes
	if pressed && len(in.shares) > 1 && s.events > 0 && in.exceeds(s, events, bytes) {
		return &refused{unavailable(messageShare), reasonShare}
	}
	if !in.fits(events, bytes) && !in.makeRoom(s, events, bytes) {
		return &refused{unavailable(messageFull), reasonFull}
	}
	return nil
}

// exceeds reports whether a tenant would hold more than its share. The caller
// holds mu.
func (in *Intake) exceeds(s *share, events int, bytes int64) bool {
	parts := min(len(in.shares), shareFloor)
	return s.events+events > max(1, in.cfg.BufferEvents/parts) || s.bytes+bytes > in.cfg.BufferBytes/int64(parts)
}

// fits reports whether the buffer has room. What is larger than the buffer fits
// when there is nothing else. The caller holds mu.
func (in *Intake) fits(events int, bytes int64) bool {
	return in.events == 0 || in.events+events <= in.cfg.BufferEvents && in.bytes+bytes <= in.cfg.BufferBytes
}

// part is how much of the buffer so many events and bytes are.
func (in *Intake) part(events int, bytes int64) float64 {
	return max(float64(events)/float64(in.cfg.BufferEvents), float64(bytes)/float64(in.cfg.BufferBytes))
}

// makeRoom refuses what others submitted last, until there is room, as long as
// each of them still holds at least what s will hold. It reports whether there
// is room then; if not, nobody was refused. The caller holds mu.
func (in *Intake) makeRoom(s *share, events int, bytes int64) bool {
	after := in.part(s.events+events, s.bytes+bytes)
	// What the units that go leave of their tenants' shares, and free in all.
	type left struct {
		events int
		bytes  int64
	}
	var (
		gone       []*unit
		touched    = map[*share]left{}
		freed      left
		fits       = func() bool { return in.fits(events-freed.events, bytes-freed.bytes) }
		without    = func(v left, u *unit) left { return left{v.events - len(u.items), v.bytes - u.size} }
		expendable = func(v *share, l left) bool {
			if v == s || v.units.len() == 0 {
				return false
			}
			l = without(l, v.units.last())
			return in.part(l.events, l.bytes) >= after
		}
	)
	for !fits() {
		var victim *share
		most := 0.0
		for _, v := range in.queue.turns {
			_, before := touched[v] // nothing more can go
			if part := in.part(v.events, v.bytes); !before && part > most && expendable(v, left{v.events, v.bytes}) {
				victim, most = v, part
			}
		}
		if victim == nil {
			break
		}
		l := left{victim.events, victim.bytes}
		for !fits() && expendable(victim, l) {
			u := victim.units.popLast()
			l = without(l, u)
			freed.events += len(u.items)
			freed.bytes += u.size
			gone = append(gone, u)
		}
		touched[victim] = l
	}
	enough := fits()
	for i := len(gone) - 1; i >= 0 && !enough; i-- {
		gone[i].share.units.push(gone[i])
	}
	in.queue.tidy()
	if enough {
		for _, u := range gone {
			in.refuseUnit(u, reasonShare, unavailable(messageShare))
		}
	}
	return enough
}

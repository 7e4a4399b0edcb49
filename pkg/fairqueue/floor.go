package fairqueue

import "time"

const (
	// busyLane is how many jobs a lane must have given since it was last looked at
	// as a whole for the next fetch to begin where the last one ended.
	busyLane = 100
	// wholeLook is how long a lane may go without being looked at as a whole.
	wholeLook = time.Second
	// floorMargin is how much before the newest job of the last fetch the next one
	// begins: transactions commit in another order than they began.
	floorMargin = 500 * time.Millisecond
)

// floor is where a fetch of a busy lane begins. The index entries of jobs that are
// done stay at the lane's head until they are vacuumed, which an old snapshot held
// open anywhere in the database server prevents; a fetch that begins at the head
// walks over all of them each time.
//
// It is a hint only. What is due below it, a retry or the job of a transaction that
// took long to commit, is found when the lane is next looked at as a whole, which
// is once a second.
type floor struct {
	at      time.Time // zero: there is none
	wholeAt time.Time // when the lane was last looked at as a whole
	taken   int       // since then
}

// from is where a fetch that begins now should: zero for the head. A look that is yet
// to come is from before the clock was set back, and so is the floor.
func (f *floor) from(now time.Time) time.Time {
	if since := now.Sub(f.wholeAt); f.taken < busyLane || since >= wholeLook || since < 0 {
		return time.Time{}
	}
	return f.at
}

// looked takes note of a fetch that brought n jobs. Where that did not look at
// all of the lane, and has emptied what it saw, it returns when to look again.
func (f *floor) looked(g grant, n int, now time.Time) (again time.Time) {
	if g.from.IsZero() {
		f.wholeAt, f.taken = now, 0
	}
	f.taken += n
	if !g.newest.IsZero() {
		f.at = g.newest.Add(-floorMargin)
	}
	if g.from.IsZero() || n >= g.limit {
		return time.Time{}
	}
	return f.wholeAt.Add(wholeLook)
}

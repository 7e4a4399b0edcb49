package intake

import (
	"container/heap"
	"maps"
	"time"
)

// maxDebts is how many tenants without a waiting event are remembered as having
// been ahead of their turn.
const maxDebts = 1024

// fairQueue is the order in which units are taken: of each tenant's in the order
// of submission, and among tenants so that each gets the same part of the
// batches while it has something waiting. A tenant that submits more, or larger,
// waits longer for its own.
//
// It is start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996): time passes
// as batches are filled, a unit may start when the tenant's one before has taken
// its part, and the one that may start first is next. Guarded by Intake.mu.
type fairQueue struct {
	turns []*share // those with units; a heap by start and age of the first unit
	// now is the start of the unit taken last, and latest the last finish of any.
	now, latest float64
	// debts are the finishes that lie ahead of now, of tenants that hold nothing.
	debts map[string]float64
}

func (q *fairQueue) empty() bool { return len(q.turns) == 0 }

// peek is the next unit. The queue must not be empty.
func (q *fairQueue) peek() *unit { return q.turns[0].units.peek() }

// push adds a unit behind those of its tenant.
func (q *fairQueue) push(u *unit) {
	s := u.share
	s.units.push(u)
	if s.turn < 0 {
		s.start = max(q.now, s.finish)
		heap.Push(q, s)
	}
}

// pop takes out the next unit, which costs so much of a batch.
func (q *fairQueue) pop(cost float64) {
	s := q.turns[0]
	q.now = s.start
	s.finish = s.start + cost
	q.latest = max(q.latest, s.finish)
	s.start = s.finish
	q.drop()
}

// drop takes out the next unit at no cost.
func (q *fairQueue) drop() {
	s := q.turns[0]
	s.units.pop()
	if s.units.len() > 0 {
		heap.Fix(q, 0)
	} else {
		heap.Pop(q)
	}
	q.rest()
}

// rest ends a busy period: nobody waits, so nobody is ahead of anybody.
func (q *fairQueue) rest() {
	if q.empty() {
		q.now = q.latest
		clear(q.debts)
	}
}

// popOlder takes out all units submitted at that moment or before.
func (q *fairQueue) popOlder(than time.Time) []*unit {
	var old []*unit
	for _, s := range q.turns {
		for s.units.len() > 0 && !s.units.peek().at.After(than) {
			old = append(old, s.units.pop())
		}
	}
	q.tidy()
	return old
}

// tidy restores the order after units were taken out of shares.
func (q *fairQueue) tidy() {
	waiting := q.turns[:0]
	for _, s := range q.turns {
		s.turn = -1
		if s.units.len() > 0 {
			s.turn = len(waiting)
			waiting = append(waiting, s)
		}
	}
	clear(q.turns[len(waiting):])
	q.turns = waiting
	heap.Init(q)
	q.rest()
}

// remember keeps when a tenant that holds nothing now may start again.
func (q *fairQueue) remember(tenant string, finish float64) {
	if finish <= q.now || q.empty() {
		return
	}
	if len(q.debts) >= maxDebts {
		maps.DeleteFunc(q.debts, func(_ string, at float64) bool { return at <= q.now })
	}
	if len(q.debts) >= maxDebts {
		clear(q.debts) // so many tenants that come and go share well enough
	}
	q.debts[tenant] = finish
}

// debt is what remember kept, which it then forgets.
func (q *fairQueue) debt(tenant string) float64 {
	finish := q.debts[tenant]
	delete(q.debts, tenant)
	return finish
}

// Len, Less, Swap, Push and Pop are for package heap.
func (q *fairQueue) Len() int { return len(q.turns) }

func (q *fairQueue) Less(i, j int) bool {
	a, b := q.turns[i], q.turns[j]
	if a.start != b.start {
		return a.start < b.start
	}
	return a.units.peek().number < b.units.peek().number
}

func (q *fairQueue) Swap(i, j int) {
	q.turns[i], q.turns[j] = q.turns[j], q.turns[i]
	q.turns[i].turn, q.turns[j].turn = i, j
}

func (q *fairQueue) Push(s any) {
	s.(*share).turn = len(q.turns)
	q.turns = append(q.turns, s.(*share))
}

func (q *fairQueue) Pop() any {
	last := len(q.turns) - 1
	s := q.turns[last]
	q.turns[last] = nil
	q.turns = q.turns[:last]
	s.turn = -1
	return s
}

// fifo is a queue whose memory is bounded by about twice what it holds.
type fifo struct {
	units []*unit
	head  int
}

func (q *fifo) len() int     { return len(q.units) - q.head }
func (q *fifo) peek() *unit  { return q.units[q.head] }
func (q *fifo) last() *unit  { return q.units[len(q.units)-1] }
func (q *fifo) push(u *unit) { q.units = append(q.units, u) }

func (q *fifo) pop() *unit {
	u := q.units[q.head]
	q.units[q.head] = nil
	q.head++
	switch {
	case q.head == len(q.units):
		q.units, q.head = q.units[:0], 0
	case q.head > 1024 && 2*q.head > len(q.units):
		n := copy(q.units, q.units[q.head:])
		clear(q.units[n:])
		q.units, q.head = q.units[:n], 0
	}
	return u
}

// popLast takes back what was pushed last.
func (q *fifo) popLast() *unit {
	last := len(q.units) - 1
	u := q.units[last]
	q.units[last] = nil
	q.units = q.units[:last]
	if q.head == len(q.units) {
		q.units, q.head = q.units[:0], 0
	}
	return u
}

package receiver

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// Claim is what a [Dedup] says of a message that is about to be handled.
type Claim int

// The outcomes of a claim.
const (
	// Claimed: nobody else has it, and it was not handled yet. Now it is the
	// caller's, until Commit, Release or the end of the lease.
	Claimed Claim = iota + 1
	// InProgress: another request is being handled for it right now.
	InProgress
	// Handled: it was handled before.
	Handled
)

// Dedup remembers which messages are being handled and which were. A store that all
// copies of a receiver share protects all of them. Its methods are called by several
// goroutines at a time, with contexts that end in time.
//
// A message is claimed, handled, and then committed, or released if handling failed,
// so that a failure is not taken for a success when the sender comes again. A claim
// that nobody ends, since its process died, ends with its lease. The token tells
// claims of the same message apart: a claim that has run out cannot end the one that
// came after it.
type Dedup interface {
	// Claim takes key for at most lease, unless somebody has it or it was handled.
	// Of several calls at the same time one at most gets Claimed.
	Claim(ctx context.Context, key, token string, lease time.Duration) (Claim, error)
	// Commit writes down that key was handled, and keeps that for the given time. It
	// does so even if the claim has run out meanwhile: handled is handled.
	Commit(ctx context.Context, key, token string, keep time.Duration) error
	// Release gives key back, if token still has it. Otherwise it does nothing.
	Release(ctx context.Context, key, token string) error
}

// ErrFull is Memory's answer where all that it can remember is being handled.
var ErrFull = errors.New("receiver: too many messages are being handled")

// Memory is a Dedup in this process's memory, for receivers of one process. What it
// knows ends with the process.
//
// It holds a fixed number of messages, of about 200 bytes each. When it is full, the
// one that was handled longest ago makes room, so a message can be replayed if that
// many others came within the tolerance: 100,000 are enough for 160 messages a second
// over twice the default tolerance.
type Memory struct {
	max int

	mu      sync.Mutex
	entries map[string]*list.Element // of entry, by key; guarded by mu
	// handled and claimed hold all entries, the oldest first; guarded by mu. Those
	// at the front need not be the first to expire: expiry is checked at each use.
	handled, claimed list.List
}

type entry struct {
	key     string
	token   string // of the claim
	handled bool   // the claim was committed
	expires time.Time
}

// NewMemory makes a Memory for at most size messages, and at least one.
func NewMemory(size int) *Memory {
	return &Memory{max: max(size, 1), entries: map[string]*list.Element{}}
}

// Claim implements Dedup. It fails with ErrFull where everything it can hold is
// claimed.
func (m *Memory) Claim(_ context.Context, key, token string, lease time.Duration) (Claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if element, known := m.entries[key]; known {
		e := element.Value.(*entry)
		switch {
		case !e.expires.After(now):
			m.remove(element)
		case e.handled:
			return Handled, nil
		default:
			return InProgress, nil
		}
	}
	if !m.makeRoom(now) {
		return 0, ErrFull
	}
	m.entries[key] = m.claimed.PushBack(&entry{key: key, token: token, expires: now.Add(lease)})
	return Claimed, nil
}

// Commit implements Dedup. It does not fail.
func (m *Memory) Commit(_ context.Context, key, _ string, keep time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if element, known := m.entries[key]; known {
		m.remove(element)
	}
	now := time.Now()
	if m.makeRoom(now) { // always, unless its claim ran out and others filled the place
		m.entries[key] = m.handled.PushBack(&entry{key: key, handled: true, expires: now.Add(keep)})
	}
	return nil
}

// Release implements Dedup. It does not fail.
func (m *Memory) Release(_ context.Context, key, token string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if element, known := m.entries[key]; known {
		if e := element.Value.(*entry); !e.handled && e.token == token {
			m.remove(element)
		}
	}
	return nil
}

// makeRoom removes what has expired at the fronts, and then, if there is no room yet,
// what was handled longest ago. Needs mu.
func (m *Memory) makeRoom(now time.Time) bool {
	for _, entries := range []*list.List{&m.handled, &m.claimed} {
		for front := entries.Front(); front != nil && !front.Value.(*entry).expires.After(now); front = entries.Front() {
			m.remove(front)
		}
	}
	if front := m.handled.Front(); front != nil && len(m.entries) >= m.max {
		m.remove(front)
	}
	return len(m.entries) < m.max
}

// remove forgets an entry. Needs mu.
func (m *Memory) remove(element *list.Element) {
	e := element.Value.(*entry)
	delete(m.entries, e.key)
	if e.handled {
		m.handled.Remove(element)
	} else {
		m.claimed.Remove(element)
	}
}

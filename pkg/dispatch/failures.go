package dispatch

import (
	"sync"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// noteEvery is how often it is noted that a webhook fails, and how often that it
	// works although it failed lately. What is not noted makes the time of nothing but
	// failure wrong by that much.
	noteEvery = 10 * time.Second
	// failureMemory is how long a webhook of which nothing new is heard is remembered as
	// one that failed, before its row is asked for again.
	failureMemory = 20 * time.Minute
	// forgetEvery is how often to look for those.
	forgetEvery = time.Minute
)

// failures decides what to note in the database of how webhooks fail. A webhook that
// works costs a look into a map. One that failed has a row, which all dispatchers hear
// of (learn), since each must say if it has a success: nothing but failure is a thing
// that no dispatcher knows by itself.
type failures struct {
	every time.Duration // noteEvery, unless a webhook may fail for no longer than a few of those

	mu        sync.Mutex
	known     map[webhook.ID]*failure // guarded by mu
	forgotten time.Time               // when it was last looked for webhooks to forget; guarded by mu
}

// failure is what is known of a webhook that failed.
type failure struct {
	failed    postgres.FailureChange // what is not noted yet; no attempts: nothing
	failureAt time.Time              // when a failure was last noted from here
	successAt time.Time              // when a success was
	heardAt   time.Time              // when its row was last read or written
}

func newFailures(policy webhook.FailurePolicy) *failures {
	every := noteEvery
	for _, d := range []time.Duration{policy.WarnAfter, policy.DisableAfter} {
		if d > 0 {
			every = min(every, d/20)
		}
	}
	return &failures{every: every, known: map[webhook.ID]*failure{}}
}

// countsAsFailure reports whether an attempt with this reason says that the webhook
// fails: not where the trouble is ours.
func countsAsFailure(r webhook.Reason) bool {
	switch r {
	case webhook.ReasonDelivered, webhook.ReasonProxy, webhook.ReasonInternalError:
		return false
	}
	return true
}

// learn takes note of whether a webhook has a row, as it was read just now.
func (f *failures) learn(id webhook.ID, unwell bool, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known[id]
	switch {
	case unwell && known == nil:
		f.known[id] = &failure{heardAt: now}
	case unwell:
		known.heardAt = now
	case known != nil && known.failed.Attempts == 0 && now.Sub(known.failureAt) > f.every:
		delete(f.known, id) // its row is swept
	}
}

// observe takes in how an attempt ended that was started and ended at these times, and
// returns what to note with it; nil: nothing.
func (f *failures) observe(id webhook.ID, reason webhook.Reason, statusCode *int, started, ended time.Time) *postgres.FailureChange {
	fails := countsAsFailure(reason)
	if !fails && reason != webhook.ReasonDelivered {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.known[id]
	if !fails {
		if known == nil || ended.Sub(known.successAt) < f.every {
			return nil
		}
		known.successAt, known.failed = ended, postgres.FailureChange{}
		return &postgres.FailureChange{WebhookID: id, SucceededAt: ended}
	}
	if known == nil {
		known = &failure{}
		f.known[id] = known
	}
	c := &known.failed
	if c.Attempts == 0 || started.Before(c.FirstFailedAt) {
		c.FirstFailedAt = started
	}
	c.Attempts++
	if !started.Before(c.LastFailedAt) {
		c.LastFailedAt, c.Reason, c.StatusCode = started, reason, statusCode
	}
	if ended.Sub(known.failureAt) < f.every {
		return nil
	}
	change := *c
	change.WebhookID = id
	known.failureAt, known.heardAt, known.failed = ended, ended, postgres.FailureChange{}
	return &change
}

// forget drops the webhooks of which nothing was heard for so long that their rows may
// be gone, and returns them: their rows must be asked for before more is sent to them.
// It does something once in a while.
func (f *failures) forget(now time.Time) (forgotten []webhook.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.forgotten) < forgetEvery {
		return nil
	}
	f.forgotten = now
	for id, known := range f.known {
		if now.Sub(known.heardAt) > failureMemory {
			delete(f.known, id)
			forgotten = append(forgotten, id)
		}
	}
	return forgotten
}

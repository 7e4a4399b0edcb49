package dispatch

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// breakerSays is what an attempt tells a webhook's breaker.
type breakerSays int

const (
	breakerNothing breakerSays = iota // the receiver only asked for patience, or the trouble is ours
	breakerGood
	breakerBad
)

// breakerVote is what an attempt with this reason tells the breaker. What only
// gates has its own way of stopping deliveries.
func breakerVote(r webhook.Reason) breakerSays {
	switch r {
	case webhook.ReasonDelivered:
		return breakerGood
	case webhook.ReasonRateLimited, webhook.ReasonGone, webhook.ReasonProxy, webhook.ReasonAuthUnavailable, webhook.ReasonInternalError:
		return breakerNothing
	}
	return breakerBad
}

// paceSignal is what an attempt with this reason says about how many requests at
// once the receiver can take.
func paceSignal(r webhook.Reason) fairqueue.Signal {
	switch r {
	case webhook.ReasonDelivered:
		return fairqueue.SignalHealthy
	case webhook.ReasonRateLimited, webhook.ReasonUnavailable, webhook.ReasonTimeout, webhook.ReasonSlowBody:
		return fairqueue.SignalOverload
	}
	return fairqueue.SignalNone
}

// gatekeeper decides what an attempt does to its webhook's gate. The gates
// themselves are rows that all dispatchers share; this remembers those that the
// dispatcher has closed or learned of, until a success opens them.
type gatekeeper struct {
	breakers *limit.Breakers // nil: there are none
	// sharers is among how many dispatchers a webhook's deliveries are spread.
	sharers atomic.Int64

	mu    sync.Mutex
	gates map[webhook.ID]postgres.Gate // guarded by mu
}

func newGatekeeper(breakers *limit.Breakers) *gatekeeper {
	g := &gatekeeper{breakers: breakers, gates: map[webhook.ID]postgres.Gate{}}
	g.sharers.Store(1)
	return g
}

// learn takes note of a webhook's row; nil: it has none.
func (g *gatekeeper) learn(id webhook.ID, gate *postgres.Gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gate == nil {
		delete(g.gates, id)
		return
	}
	g.gates[id] = *gate
}

// inARow is how many gates there were before the one that follows an attempt that
// was started at this moment. The answer to one that was under way when the last gate
// closed belongs to that gate.
func (g *gatekeeper) inARow(id webhook.ID, started time.Time) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	gate, known := g.gates[id]
	return countBefore(gate, known, started)
}

func countBefore(gate postgres.Gate, known bool, started time.Time) int {
	switch {
	case !known:
		return 0
	case gate.Follows(started):
		return gate.InARow
	}
	return max(0, gate.InARow-1)
}

// breakerSpread is how far the time of a breaker's gate is moved to either side, as a
// part of it: breakers that opened together, when a host or a network failed, must not
// all probe in the same second.
const breakerSpread = 0.25

// lengthens is by how much an attempt that was under way when a gate closed must
// ask for more time than that has, to be worth a change.
const lengthens = time.Second

// judge decides what an attempt, started and ended at these times, does to its
// webhook's gate; nil: nothing. It remembers what it decided.
func (g *gatekeeper) judge(id webhook.ID, reason webhook.Reason, rest time.Duration, started, ended time.Time) *postgres.GateChange {
	opened := false
	if vote := breakerVote(reason); vote != breakerNothing && g.breakers != nil {
		opened = g.breakers.Record(id, vote == breakerGood, int(g.sharers.Load()))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	gate, known := g.gates[id]
	change, closed := judgeGate(gate, known, reason, rest, opened, started, ended, 2*rand.Float64()-1)
	switch {
	case change == nil:
		return nil
	case closed:
		g.gates[id] = postgres.Gate{
			Cause: change.Cause, Until: change.Until, InARow: countBefore(gate, known, started) + 1, ClosedAt: ended,
		}
		if known && !gate.Follows(started) {
			longer := gate
			longer.Until = change.Until
			g.gates[id] = longer
		}
	default:
		delete(g.gates, id)
	}
	change.WebhookID = id
	return change
}

// judgeGate is judge without what it remembers: gate is the webhook's, if it is
// known to have one, rest how long the receiver asked to be left alone, and opened
// says that the breaker has just opened.
//
//   - A receiver that asks for rest gets it.
//   - A breaker that opens closes the gate, as long as gates in a row last, and
//     moved by jitter, a number between -1 and 1.
//   - While the gate is the breaker's, an attempt that was sent after it closed is
//     the probe: a success opens it, anything else closes it again, for longer.
//   - A success after any other gate ends the row of gates.
func judgeGate(
	gate postgres.Gate, known bool, reason webhook.Reason, rest time.Duration, opened bool, started, ended time.Time, jitter float64,
) (change *postgres.GateChange, closed bool) {
	after := known && gate.Follows(started)
	probe := after && gate.Cause == postgres.GateBreaker
	if reason == webhook.ReasonDelivered && !opened {
		if !after {
			return nil, false
		}
		return &postgres.GateChange{At: ended, StartedAt: started}, false
	}
	failedProbe := probe && breakerVote(reason) == breakerBad
	if failedProbe || opened {
		length := courier.GateLength(countBefore(gate, known, started))
		rest = max(rest, length+time.Duration(breakerSpread*jitter*float64(length)))
	}
	if rest <= 0 {
		return nil, false
	}
	until := ended.Add(rest)
	if failedProbe || opened {
		until = probeTime(until)
	}
	if known && !after && until.Before(gate.Until.Add(lengthens)) && (!opened || gate.Cause == postgres.GateBreaker) {
		return nil, false // the answer belongs to the gate that is closed
	}
	cause := postgres.GateReceiver
	switch {
	case opened, known && gate.Cause == postgres.GateBreaker:
		cause = postgres.GateBreaker
	case reason == webhook.ReasonProxy:
		cause = postgres.GateProxy
	case reason == webhook.ReasonAuthUnavailable:
		cause = postgres.GateAuth
	}
	return &postgres.GateChange{Cause: cause, At: ended, Until: until, StartedAt: started}, true
}

package api

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// noticeable is from how long on a wait in the lane is worth telling.
const noticeable = time.Second

// explain says in plain words and as data why a delivery is where it is, and what
// happens next. It goes by the facts alone.
func explain(f *deliveryFacts) webhook.ExplainedDelivery {
	x := webhook.ExplainedDelivery{
		Delivery: f.stands, Cause: causeOf(f), Delays: delays(f),
		AttemptsMade: f.attempts, AttemptsLeftOut: f.attemptsMissed, Lane: laneView(f),
	}
	if x.AttemptsMade == nil {
		x.AttemptsMade = []webhook.Attempt{}
	}
	if last := f.last(); last != nil && f.stands.Status.Terminal() && last.Status == f.stands.Status {
		ended := attemptEnd(last)
		x.EndedAt = &ended
		if last.Status == webhook.StatusDelivered {
			latency := ended.Sub(f.created).Milliseconds()
			x.LatencyMS = &latency
		}
	}
	x.Sentences = append(history(f, x.Delays), outlook(f, &x))
	return x
}

// last is the last attempt; nil: there was none.
func (f *deliveryFacts) last() *webhook.Attempt {
	if len(f.attempts) == 0 {
		return nil
	}
	return &f.attempts[len(f.attempts)-1]
}

// due reports whether a delivery that waits could be sent now but for its lane.
func (f *deliveryFacts) due() bool { return !f.job.DueAt.After(f.now) }

// causeOf decides why a delivery is where it is.
func causeOf(f *deliveryFacts) webhook.Cause {
	switch f.stands.Status {
	case webhook.StatusDelivered:
		return webhook.CauseDelivered
	case webhook.StatusExhausted, webhook.StatusCancelled, webhook.StatusDropped:
		return causeOfEnd(f)
	case webhook.StatusDelivering:
		if at, known := f.heard[f.job.Dispatcher]; !known || f.now.Sub(at) >= webhook.StaleAfter {
			return webhook.CauseDispatcherDead
		}
		return webhook.CauseDelivering
	case webhook.StatusParked:
		if f.hook != nil && f.hook.State == webhook.StateDisabled {
			return webhook.CauseDisabled
		}
		return webhook.CausePaused
	case webhook.StatusPending, webhook.StatusRetrying:
	}
	switch {
	case f.hook == nil:
		return webhook.CauseWebhookGone
	case f.gate != nil && (f.due() || f.gate.Until.After(f.job.DueAt)):
		return f.gate.Cause
	case !f.due() && f.stands.Status == webhook.StatusRetrying:
		return webhook.CauseWaitingForRetry
	case !f.due():
		return webhook.CauseNotDue
	case f.dispatchers == 0:
		return webhook.CauseNoDispatcher
	case f.ahead > 0 && !f.job.Free(f.hook.Ordering):
		return webhook.CauseWaitingInOrder
	case f.running >= f.hook.MaxInFlight:
		return webhook.CauseAtMaxInFlight
	case f.ahead > 0 && f.hook.RatePerSecond != nil:
		return webhook.CauseRateLimited
	case f.ahead > 0:
		return webhook.CauseBehindBacklog
	}
	return webhook.CauseNextInLane
}

// causeOfEnd is why a delivery ended without success.
func causeOfEnd(f *deliveryFacts) webhook.Cause {
	last := f.last()
	if last == nil || last.Status != f.stands.Status {
		return webhook.CauseRemoved
	}
	switch last.Reason {
	case webhook.ReasonExpired:
		return webhook.CauseExpired
	case webhook.ReasonSkipped:
		return webhook.CauseSkipped
	case webhook.ReasonCrashed:
		return webhook.CauseCrashed
	case webhook.ReasonCancelled:
		return webhook.CauseCancelled
	case webhook.ReasonWebhookDeleted:
		return webhook.CauseWebhookDeleted
	case webhook.ReasonEventMissing:
		return webhook.CauseEventPastKeeping
	case webhook.ReasonAcceptLimited:
		return webhook.CauseAcceptLimited
	case webhook.ReasonBacklogFull:
		return webhook.CauseBacklogFull
	}
	if f.stands.Status == webhook.StatusExhausted {
		return webhook.CauseRetriesUsedUp
	}
	return webhook.CauseEnded
}

func laneView(f *deliveryFacts) *webhook.LaneView {
	if f.job == nil || f.hook == nil {
		return nil
	}
	view := &webhook.LaneView{
		InFlight: min(f.running, maxCounted), MaxInFlight: f.hook.MaxInFlight, RatePerSecond: f.hook.RatePerSecond,
		Status: f.hook.State, Gate: f.gate, Owner: f.owner, Dispatchers: f.dispatchers, AheadExact: true,
	}
	if f.stands.Status == webhook.StatusDelivering {
		view.Dispatcher = &f.job.Dispatcher
		return view
	}
	if f.due() {
		ahead := min(f.ahead, maxCounted)
		view.Ahead, view.AheadExact = &ahead, f.ahead <= maxCounted
	}
	return view
}

// delays are the times in which a delivery could not be sent: behind gates, between its
// attempts, and in its lane once it was due.
func delays(f *deliveryFacts) []webhook.Delay {
	end := f.end()
	over := f.stands.Status.Terminal()
	gates := gateDelays(f.lane, f.created, end, over)
	if f.laneMissed { // nobody knows what came after the last that was read
		gates = gateDelays(f.lane, f.created, f.lane[len(f.lane)-1].At, true)
	}
	all := slices.Clone(gates)
	inLane := func(from, to time.Time, goesOn bool) {
		for _, g := range gates { // which are in the order of their beginnings
			if !g.From.Before(to) || g.To != nil && !g.To.After(from) {
				continue
			}
			if g.From.Sub(from) >= noticeable {
				all = append(all, delay(webhook.CauseBehindBacklog, from, g.From, false))
			}
			if g.To == nil {
				return
			}
			from = *g.To
		}
		if to.Sub(from) >= noticeable {
			all = append(all, delay(webhook.CauseBehindBacklog, from, to, goesOn))
		}
	}
	for i := range f.attempts {
		a := &f.attempts[i]
		if wait := a.Timings.QueueWait; wait != nil {
			inLane(a.StartedAt.Add(-time.Duration(*wait)*time.Microsecond), a.StartedAt, false)
		}
		if a.NextAttemptAt == nil {
			continue
		}
		to, goesOn := *a.NextAttemptAt, false
		if to.After(end) { // the next attempt was not waited for, or is still to come
			to, goesOn = end, !over
		}
		if from := attemptEnd(a); to.After(from) {
			all = append(all, delay(webhook.CauseWaitingForRetry, from, to, goesOn))
		}
	}
	if !over && f.stands.Status != webhook.StatusDelivering && f.due() {
		inLane(f.job.DueAt.UTC(), f.now, true)
	}
	slices.SortStableFunc(all, func(a, b webhook.Delay) int { return a.From.Compare(b.From) })
	return all
}

func delay(cause webhook.Cause, from, to time.Time, goesOn bool) webhook.Delay {
	d := webhook.Delay{Cause: cause, From: from.UTC(), DurationMS: to.Sub(from).Milliseconds()}
	if !goesOn {
		to = to.UTC()
		d.To = &to
	}
	return d
}

// gateDelays are the times between two moments in which a lane was shut, by what
// happened to it. over says that nothing goes on after the second moment. A webhook's
// state and its lane's gate are two: they can be closed at once.
func gateDelays(events []postgres.LaneEvent, from, to time.Time, over bool) []webhook.Delay {
	type shut struct {
		cause webhook.Cause
		since time.Time
		until *time.Time // when it opens by itself; nil: it does not
	}
	var (
		all  = []webhook.Delay{}
		open = map[bool]*shut{} // by whether it is the webhook's state
	)
	finish := func(s *shut, at time.Time, goesOn bool) {
		if s.until != nil && s.until.Before(at) {
			at, goesOn = *s.until, false
		}
		if at.After(to) {
			at = to
		}
		since := s.since
		if since.Before(from) {
			since = from
		}
		if at.After(since) || goesOn {
			all = append(all, delay(s.cause, since, at, goesOn))
		}
	}
	for _, e := range events {
		cause := gateCause(e.Cause)
		state := cause == webhook.CausePaused || cause == webhook.CauseDisabled
		was := open[state]
		if e.Event == "probing" {
			continue
		}
		var until *time.Time
		if cause != webhook.CauseBreakerOpen { // that one opens with a success
			until = e.Until
		}
		lasts := was != nil && (was.until == nil || !was.until.Before(e.At))
		if e.Event == "closed" && lasts && was.cause == cause {
			was.until = until // the same, for longer
			continue
		}
		if was != nil {
			finish(was, e.At, false)
			delete(open, state)
		}
		if e.Event == "closed" {
			open[state] = &shut{cause, e.At, until}
		}
	}
	for _, state := range []bool{true, false} {
		if s := open[state]; s != nil {
			finish(s, to, !over)
		}
	}
	slices.SortStableFunc(all, func(a, b webhook.Delay) int { return a.From.Compare(b.From) })
	return all
}

// summarize says in a sentence where an event's deliveries stand.
func summarize(created time.Time, all []webhook.Delivery) string {
	if len(all) == 0 {
		return fmt.Sprintf("Accepted at %s. It matched no webhook, so there is nothing to deliver.", moment(created))
	}
	counts := map[webhook.Status]int{}
	for _, d := range all {
		counts[d.Status]++
	}
	var parts []string
	for _, s := range []webhook.Status{
		webhook.StatusPending, webhook.StatusDelivering, webhook.StatusRetrying, webhook.StatusParked,
		webhook.StatusDelivered, webhook.StatusExhausted, webhook.StatusCancelled, webhook.StatusDropped,
	} {
		if n := counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return fmt.Sprintf("Accepted at %s. Of its deliveries %s.", moment(created), strings.Join(parts, ", "))
}

// history says what happened to a delivery, in the order in which it happened.
func history(f *deliveryFacts, delays []webhook.Delay) []string {
	type entry struct {
		at   time.Time
		text string
	}
	var entries []entry
	for i := range delays {
		entries = append(entries, entry{delays[i].From, tellDelay(&delays[i])})
	}
	for i := range f.attempts {
		entries = append(entries, entry{f.attempts[i].StartedAt, tellAttempt(&f.attempts[i])})
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return a.at.Compare(b.at) })
	sentences := []string{"Accepted at " + moment(f.created) + "."}
	if f.attemptsMissed {
		sentences = append(sentences, fmt.Sprintf("Earlier attempts than the last %d are left out.", webhook.MaxExplainedAttempts))
	}
	for _, e := range entries {
		sentences = append(sentences, e.text)
	}
	return sentences
}

func tellDelay(d *webhook.Delay) string {
	var what string
	switch d.Cause {
	case webhook.CausePaused:
		what = "its webhook was paused"
	case webhook.CauseDisabled:
		what = "its webhook was disabled"
	case webhook.CauseBreakerOpen:
		what = "the breaker was open, since too many of the webhook's deliveries failed"
	case webhook.CauseGatedByProxy:
		what = "our own outbound proxy failed"
	case webhook.CauseGatedByAuth:
		what = "the webhook's token endpoint gave no token"
	case webhook.CauseGatedByReceiver:
		what = "the receiver had asked for time"
	case webhook.CauseWaitingForRetry:
		what = "it waited for its next attempt"
	default:
		what = "it was due, and waited for its turn in the webhook's lane"
	}
	length := span(time.Duration(d.DurationMS) * time.Millisecond)
	if d.To == nil {
		return fmt.Sprintf("Since %s (%s so far) %s.", moment(d.From), length, what)
	}
	return fmt.Sprintf("From %s to %s (%s) %s.", moment(d.From), moment(*d.To), length, what)
}

func tellAttempt(a *webhook.Attempt) string {
	if a.Number == 0 {
		return fmt.Sprintf("At %s it ended without a request: %s.", moment(a.StartedAt), a.Reason)
	}
	text := fmt.Sprintf("Attempt %d at %s", a.Number, moment(a.StartedAt))
	if a.StatusCode != nil {
		text += fmt.Sprintf(" was answered %d", *a.StatusCode)
	} else {
		text += " got no answer"
	}
	if a.Timings.Total != nil {
		text += " after " + span(time.Duration(*a.Timings.Total)*time.Microsecond)
	}
	return text + fmt.Sprintf(" (%s).", a.Reason)
}

// outlook says why the delivery is where it is now, and what happens next.
func outlook(f *deliveryFacts, x *webhook.ExplainedDelivery) string {
	switch x.Cause {
	case webhook.CauseDelivered:
		if x.LatencyMS == nil {
			return "It was delivered."
		}
		return fmt.Sprintf("It was delivered at %s, %s after its acceptance, with attempt %d.",
			moment(*x.EndedAt), span(time.Duration(*x.LatencyMS)*time.Millisecond), f.last().Number)
	case webhook.CauseRetriesUsedUp:
		return "It is exhausted: neither its webhook's retry schedule nor max_age_seconds allows another attempt. It is not tried again."
	case webhook.CauseSkipped:
		return "It is exhausted: it kept those behind it back until it had failed as often as ordering_skip_after says. It is not tried again."
	case webhook.CauseExpired:
		return "It is exhausted: it had become older than its webhook's max_age_seconds. It is not tried again."
	case webhook.CauseCrashed:
		return "It is exhausted: every attempt left ended with a dispatcher that died. It is not tried again."
	case webhook.CauseCancelled:
		return "It was cancelled by hand. It is not tried again."
	case webhook.CauseWebhookDeleted:
		return "It was cancelled, since its webhook was deleted. It is not tried again."
	case webhook.CauseRemoved:
		return "It is neither queued nor is an end on record: its job was removed by hand. It is not tried again."
	case webhook.CauseEventPastKeeping:
		return "It was dropped, since its event is past retention. It is not tried again."
	case webhook.CauseAcceptLimited:
		return "It was dropped when the event was accepted: the webhook's accept_per_second was exceeded."
	case webhook.CauseBacklogFull:
		return "It was dropped when the event was accepted: as many deliveries as max_backlog allows were waiting."
	case webhook.CauseEnded:
		return fmt.Sprintf("It ended as %s. It is not tried again.", f.stands.Status)
	case webhook.CauseDelivering:
		text := "Dispatcher " + f.job.Dispatcher + " has it"
		if f.job.FetchedAt != nil {
			text += " since " + moment(*f.job.FetchedAt)
		}
		return text + ": a request is under way, or about to be."
	case webhook.CauseDispatcherDead:
		text := "Dispatcher " + f.job.Dispatcher + " had it, and"
		if at, known := f.heard[f.job.Dispatcher]; known {
			text += " was last heard of at " + moment(at)
		} else {
			text += " is gone"
		}
		if f.dispatchers == 0 {
			return text + ". No other dispatcher is alive to give it back to its lane."
		}
		return text + ". Within 30 s another dispatcher gives it back to its lane."
	case webhook.CausePaused:
		return "Its webhook is paused. It keeps its place and goes on when the webhook is resumed."
	case webhook.CauseDisabled:
		text := "Its webhook is disabled"
		if f.hook.DisabledReason != nil {
			text += " (" + *f.hook.DisabledReason + ")"
		}
		return text + ". It keeps its place and goes on when the webhook is resumed."
	case webhook.CauseWebhookGone:
		return "Its webhook was deleted: it is cancelled when a dispatcher comes to it."
	}
	return tellWaiting(f, x.Cause) + nobodyThere(f)
}

// tellWaiting says what a delivery waits for whose webhook is active.
func tellWaiting(f *deliveryFacts, cause webhook.Cause) string {
	ahead := fmt.Sprint(min(f.ahead, maxCounted))
	if f.ahead > maxCounted {
		ahead = fmt.Sprintf("more than %d", maxCounted)
	}
	switch cause {
	case webhook.CauseGatedByReceiver:
		return "The receiver asked for time: nothing is sent to it before " + moment(f.gate.Until) + ". Then the lane goes on." + ownDue(f)
	case webhook.CauseGatedByProxy:
		return "Our own outbound proxy failed: nothing is sent to this webhook before " + moment(f.gate.Until) + ". Then the lane goes on." + ownDue(f)
	case webhook.CauseGatedByAuth:
		return "The webhook's token endpoint gave no token: it is asked again at " + moment(f.gate.Until) + ". Then the lane goes on." + ownDue(f)
	case webhook.CauseBreakerOpen:
		return "Too many of the webhook's deliveries failed, so the breaker is open: at " + moment(f.gate.Until) +
			" one delivery is let through as a probe, and if it succeeds the lane goes on." + ownDue(f)
	case webhook.CauseBreakerProbing:
		return "The breaker is half open: one delivery is let through as a probe, and if it succeeds the lane goes on." + ownDue(f)
	case webhook.CauseWaitingForRetry:
		text := "The next attempt is due at " + moment(f.job.DueAt) + ", in " + span(f.job.DueAt.Sub(f.now))
		if last := f.last(); last != nil && last.Number > 0 {
			text += fmt.Sprintf(", since attempt %d failed (%s)", last.Number, last.Reason)
		}
		return text + "."
	case webhook.CauseNotDue:
		return "It is due at " + moment(f.job.DueAt) + ", in " + span(f.job.DueAt.Sub(f.now)) + "."
	case webhook.CauseNoDispatcher:
		return "It is due, and " + ahead + " deliveries of its lane go before it."
	case webhook.CauseWaitingInOrder:
		if f.hook.Ordering == webhook.OrderingStrict {
			return "It is due. Its webhook gets its deliveries in strict order: those that were accepted before it go first (" + ahead + "), also one that waits for its next attempt."
		}
		return "It is due. Its webhook gets its deliveries in the order of their ordering_key: those with its key that were accepted before it go first (" + ahead + "), also one that waits for its next attempt."
	case webhook.CauseAtMaxInFlight:
		return fmt.Sprintf("It is due. The webhook has %d requests under way, and max_in_flight is %d: as these end, it follows after %s others.",
			f.running, f.hook.MaxInFlight, ahead)
	case webhook.CauseRateLimited:
		wait := time.Duration(float64(f.ahead+1) / *f.hook.RatePerSecond * float64(time.Second))
		return fmt.Sprintf("It is due, and %s deliveries of its lane go before it, at rate_per_second %g: that takes about %s.",
			ahead, *f.hook.RatePerSecond, span(wait))
	case webhook.CauseBehindBacklog:
		return "It is due, and " + ahead + " deliveries of its lane go before it."
	}
	return "It is due, and nothing of its lane goes before it: a dispatcher takes it next."
}

// ownDue adds when a delivery behind a gate is due itself, if that is still to come.
func ownDue(f *deliveryFacts) string {
	if f.due() {
		return ""
	}
	return " This delivery is due at " + moment(f.job.DueAt) + "."
}

// nobodyThere adds that nobody delivers.
func nobodyThere(f *deliveryFacts) string {
	if f.dispatchers > 0 {
		return ""
	}
	return " No dispatcher is alive: nothing is delivered until one starts."
}

// moment is a time as sentences have it.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// span is a length of time as sentences have it.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond / 10).String()
	case d < time.Minute:
		return d.Round(time.Second / 10).String()
	}
	return d.Round(time.Second).String()
}

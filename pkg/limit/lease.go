package limit

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
)

// A bucket in the database holds at most Capacity tokens, a fifth of a second's,
// and a token taken out of it is used or given back within leaseLife. What n
// processes admit in a window of w seconds were then tokens in the bucket or out
// on lease when it began, or new since: at most
//
//	rate * (w + capacitySeconds + 2*leaseLife) = rate * (w + 0.5)
//
// for tokens that were taken, given back and taken again at the worst of times,
// whatever n is. That is 5 % over the rate in 10 s.
const (
	capacitySeconds = 0.2
	leaseLife       = postgres.LeaseLife
	// maxLeaseSeconds of the rate are taken out at a time.
	maxLeaseSeconds = 0.1
	// tickInterval is how often leases are made up to what is being used.
	tickInterval = 50 * time.Millisecond
	// arrivalLife is how long tokens are good for after an answer that took almost
	// all of leaseLife: without it a slow database would let nothing through.
	arrivalLife = 10 * time.Millisecond
	// dryPause is the least time between two exchanges for a bucket that had
	// fewer tokens than were asked for.
	dryPause = 25 * time.Millisecond
	// forgetAfter is when a bucket that nobody asks for is forgotten here.
	forgetAfter = 5 * time.Second
)

// Bucket names a token bucket and its rate.
type Bucket struct {
	// Name is the same in all processes: "global", "tenant/<key>", "webhook/<id>".
	Name string
	// Rate is how many tokens a second it gets; more than 0.
	Rate float64
}

// Capacity is how many tokens a bucket of this rate can hold: the burst that it
// lets through. Tokens of slow buckets are leased one at a time, to callers who
// wait for them, so none lie about on lease; their buckets can hold twice as many
// seconds' worth, and need to: with room for one token, a caller that comes a
// moment early would cost the bucket its next. At least 2.
func Capacity(rate float64) float64 {
	if rate*maxLeaseSeconds < 2 { // maxLease is 1
		return max(2, min(2*rate*capacitySeconds, 4))
	}
	return rate * capacitySeconds
}

// lease is some tokens that were taken out together.
type lease struct {
	tokens  int
	expires time.Time
	at      time.Time // when they were taken, by the database's clock
}

// leased is what this process knows of a bucket.
type leased struct {
	rate   float64
	leases []lease // oldest first
	// emptied is the lease that was last used up.
	emptied lease
	// dryUntil is when the bucket has something again; zero: not known to be dry.
	dryUntil time.Time
	// hungry is how many callers wait for tokens since the last exchange began.
	hungry int
	// spent is how many tokens were asked for since the last tick, and use how
	// many per tick lately.
	spent int
	use   float64
	// lastUsed is when somebody last asked for a token.
	lastUsed time.Time
	// round is the last plan that looked at it.
	round int
}

func (b *leased) maxLease() int { return max(1, int(b.rate*maxLeaseSeconds)) }

// expire drops tokens whose life is over, and returns how many.
func (b *leased) expire(now time.Time) (expired int) {
	for len(b.leases) > 0 && !now.Before(b.leases[0].expires) {
		expired += b.leases[0].tokens
		b.leases = slices.Delete(b.leases, 0, 1)
	}
	return expired
}

func (b *leased) held() (tokens int) {
	for _, l := range b.leases {
		tokens += l.tokens
	}
	return tokens
}

// spend takes one token out of the oldest lease; there is one.
func (b *leased) spend() {
	b.leases[0].tokens--
	if b.leases[0].tokens == 0 {
		b.emptied = b.leases[0]
		b.leases = slices.Delete(b.leases, 0, 1)
	}
}

// verdict is the answer to one question for tokens.
type verdict int

const (
	granted verdict = iota // and spent
	refused                // the bucket is known to be empty
	wanting                // an exchange must tell
)

// ledger is a process's leases: a state machine without a clock, a lock or a
// database. Everything happens at a time that the caller gives.
type ledger struct {
	buckets map[string]*leased
	hungry  []string // names of buckets that callers wait for
	round   int      // counts plans
	tally   tally
}

// tally counts what became of tokens.
type tally struct{ leased, returned, expired int }

func newLedger() *ledger { return &ledger{buckets: make(map[string]*leased)} }

func (g *ledger) bucket(b Bucket, now time.Time) *leased {
	l := g.buckets[b.Name]
	if l == nil {
		l = &leased{}
		g.buckets[b.Name] = l
	}
	if l.rate != b.Rate {
		l.rate, l.dryUntil = b.Rate, time.Time{}
	}
	l.lastUsed = now
	g.tally.expired += l.expire(now)
	return l
}

// take spends one token from each bucket, or none. If it is refused, culprit is
// the index of the bucket with the longest wait, and wait is how long it is. If it
// is wanting, the buckets that lack a token are remembered for the next plan;
// again says that this caller has been counted before.
func (g *ledger) take(now time.Time, buckets []Bucket, again bool) (v verdict, culprit int, wait time.Duration) {
	for i, b := range buckets {
		l := g.bucket(b, now)
		if len(l.leases) > 0 {
			continue
		}
		if until := l.dryUntil.Sub(now); until > 0 {
			if v != refused || until > wait {
				culprit, wait = i, until
			}
			v = refused
			continue
		}
		if v == granted {
			v = wanting
		}
	}
	for _, b := range buckets {
		l := g.buckets[b.Name]
		if !again {
			l.spent++
		}
		switch {
		case v == granted:
			l.spend()
		case v == wanting && len(l.leases) == 0:
			if l.hungry == 0 {
				g.hungry = append(g.hungry, b.Name)
			}
			l.hungry++
		}
	}
	return v, culprit, wait
}

// refund gives back a token that was granted and not used.
func (g *ledger) refund(now time.Time, name string) {
	l := g.buckets[name]
	if l == nil {
		return
	}
	g.tally.expired += l.expire(now)
	switch {
	case len(l.leases) > 0: // it may be from an older one
		l.leases[0].tokens++
	case now.Before(l.emptied.expires):
		l.leases = append(l.leases, l.emptied)
		l.leases[0].tokens = 1
	}
}

// plan is what to ask the database for. tick says that it is time to look at
// every bucket; otherwise only those that callers wait for are looked at. At most
// limit buckets are asked for, those with waiting callers first.
func (g *ledger) plan(now time.Time, tick bool, limit int) []postgres.TokenAsk {
	var asks []postgres.TokenAsk
	g.round++
	consider := func(name string, l *leased) {
		if l.round == g.round {
			return
		}
		l.round = g.round
		g.tally.expired += l.expire(now)
		if ask, any := l.ask(now); any {
			ask.Name = name
			asks = append(asks, ask)
		}
	}
	if tick {
		for _, l := range g.buckets {
			l.tick()
		}
	}
	waiting := min(limit, len(g.hungry))
	for _, name := range g.hungry[:waiting] {
		consider(name, g.buckets[name])
	}
	g.hungry = slices.Delete(g.hungry, 0, waiting)
	if tick {
		for name, l := range g.buckets {
			switch {
			case l.hungry > 0:
			case len(l.leases) == 0 && now.Sub(l.lastUsed) > forgetAfter:
				delete(g.buckets, name)
			case len(asks) < limit:
				consider(name, l)
			}
		}
	}
	// In one order in all processes, so that they do not wait for each other in a
	// circle.
	slices.SortFunc(asks, func(a, b postgres.TokenAsk) int { return cmp.Compare(a.Name, b.Name) })
	return asks
}

// tick takes in how much was asked for since the last one.
func (b *leased) tick() {
	b.use = max(float64(b.spent), b.use/2)
	if b.use < 0.5 {
		b.use = 0
	}
	b.spent = 0
}

// ask is what a bucket needs: tokens, or to be rid of some.
func (b *leased) ask(now time.Time) (ask postgres.TokenAsk, any bool) {
	held := b.held()
	// Enough for two ticks as the last ones were, or for as many again as were
	// asked for since the last one. One now and then is asked for by whoever comes.
	target := b.hungry
	if b.maxLease() > 1 {
		if b.use >= 1 {
			target = max(target, int(math.Ceil(2*b.use)))
		}
		if b.spent > 1 {
			target = max(target, 2*b.spent)
		}
	}
	target = min(target, b.maxLease())
	b.hungry = 0
	ask = postgres.TokenAsk{Rate: b.rate, Capacity: Capacity(b.rate)}
	switch {
	case held < target && !now.Before(b.dryUntil):
		ask.Want = target - held
		return ask, true
	case held > target+target/2:
		// The oldest, since they have the least use left.
		oldest := &b.leases[0]
		ask.GiveBack, ask.TakenAt = min(oldest.tokens, held-target), oldest.at
		oldest.tokens -= ask.GiveBack
		if oldest.tokens == 0 {
			b.leases = slices.Delete(b.leases, 0, 1)
		}
		return ask, true
	}
	return ask, false
}

// settle takes in the answer to a plan. sent is when it was asked.
func (g *ledger) settle(sent, now time.Time, asks []postgres.TokenAsk, grants map[string]postgres.TokenGrant) {
	for _, ask := range asks {
		l := g.buckets[ask.Name]
		if l == nil {
			continue
		}
		g.tally.returned += ask.GiveBack
		grant, found := grants[ask.Name]
		if !found {
			continue
		}
		g.tally.leased += grant.Tokens
		if grant.Tokens > 0 {
			expires := sent.Add(leaseLife)
			if least := now.Add(arrivalLife); expires.Before(least) {
				expires = least
			}
			l.leases = append(l.leases, lease{grant.Tokens, expires, grant.TakenAt})
		}
		if grant.Tokens < ask.Want {
			l.dryUntil = sent.Add(max(dryPause, grant.UntilNext(ask.Rate)))
		} else {
			l.dryUntil = time.Time{}
		}
	}
}

// drain gives everything back.
func (g *ledger) drain(now time.Time) []postgres.TokenAsk {
	var asks []postgres.TokenAsk
	for name, l := range g.buckets {
		l.expire(now)
		if tokens := l.held(); tokens > 0 {
			asks = append(asks, postgres.TokenAsk{
				Name: name, Rate: l.rate, Capacity: Capacity(l.rate),
				GiveBack: tokens, TakenAt: l.leases[0].at,
			})
			l.leases = nil
		}
	}
	slices.SortFunc(asks, func(a, b postgres.TokenAsk) int { return cmp.Compare(a.Name, b.Name) })
	return asks
}

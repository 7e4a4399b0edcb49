package e2etest

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

// metric reads one of a service's metrics, with its labels if it has any.
func (s *stack) metric(p *process, name string) float64 {
	s.t.Helper()
	for line := range strings.Lines(s.get(p, "/metrics")) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return number
		}
	}
	s.t.Fatalf("%s has no metric %s", p.name, name)
	return 0
}

// submitSteadily submits so many events a second to one webhook, whatever becomes
// of those before, until the function that it returns is called.
func (l *faultLedger) submitSteadily(t *testing.T, c *client.Client, hook string, perSecond int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	calls.Go(func() {
		pace := time.NewTicker(time.Second / time.Duration(perSecond))
		defer pace.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-pace.C:
			}
			calls.Go(func() {
				e := l.event(hook)
				accepted, err := c.Submit(context.WithoutCancel(ctx), e)
				l.enter(e, accepted, err)
			})
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		calls.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// TestTheAdaptiveLimitOnASlowPostgres slows commits down for some seconds: less is
// taken the longer that lasts, and nothing of what is taken is lost. Then it goes
// away by itself.
func TestTheAdaptiveLimitOnASlowPostgres(t *testing.T) {
	t.Parallel()
	const perSecond = 150
	s := newStack(t)
	p := newProxy(t, hostOf(t, s.url))
	// A commit is a request and an answer.
	p.slowness = 400 * time.Millisecond
	ingest := s.runWith("ingest",
		"FAIRHOOK_DATABASE_URL="+p.through(t, s.url), "FAIRHOOK_LISTEN_DATABASE_URL="+s.url,
		"FAIRHOOK_ADAPTIVE_COMMIT_TIME=400ms", "FAIRHOOK_ADAPTIVE_WAIT=10s", "FAIRHOOK_ADAPTIVE_FLOOR=10").ready()
	c, err := client.New("http://"+ingest.addr, bootstrap, client.WithRetryMax(0))
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: "http://127.0.0.1:9/"})
	if err != nil {
		t.Fatal(err)
	}
	const limiting, rate, refusals = "fairhook_adaptive_limiting", "fairhook_adaptive_rate", `fairhook_limit_refusals_total{limit="adaptive"}`
	l := newFaultLedger()
	stop := l.submitSteadily(t, c, w.ID, perSecond)
	eventually(t, "events are accepted", func() bool { n, _, _ := l.counts(); return n > perSecond })
	if r := s.metric(ingest, rate); !math.IsInf(r, 1) || s.metric(ingest, limiting) != 0 {
		t.Errorf("the rate is %v before commits are slow", r)
	}

	p.set(slow)
	began := time.Now()
	eventually(t, "less is taken", func() bool { return s.metric(ingest, limiting) == 1 })
	first := s.metric(ingest, rate)
	eventually(t, "less and less is taken", func() bool { return s.metric(ingest, rate) < first*0.7 })
	eventually(t, "some of it is refused for that", func() bool { _, n, _ := l.counts(); return n > 10 && s.metric(ingest, refusals) > 10 })
	for err == nil {
		var accepted *client.Accepted
		e := l.event(w.ID)
		accepted, err = c.Submit(t.Context(), e)
		l.enter(e, accepted, err)
	}
	if !client.IsUnavailable(err) || !strings.Contains(err.Error(), "The database is slow, so no more than") {
		t.Errorf("refused with %v", err)
	}
	taken, _, _ := l.counts()
	eventually(t, "some is taken still", func() bool { n, _, _ := l.counts(); return n > taken })
	t.Logf("commits were slow for %s, and the rate %v", time.Since(began).Round(100*time.Millisecond), s.metric(ingest, rate))

	p.set(passing)
	healed := time.Now()
	eventually(t, "the limit is gone", func() bool { return s.metric(ingest, limiting) == 0 && math.IsInf(s.metric(ingest, rate), 1) })
	t.Logf("there was no limit any more %s after commits were fast", time.Since(healed).Round(100*time.Millisecond))
	before := s.metric(ingest, refusals)
	accepted, refused, _ := l.counts()
	eventually(t, "everything is taken again", func() bool { n, _, _ := l.counts(); return n > accepted+perSecond })
	if _, n, _ := l.counts(); n != refused || s.metric(ingest, refusals) != before {
		t.Errorf("%d more were refused without a limit", n-refused)
	}
	stop()
	l.resolve(t, ingest)
	if code := ingest.terminate(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.balance(t, s)
}

// TestAWebhookThatFailsIsSubmittedLessTo goes from attempts that fail to
// submissions that are refused, and back.
func TestAWebhookThatFailsIsSubmittedLessTo(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest, other := s.run("ingest").ready(), s.run("ingest").ready()
	s.run("dispatcher").ready()
	var broken atomic.Bool
	broken.Store(true)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(receiver.Close)
	c, err := client.New("http://"+ingest.addr, bootstrap, client.WithRetryMax(0))
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: receiver.URL, RetrySchedule: []int{1, 1, 1, 2, 2, 2, 2, 2, 5, 5, 5, 5, 5, 5, 5}})
	if err != nil {
		t.Fatal(err)
	}
	const limited, refusals = "fairhook_webhook_health_limited", `fairhook_limit_refusals_total{limit="webhook_health"}`
	l := newFaultLedger()
	stop := l.submitSteadily(t, c, w.ID, 50)
	eventually(t, "submissions are refused", func() bool { return s.metric(ingest, limited) == 1 && s.metric(ingest, refusals) > 0 })
	eventually(t, "the other ingest knows of it", func() bool { return s.metric(other, limited) == 1 })

	broken.Store(false)
	eventually(t, "the limits are gone", func() bool { return s.metric(ingest, limited)+s.metric(other, limited) == 0 })
	stop()
	if accepted, refused, unknown := l.counts(); accepted == 0 || refused != 0 || unknown != 0 {
		t.Errorf("%d accepted, %d refused for the service's own reasons, %d unknown", accepted, refused, unknown)
	}
	for _, err := range l.surprises {
		if !client.IsRateLimited(err) || !strings.Contains(err.Error(), "deliveries have failed lately") {
			t.Errorf("refused with %v", err)
		}
	}
	eventually(t, "everything is delivered in the end", func() bool { return s.count(`SELECT count(*) FROM fairhook.river_job`) == 0 })
}

package ingest

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/intake"
	"github.com/fairhook/fairhook/pkg/limit"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// setupPair is two servers on one database.
func setupPair(t *testing.T, o options) [2]*testBundle {
	t.Helper()
	o.key, o.pool = testKey, pgtest.DB(t)
	return [2]*testBundle{setupWith(t, o), setupWith(t, o)}
}

// flood submits through both servers for so long, twice as fast as rate, and
// returns how many submissions got this status, and the time from the first to
// the last.
func flood(t *testing.T, servers [2]*testBundle, rate float64, length time.Duration, body string) (byStatus map[int]int, took time.Duration) {
	t.Helper()
	const callers = 4 // of each server
	var (
		statuses [600]atomic.Int64
		calls    sync.WaitGroup
		began    = time.Now()
	)
	for _, b := range servers {
		for range callers {
			calls.Go(func() {
				pace := time.NewTicker(time.Duration(2 * callers / (2 * rate) * float64(time.Second)))
				defer pace.Stop()
				for time.Since(began) < length {
					a := b.request(t, "POST", "/v1/events", body)
					statuses[a.status].Add(1)
					switch a.status {
					case http.StatusAccepted, http.StatusTooManyRequests:
					case http.StatusServiceUnavailable: // the machine is very busy
					default:
						t.Errorf("answer is %d %s", a.status, a.body)
						return
					}
					<-pace.C
				}
			})
		}
	}
	calls.Wait()
	byStatus = map[int]int{}
	for status := range statuses {
		if n := statuses[status].Load(); n > 0 {
			byStatus[status] = int(n)
		}
	}
	return byStatus, time.Since(began)
}

func TestAcceptRatesHoldOverTwoServers(t *testing.T) {
	t.Parallel()
	const (
		rate   = 100.0
		length = 3 * time.Second
	)
	check := func(t *testing.T, byStatus map[int]int, took time.Duration) {
		t.Helper()
		// A machine that is too busy to ask for much more than the rate gets less.
		asked := float64(byStatus[http.StatusAccepted] + byStatus[http.StatusTooManyRequests])
		least, most := 0.9*min(rate*length.Seconds(), 0.75*asked), rate*(took.Seconds()+0.5)
		if got := float64(byStatus[http.StatusAccepted]); got < least || got > most {
			t.Errorf("%v were accepted in %v at %v a second: %v", got, took, rate, byStatus)
		}
	}
	t.Run("OfAWebhook", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{})
		w := newWebhook(t, servers[0], "acme", fmt.Sprintf(`,"accept_per_second":%v`, rate))
		byStatus, took := flood(t, servers, rate, length, submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`))
		check(t, byStatus, took)
	})
	t.Run("OfATenant", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{tenantAcceptPerSecond: rate})
		byStatus, took := flood(t, servers, rate, length, submitBody(`"tenant":"acme"`, `1`))
		check(t, byStatus, took)
	})
	t.Run("OfAllTenants", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{acceptPerSecond: rate})
		byStatus, took := flood(t, servers, rate, length, submitBody(`"tenant":"acme"`, `1`))
		check(t, byStatus, took)
	})
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	// One a hundred seconds, of which a bucket holds two.
	const slow = `,"accept_per_second":0.01`

	t.Run("SayWhichPolicyAndHowLong", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{acceptPerSecond: 1000, tenantAcceptPerSecond: 12.5})
		b := servers[0]
		w := newWebhook(t, b, "acme", slow)
		body := submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`)
		for range 2 {
			want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body)
		}
		for _, b := range servers {
			p, header := want[problem](t, b, http.StatusTooManyRequests, "POST", "/v1/events", body)
			if p.Type != problemBase+"rate-limited" || !strings.Contains(p.Detail, "at most 0.01 events a second") {
				t.Errorf("problem is %+v", p)
			}
			if got := header.Get("RateLimit-Policy"); got != `"global";q=1000;w=1, "tenant";q=125;w=10, "webhook";q=1;w=100` {
				t.Errorf("RateLimit-Policy: %s", got)
			}
			wait := header.Get("Retry-After")
			if got := header.Get("RateLimit"); got != `"webhook";r=0;t=`+wait || len(wait) < 2 {
				t.Errorf("RateLimit: %s, Retry-After: %s", got, wait)
			}
		}
		// The raw route is limited too.
		a := b.request(t, "POST", "/v1/webhooks/"+w.ID.String()+"/events?type=a", "x")
		if a.status != http.StatusTooManyRequests {
			t.Errorf("raw: %d %s", a.status, a.body)
		}
	})
	t.Run("LeaveAWebhookOutOfAFanOut", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{})
		b := servers[0]
		open, limited := newWebhook(t, b, "acme", ""), newWebhook(t, b, "acme", slow)
		for range 2 {
			want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/webhooks/"+limited.ID.String()+"/events?type=a", "x")
		}
		body := submitBody(`"tenant":"acme"`, `{"n": 1}`)
		expected := []acceptedDelivery{{open.ID, webhook.StatusPending}, {limited.ID, webhook.StatusDropped}}
		for n, other := range servers { // the other one knows of it, too
			got, _ := want[acceptedEvent](t, other, http.StatusAccepted, "POST", "/v1/events", body, "Idempotency-Key", fmt.Sprint("key", n))
			if fmt.Sprint(got.Deliveries) != fmt.Sprint(expected) {
				t.Errorf("deliveries are %v, want %v", got.Deliveries, expected)
			}
			if _, _, jobs := stored(t, b, got.ID); jobs != 1 {
				t.Errorf("%d jobs", jobs)
			}
			view, _ := want[webhook.EventView](t, b, http.StatusOK, "GET", "/v1/events/"+got.ID.String(), "")
			if len(view.Deliveries) != 2 {
				t.Fatalf("deliveries are %+v", view.Deliveries)
			}
			d := view.Deliveries[1]
			if d.WebhookID != limited.ID || d.Status != webhook.StatusDropped || d.Attempts != 0 || *d.Reason != webhook.ReasonAcceptLimited {
				t.Errorf("delivery is %+v", d)
			}
			again, _ := want[acceptedEvent](t, other, http.StatusAccepted, "POST", "/v1/events", body, "Idempotency-Key", fmt.Sprint("key", n))
			if fmt.Sprint(again) != fmt.Sprint(got) {
				t.Errorf("the answer was %+v and then %+v", got, again)
			}
		}
	})
	t.Run("RefuseItemsOfABatchAlone", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{})
		w := newWebhook(t, servers[0], "acme", slow)
		one := submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`)
		body := "[" + strings.Repeat(one+",", 4) + submitBody(`"tenant":"other"`, `1`) + "]"
		for n, b := range servers {
			a := b.request(t, "POST", "/v1/events/batch", body, "Content-Type", "application/json")
			var got struct {
				Results []struct {
					Status int      `json:"status"`
					Error  *problem `json:"error"`
				} `json:"results"`
			}
			a.decode(t, &got)
			statuses := map[int]int{}
			for _, r := range got.Results {
				statuses[r.Status]++
			}
			accepted := []int{3, 1}[n] // the other server's bucket is the same
			if statuses[http.StatusAccepted] != accepted || statuses[http.StatusTooManyRequests] != 5-accepted || got.Results[4].Status != http.StatusAccepted {
				t.Errorf("answer %d is %d %s", n, a.status, a.body)
			}
		}
	})
	t.Run("DoNotDelayARaisedLimit", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{})
		w := newWebhook(t, servers[0], "acme", slow)
		body := submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`)
		for _, b := range servers {
			for b.request(t, "POST", "/v1/events", body).status == http.StatusAccepted {
			}
		}
		want[webhook.Webhook](t, servers[0], http.StatusOK, "PATCH", "/v1/webhooks/"+w.ID.String(), `{"accept_per_second":null}`)
		until(t, "the other server hears of it", func() bool {
			return servers[1].request(t, "POST", "/v1/events", body).status == http.StatusAccepted
		})
		for range 5 {
			for _, b := range servers {
				want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body)
			}
		}
	})
}

// until waits for something.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(20 * time.Second); !f(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

func TestBacklogs(t *testing.T) {
	t.Parallel()
	t.Run("FullRefusesDirectSubmitsOnBothServers", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{})
		w := newWebhook(t, servers[0], "acme", `,"max_backlog":5`)
		body := submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`)
		for range 5 {
			// One that commits while its backlog is being counted counts twice until
			// the next count.
			until(t, "there is room for five", func() bool {
				return servers[0].request(t, "POST", "/v1/events", body).status == http.StatusAccepted
			})
		}
		p, header := want[problem](t, servers[0], http.StatusTooManyRequests, "POST", "/v1/events", body)
		if p.Type != problemBase+"backlog-full" || header.Get("Retry-After") == "" || header.Get("RateLimit") != "" {
			t.Errorf("problem is %+v, headers %v", p, header)
		}
		until(t, "the other server counts the backlog", func() bool {
			return servers[1].request(t, "POST", "/v1/events", body).status == http.StatusTooManyRequests
		})
		if _, err := servers[0].db.Exec(t.Context(), `DELETE FROM fairhook.river_job`); err != nil {
			t.Fatal(err)
		}
		for _, b := range servers {
			until(t, "there is room again", func() bool {
				return b.request(t, "POST", "/v1/events", body).status == http.StatusAccepted
			})
		}
	})
	t.Run("FullLeavesAWebhookOutOfAFanOut", func(t *testing.T) {
		t.Parallel()
		servers := setupPair(t, options{})
		b := servers[0]
		open, full := newWebhook(t, b, "acme", ""), newWebhook(t, b, "acme", `,"max_backlog":1`)
		body := submitBody(`"tenant":"acme"`, `1`)
		first, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body)
		second, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", body)
		expected := []acceptedDelivery{{open.ID, webhook.StatusPending}, {full.ID, webhook.StatusDropped}}
		if first.Deliveries[1].Status != webhook.StatusPending || fmt.Sprint(second.Deliveries) != fmt.Sprint(expected) {
			t.Errorf("deliveries are %v, and then %v", first.Deliveries, second.Deliveries)
		}
		until(t, "the other server leaves it out too", func() bool {
			got, _ := want[acceptedEvent](t, servers[1], http.StatusAccepted, "POST", "/v1/events", body)
			return fmt.Sprint(got.Deliveries) == fmt.Sprint(expected)
		})
		attempts, _ := want[struct {
			Items []webhook.Attempt `json:"items"`
			Data  []webhook.Attempt `json:"data"`
		}](t, b, http.StatusOK, "GET", "/v1/events/"+second.ID.String()+"/attempts", "")
		all := append(attempts.Items, attempts.Data...)
		if len(all) != 1 || all[0].Number != 0 || all[0].Reason != webhook.ReasonBacklogFull || all[0].Status != webhook.StatusDropped || all[0].WebhookID != full.ID {
			t.Errorf("attempts are %+v", all)
		}
	})
	t.Run("AreCountedByLaneUpToALimit", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		one, two, none := newWebhook(t, b, "acme", ""), newWebhook(t, b, "acme", ""), newWebhook(t, b, "other", "")
		for range 3 {
			want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"tenant":"acme"`, `1`))
		}
		for n, state := range []string{"running", "retryable", "scheduled"} {
			_, err := b.db.Exec(t.Context(), `
				UPDATE fairhook.river_job SET state = $1::text::fairhook.river_job_state WHERE id = (
					SELECT id FROM fairhook.river_job WHERE queue = $2 ORDER BY id OFFSET $3 LIMIT 1)`, state, fairqueue.Lane(one.ID), n)
			if err != nil {
				t.Fatal(err)
			}
		}
		counts, err := fairqueue.CountBacklogs(t.Context(), b.db, []webhook.ID{one.ID, two.ID, none.ID}, []int{100, 2, 100})
		if err != nil || counts[one.ID] != 3 || counts[two.ID] != 2 || counts[none.ID] != 0 || len(counts) != 3 {
			t.Errorf("counts are %v, %v", counts, err)
		}
	})
}

func TestASlowDatabaseIsAProblemWithItsRate(t *testing.T) {
	t.Parallel()
	p, internal := problemOf(errSlow(123.4))
	if p.Status != http.StatusServiceUnavailable || internal || p.retryAfter == 0 || !strings.Contains(p.Detail, "123 events a second") {
		t.Errorf("problem is %+v", p)
	}
}

// The quota in a header never promises more than the rate.
func TestQuotaOf(t *testing.T) {
	t.Parallel()
	for rate, expected := range map[float64][2]int64{1: {1, 1}, 250: {250, 1}, 2.5: {25, 10}, 0.1: {1, 10}, 0.3: {3, 10}, 0.05: {1, 20}, 1e-30: {1, 1e9}} {
		if quota, window := quotaOf(rate); [2]int64{quota, window} != expected {
			t.Errorf("%v a second is %d in %d s, want %v", rate, quota, window, expected)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(1e-6, webhook.MaxAcceptPerSecond).Draw(t, "rate")
		quota, window := quotaOf(rate)
		if quota < 1 || window < 1 || float64(quota)/float64(window) > rate*1.0001 {
			t.Errorf("%v a second is %d in %d s", rate, quota, window)
		}
	})
}

// An admission without limits, or settled twice, does nothing.
func TestAdmissionSettlesOnce(t *testing.T) {
	t.Parallel()
	var none *Limits
	a, err := none.admit(t.Context(), &submission{way: wayFanOut}, "acme", nil)
	if err != nil || len(a.dropped) != 0 {
		t.Fatal(a, err)
	}
	a.settle(intake.Receipt{}, nil)
	a.withdraw()

	counted := webhook.NewID(time.Now())
	l := &Limits{backlog: limit.NewBacklog(limit.BacklogConfig{})}
	if !l.backlog.Admit(counted, 2) {
		t.Fatal("refused by an empty backlog")
	}
	a = &admission{limits: l, counted: []webhook.ID{counted}}
	a.settle(intake.Receipt{}, nil)
	a.withdraw() // must not free the place
	if !l.backlog.Admit(counted, 2) || l.backlog.Admit(counted, 2) {
		t.Error("a settled admission gave its place back")
	}
}

package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// beat writes the heartbeat of a dispatcher, so long ago.
func beat(t *testing.T, b *testBundle, id string, ago time.Duration) {
	t.Helper()
	if _, err := b.db.Exec(t.Context(), `
		INSERT INTO fairhook.instances (id, role, version, host, heartbeat_at) VALUES ($1, 'dispatcher', 'v', 'h', now() - $2::interval)`, id, ago); err != nil {
		t.Fatal(err)
	}
}

func exec(t *testing.T, b *testBundle, sql string, args ...any) {
	t.Helper()
	if _, err := b.db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	beat(t, b, "alive", 0)
	beat(t, b, "dead", time.Minute)
	hookOf := func(t *testing.T, fields string) webhook.ID {
		t.Helper()
		return create(t, b, `{"tenant":"acme","url":"https://example.com"`+fields+`}`).ID
	}
	explain := func(t *testing.T, event webhook.ID) webhook.Explanation {
		t.Helper()
		x, _ := must[webhook.Explanation](t, b, http.StatusOK, "GET", "/v1/events/"+event.String()+"/explain", "")
		return x
	}

	t.Run("CountsWhatGoesBefore", func(t *testing.T) {
		t.Parallel()
		hook := hookOf(t, `,"max_in_flight":7`)
		var events []webhook.ID
		for i := range 4 {
			event := insertEvent(t, b, nil, `{}`, hook)
			setJob(t, b, event, hook, "available", 0, time.Now().Add(time.Duration(i-10)*time.Second))
			events = append(events, event)
		}
		setJob(t, b, events[1], hook, "running", 0, time.Now()) // one of them is under way
		exec(t, b, `UPDATE fairhook.river_job SET attempted_by = '{alive}' WHERE state = 'running' AND queue = $1`, "wh-"+hook.String())
		d := explain(t, events[3]).Deliveries[0]
		if d.Status != webhook.StatusPending || d.Cause != webhook.CauseBehindBacklog || *d.Lane.Ahead != 2 || !d.Lane.AheadExact ||
			d.Lane.InFlight != 1 || d.Lane.MaxInFlight != 7 || d.Lane.Dispatchers != 1 {
			t.Errorf("explained as %+v, lane %+v", d, d.Lane)
		}
		d = explain(t, events[1]).Deliveries[0]
		if d.Cause != webhook.CauseDelivering || *d.Lane.Dispatcher != "alive" || d.Lane.Ahead != nil {
			t.Errorf("explained as %+v, lane %+v", d, d.Lane)
		}
	})
	t.Run("CountsWhatGoesBeforeInOrder", func(t *testing.T) {
		t.Parallel()
		for ordering, want := range map[webhook.Ordering][]string{
			// The head waits for its next attempt, which is due after all of the others.
			webhook.OrderingStrict: {"waiting_for_retry", "waiting_in_order 1", "waiting_in_order 2", "waiting_in_order 3", "waiting_in_order 4"},
			webhook.OrderingKey:    {"waiting_for_retry", "waiting_in_order 1", "next_in_lane 0", "next_in_lane 0", "behind_backlog 1"},
		} {
			hook := hookOf(t, `,"ordering":"`+string(ordering)+`"`)
			var events []webhook.ID
			for i, key := range []string{"a", "a", "b", "", ""} {
				event := insertEvent(t, b, nil, `{}`, hook)
				setJob(t, b, event, hook, "available", 0, time.Now().Add(time.Duration(i-10)*time.Second))
				exec(t, b, `UPDATE fairhook.river_job SET priority = CASE WHEN $2 = '' THEN 2 ELSE 3 END, args = args || CASE WHEN $2 = '' THEN '{}'
					ELSE jsonb_build_object('ordering_key', $2::text) END WHERE priority < 4 AND unique_key = $1`, slices.Concat(event[:], hook[:]), key)
				events = append(events, event)
			}
			setJob(t, b, events[0], hook, "retryable", 1, time.Now().Add(time.Hour))
			if ordering == webhook.OrderingStrict {
				exec(t, b, `UPDATE fairhook.river_job SET priority = 4 WHERE queue = $1`, "wh-"+hook.String())
			}
			for i, event := range events {
				d := explain(t, event).Deliveries[0]
				got := string(d.Cause)
				if d.Lane.Ahead != nil {
					got += fmt.Sprint(" ", *d.Lane.Ahead)
				}
				if got != want[i] {
					t.Errorf("%s: number %d is explained by %s, want %s", ordering, i, got, want[i])
				}
			}
		}
	})
	t.Run("KnowsADeadDispatcher", func(t *testing.T) {
		t.Parallel()
		hook := hookOf(t, "")
		event := insertEvent(t, b, nil, `{}`, hook)
		setJob(t, b, event, hook, "running", 0, time.Now())
		exec(t, b, `UPDATE fairhook.river_job SET attempted_by = '{alive,dead}' WHERE queue = $1`, "wh-"+hook.String())
		if d := explain(t, event).Deliveries[0]; d.Cause != webhook.CauseDispatcherDead {
			t.Errorf("explained as %+v", d)
		}
	})
	t.Run("KnowsPausesAndGates", func(t *testing.T) {
		t.Parallel()
		hook := hookOf(t, "")
		event := insertEvent(t, b, nil, `{}`, hook)
		path := "/v1/webhooks/" + hook.String()
		must[any](t, b, http.StatusOK, "POST", path+"/pause", "")
		d := explain(t, event).Deliveries[0]
		if d.Cause != webhook.CausePaused || len(d.Delays) != 1 || d.Delays[0].Cause != webhook.CausePaused || d.Delays[0].To != nil || d.Lane.Status != webhook.StatePaused {
			t.Errorf("paused, it is explained as %+v", d)
		}
		must[any](t, b, http.StatusOK, "POST", path+"/resume", "")
		exec(t, b, `INSERT INTO fairhook.lane_gates (webhook_id, cause, until, closed_at, attempt_at) VALUES ($1, 'receiver', now() + interval '1 minute', now(), now())`, hook)
		d = explain(t, event).Deliveries[0]
		if d.Cause != webhook.CauseGatedByReceiver || d.Lane.Gate == nil || len(d.Delays) != 2 || d.Delays[0].To == nil || d.Delays[1].Cause != webhook.CauseGatedByReceiver {
			t.Errorf("gated, it is explained as %+v", d)
		}
	})
	t.Run("TellsWhatWasDelivered", func(t *testing.T) {
		t.Parallel()
		hook := hookOf(t, "")
		event := insertEvent(t, b, nil, `{}`, hook)
		total := int64(1500)
		a := record(t, b, webhook.Attempt{
			EventID: event, WebhookID: hook, Number: 1, Reason: webhook.ReasonDelivered, Status: webhook.StatusDelivered,
			StartedAt: event.Time().Add(time.Second), Timings: webhook.Timings{Total: &total},
		})
		setJob(t, b, event, hook, "", 0, time.Now())
		d := explain(t, event).Deliveries[0]
		if d.Cause != webhook.CauseDelivered || d.LatencyMS == nil || *d.LatencyMS != 1001 || d.Lane != nil ||
			len(d.AttemptsMade) != 1 || d.AttemptsMade[0].ID != a.ID || *d.AttemptsMade[0].Timings.Total != total {
			t.Errorf("explained as %+v", d)
		}
	})
	t.Run("TellsOfEachDelivery", func(t *testing.T) {
		t.Parallel()
		hooks := []webhook.ID{}
		for range webhook.MaxExplained + 2 {
			hooks = append(hooks, hookOf(t, ""))
		}
		event := insertEvent(t, b, nil, `{}`, hooks...)
		x := explain(t, event)
		if len(x.Deliveries) != webhook.MaxExplained || x.LeftOut != 2 || x.Deliveries[3].WebhookID != hooks[3] || !strings.Contains(x.Summary, "22 pending") {
			t.Errorf("explains %d, leaves out %d, says %q", len(x.Deliveries), x.LeftOut, x.Summary)
		}
		path := "/v1/events/" + event.String() + "/explain?webhook_id="
		x, _ = must[webhook.Explanation](t, b, http.StatusOK, "GET", path+hooks[21].String(), "")
		if len(x.Deliveries) != 1 || x.LeftOut != 0 || x.Deliveries[0].WebhookID != hooks[21] {
			t.Errorf("explains %+v", x)
		}
		refused(t, b, webhook.CodeNotFound, "GET", path+webhook.NewID(time.Now()).String(), "")
		refused(t, b, webhook.CodeMalformed, "GET", path+"1", "")
	})
	t.Run("TellsOfAnEventForNobody", func(t *testing.T) {
		t.Parallel()
		x := explain(t, insertEvent(t, b, nil, `{}`))
		if len(x.Deliveries) != 0 || !strings.Contains(x.Summary, "matched no webhook") {
			t.Errorf("explained as %+v", x)
		}
		refused(t, b, webhook.CodeNotFound, "GET", "/v1/events/"+webhook.NewID(time.Now()).String()+"/explain", "")
	})
	t.Run("TellsOfADeletedWebhook", func(t *testing.T) {
		t.Parallel()
		hook := hookOf(t, "")
		event := insertEvent(t, b, nil, `{}`, hook)
		must[any](t, b, http.StatusNoContent, "DELETE", "/v1/webhooks/"+hook.String(), "")
		if d := explain(t, event).Deliveries[0]; d.Cause != webhook.CauseWebhookGone || d.Lane != nil {
			t.Errorf("explained as %+v", d)
		}
	})
}

func TestStats(t *testing.T) {
	t.Parallel()
	b := setup(t)
	read := func(t *testing.T, hook webhook.ID) webhook.LaneStats {
		t.Helper()
		stats, _ := must[webhook.LaneStats](t, b, http.StatusOK, "GET", "/v1/webhooks/"+hook.String()+"/stats", "")
		return stats
	}
	t.Run("OfAWebhookThatHasNothing", func(t *testing.T) {
		t.Parallel()
		hook := create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID
		s := read(t, hook)
		if s.WebhookID != hook || s.Status != webhook.StateActive || s.Backlog != 0 || !s.BacklogExact || s.Oldest != nil || s.Gate != nil ||
			s.Breaker != webhook.BreakerClosed || s.Owner != nil || s.Recent.Attempts != 0 || s.Recent.SuccessRate != nil || s.MaxInFlight != 50 {
			t.Errorf("stats are %+v", s)
		}
	})
	t.Run("CountWhatWaitsAndWhatWasDone", func(t *testing.T) {
		t.Parallel()
		hook := create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID
		now := time.Now().UTC().Truncate(time.Microsecond)
		var events []webhook.ID
		for i := range 5 {
			event := insertEvent(t, b, nil, `{}`, hook)
			state, due := "available", now.Add(-time.Duration(i)*time.Minute)
			switch i {
			case 3:
				state = "retryable"
			case 4:
				state = "running" // does not wait
			}
			setJob(t, b, event, hook, state, 0, due)
			events = append(events, event)
		}
		for i := range 4 {
			total := int64(i + 1)
			reason, status := webhook.ReasonDelivered, webhook.StatusDelivered
			if i == 0 {
				reason, status = webhook.ReasonTimeout, webhook.StatusRetrying
			}
			record(t, b, webhook.Attempt{EventID: insertEvent(t, b, nil, `{}`), WebhookID: hook, Number: 1, Reason: reason, Status: status, Timings: webhook.Timings{Total: &total}})
		}
		s := read(t, hook)
		if s.Backlog != 5 || s.InFlight != 1 || s.Oldest == nil || s.Oldest.EventID != events[3] || !s.Oldest.DueAt.Equal(now.Add(-3*time.Minute)) ||
			s.Recent.Attempts != 4 || *s.Recent.SuccessRate != 0.75 || *s.Recent.Request.P50 != 2 || s.Recent.Reasons[webhook.ReasonTimeout] != 1 {
			t.Errorf("stats are %+v, oldest %+v", s, s.Oldest)
		}
	})
	t.Run("TellGatesAndOwners", func(t *testing.T) {
		t.Parallel()
		for name, want := range map[string]string{
			"receiver 1 minute":  "closed gated_by_receiver",
			"receiver -1 minute": "closed none",
			"proxy 1 minute":     "closed gated_by_proxy",
			"breaker 1 minute":   "open breaker_open",
			"breaker -1 minute":  "half_open breaker_probing",
		} {
			hook := create(t, b, `{"tenant":"acme","url":"https://example.com"}`).ID
			cause, until, _ := strings.Cut(name, " ")
			exec(t, b, `INSERT INTO fairhook.lane_gates (webhook_id, cause, until, closed_at, attempt_at) VALUES ($1, $2, now() + $3::text::interval, now(), now())`, hook, cause, until)
			exec(t, b, `INSERT INTO fairhook.lane_owners (webhook_id, owner, until) VALUES ($1, 'd-1', now() + $2::text::interval)`, hook, until)
			s := read(t, hook)
			got := fmt.Sprint(s.Breaker, " none")
			if s.Gate != nil {
				got = fmt.Sprint(s.Breaker, " ", s.Gate.Cause)
			}
			if got != want || (s.Owner != nil) != !strings.HasPrefix(until, "-") {
				t.Errorf("%s: %s, owner %+v; want %s", name, got, s.Owner, want)
			}
		}
	})
	t.Run("OfAWebhookThatDoesNotExist", func(t *testing.T) {
		t.Parallel()
		refused(t, b, webhook.CodeNotFound, "GET", "/v1/webhooks/"+webhook.NewID(time.Now()).String()+"/stats", "")
	})
}

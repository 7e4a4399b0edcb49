package api

import (
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// maxCounted is up to where deliveries are counted: a larger number is told as "more".
const maxCounted = 10_000

// laneStats tells how a webhook's deliveries go, all at one moment.
func (a *API) laneStats(c echo.Context) error {
	id, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	var stats webhook.LaneStats
	ctx := c.Request().Context()
	err = a.inSnapshot(ctx, func(tx pgx.Tx) error {
		if err := postgres.ReadByIndex(ctx, tx); err != nil {
			return err
		}
		w, err := postgres.Webhook(ctx, tx, id)
		if err != nil {
			return err
		}
		now, err := postgres.Now(ctx, tx)
		if err != nil {
			return err
		}
		limits, err := postgres.WebhookLimits(ctx, tx, []webhook.ID{id})
		if err != nil {
			return err
		}
		backlog, err := fairqueue.CountBacklogs(ctx, tx, []webhook.ID{id}, []int{maxCounted + 1})
		if err != nil {
			return err
		}
		stats = webhook.LaneStats{
			WebhookID: id, Status: w.State, DisabledReason: w.DisabledReason, MaxInFlight: w.MaxInFlight,
			Backlog: min(backlog[id], maxCounted), BacklogExact: backlog[id] <= maxCounted,
		}
		var oldest *fairqueue.QueuedDelivery
		if oldest, stats.InFlight, err = fairqueue.Longest(ctx, tx, id, maxCounted); err != nil {
			return err
		}
		if oldest != nil {
			stats.Oldest = &webhook.WaitingDelivery{EventID: oldest.EventID, CreatedAt: oldest.EventID.Time(), DueAt: oldest.DueAt.UTC()}
		}
		for i := range limits {
			stats.Gate, stats.Owner = gateView(limits[i].Gate, now), laneOwner(&limits[i], now)
			stats.Breaker = breakerState(limits[i].Gate, now)
		}
		stats.Recent, err = postgres.RecentAttempts(ctx, tx, id, webhook.MaxRecentAttempts)
		return err
	})
	if err != nil {
		return err
	}
	return WriteJSON(c, http.StatusOK, stats)
}

// gateView is a gate as the API shows it; nil: it is not closed at this moment.
func gateView(g *postgres.Gate, now time.Time) *webhook.GateView {
	if g == nil {
		return nil
	}
	view := &webhook.GateView{ClosedAt: g.ClosedAt.UTC(), Until: g.Until.UTC(), InARow: g.InARow}
	switch {
	case g.Cause == postgres.GateBreaker && !g.Until.After(now):
		view.Cause = webhook.CauseBreakerProbing // only its probe's success opens it
	case !g.Until.After(now):
		return nil
	default:
		view.Cause = gateCause(string(g.Cause))
	}
	return view
}

// gateCause is why something waits behind a gate with this cause: a GateCause, or the
// state of a webhook that is not active.
func gateCause(cause string) webhook.Cause {
	switch cause {
	case string(webhook.StatePaused):
		return webhook.CausePaused
	case string(webhook.StateDisabled):
		return webhook.CauseDisabled
	case string(postgres.GateBreaker):
		return webhook.CauseBreakerOpen
	case string(postgres.GateProxy):
		return webhook.CauseGatedByProxy
	case string(postgres.GateAuth):
		return webhook.CauseGatedByAuth
	}
	return webhook.CauseGatedByReceiver
}

func breakerState(g *postgres.Gate, now time.Time) webhook.BreakerState {
	switch {
	case g == nil || g.Cause != postgres.GateBreaker:
		return webhook.BreakerClosed
	case g.Until.After(now):
		return webhook.BreakerOpen
	}
	return webhook.BreakerHalfOpen
}

// laneOwner is who has a lane alone; nil: nobody.
func laneOwner(l *postgres.WebhookLimit, now time.Time) *webhook.LaneOwner {
	if l.Owner == "" || !l.OwnedUntil.After(now) {
		return nil
	}
	return &webhook.LaneOwner{Instance: l.Owner, Until: l.OwnedUntil.UTC()}
}

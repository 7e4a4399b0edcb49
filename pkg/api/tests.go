package api

import (
	"context"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// testWait is how long a request waits for its test to end, and testLook how often
	// it looks.
	testWait = 10 * time.Second
	testLook = 100 * time.Millisecond
	// testMargin is how long before the request's own deadline it answers.
	testMargin = 2 * time.Second
)

// startTest is POST /v1/webhooks/{id}/test. A dispatcher makes the request, since this
// process opens no connection to receivers. The answer is 200 with what came of it, or
// 202 when that takes longer: then GET /v1/webhooks/{id}/tests/{test} will tell.
func (a *API) startTest(c echo.Context) error {
	webhookID, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	id := webhook.NewID(a.clock.Now())
	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		wait, err := postgres.RequestTest(ctx, tx, id, webhookID)
		if err == nil && wait > 0 {
			err = &webhook.Error{
				Code:       webhook.CodeRateLimited,
				Message:    "The webhook is being tested, or was just now. No test was made; try again.",
				RetryAfter: wait,
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	test, err := a.awaitTest(ctx, webhookID, id)
	if err != nil {
		return err
	}
	c.Response().Header().Set(echo.HeaderLocation, "/v1/webhooks/"+webhookID.String()+"/tests/"+id.String())
	status := http.StatusOK
	if test.Status == webhook.TestStatusPending {
		status = http.StatusAccepted
	}
	return WriteJSON(c, status, test)
}

// awaitTest reads a test until it has ended, or for as long as a request may wait.
func (a *API) awaitTest(ctx context.Context, webhookID, id webhook.ID) (*webhook.Test, error) {
	end := time.Now().Add(a.testWait)
	if deadline, has := ctx.Deadline(); has && deadline.Add(-testMargin).Before(end) {
		end = deadline.Add(-testMargin)
	}
	ticker := time.NewTicker(testLook)
	defer ticker.Stop()
	for {
		test, err := a.test(ctx, webhookID, id)
		if err != nil || test.Status != webhook.TestStatusPending || !time.Now().Before(end) {
			return test, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

func (a *API) test(ctx context.Context, webhookID, id webhook.ID) (test *webhook.Test, err error) {
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		test, err = postgres.Test(ctx, conn, webhookID, id)
		return err
	})
	return test, err
}

// getTest is GET /v1/webhooks/{id}/tests/{test}.
func (a *API) getTest(c echo.Context) error {
	webhookID, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	text := c.Param("test")
	id, err := webhook.ParseID(text)
	if err != nil {
		return postgres.NoTest(shown(text))
	}
	if _, err := Query(c); err != nil {
		return err
	}
	test, err := a.test(c.Request().Context(), webhookID, id)
	if err != nil {
		return err
	}
	return WriteJSON(c, http.StatusOK, test)
}

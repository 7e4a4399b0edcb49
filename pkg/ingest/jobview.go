package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"riverqueue.com/riverui"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// jobViewPath is where the job view is.
const jobViewPath = "/river"

// NewJobView makes the view of the job table for operators: River UI. Run keeps its
// caches fresh until ctx ends.
//
// It shows and changes nothing: a job that is deleted or cancelled there would be a
// delivery that ends without a record.
func NewJobView(pool *pgxpool.Pool, logger *slog.Logger) (view http.Handler, run func(ctx context.Context) error, err error) {
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: fairqueue.Schema, Logger: logger})
	if err != nil {
		return nil, nil, fmt.Errorf("build River's client for the job view: %w", err)
	}
	ui, err := riverui.NewHandler(&riverui.HandlerOpts{
		Endpoints: riverui.NewEndpoints(client, nil), Logger: logger, Prefix: jobViewPath,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("build the job view: %w", err)
	}
	run = func(ctx context.Context) error {
		if err := ui.Start(ctx); err != nil {
			return fmt.Errorf("start the job view: %w", err)
		}
		<-ctx.Done()
		return nil
	}
	return ui, run, nil
}

// jobView serves the view to whom authenticate has let through.
func jobView(view http.Handler) echo.HandlerFunc {
	return func(c echo.Context) error {
		if m := c.Request().Method; m != http.MethodGet && m != http.MethodHead {
			return webhook.Errorf(webhook.CodeForbidden,
				"The job view changes nothing: what is deleted or cancelled there would leave no record. Use the API.")
		}
		view.ServeHTTP(c.Response(), c.Request())
		return nil
	}
}

func isJobView(path string) bool {
	return path == jobViewPath || strings.HasPrefix(path, jobViewPath+"/")
}

// password is the API key that an Authorization header carries as the password of
// Basic authentication (RFC 7617), which is all that a browser can send.
func password(r *http.Request) string {
	_, key, _ := r.BasicAuth()
	return key
}

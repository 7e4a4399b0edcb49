package api

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// listInstances shows what runs: the one that started last first, and dead ones for
// an hour.
func (a *API) listInstances(c echo.Context) error {
	query, err := Query(c, "limit", "cursor")
	if err != nil {
		return err
	}
	limit, err := pageLimit(query)
	if err != nil {
		return err
	}
	after, err := decodeInstanceCursor(query.Get("cursor"))
	if err != nil {
		return err
	}
	var instances []webhook.Instance
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		instances, err = postgres.Instances(ctx, conn, after, limit+1, webhook.StaleAfter)
		return err
	})
	if err != nil {
		return err
	}
	return writePage(c, instances, limit, func(last webhook.Instance) string {
		return encodeInstanceCursor(postgres.InstancePosition{StartedAt: last.StartedAt, ID: last.ID})
	})
}

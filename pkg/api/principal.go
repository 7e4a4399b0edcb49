package api

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// principalKey is where a request's principal is kept in its echo.Context.
const principalKey = "fairhook.principal"

// SetPrincipal says who makes a request. Middleware does that once it has
// checked the key.
func SetPrincipal(c echo.Context, p webhook.Principal) { c.Set(principalKey, p) }

// PrincipalOf is who makes a request: nobody, where no middleware has said so.
func PrincipalOf(c echo.Context) webhook.Principal {
	if p, ok := c.Get(principalKey).(webhook.Principal); ok {
		return p
	}
	return webhook.Nobody()
}

// ownWebhook lets requests for a webhook pass only if it is the principal's
// business; to others it does not exist. It belongs on every route below
// /v1/webhooks/:id, so that no handler need think of tenants.
func (a *API) ownWebhook(next echo.HandlerFunc) echo.HandlerFunc {
	return a.own(next, postgres.WebhookTenant, postgres.NoWebhook)
}

// ownEvent is ownWebhook for the routes below /v1/events/:id.
func (a *API) ownEvent(next echo.HandlerFunc) echo.HandlerFunc {
	return a.own(next, postgres.EventTenant, postgres.NoEvent)
}

// own looks up whose the object is and then goes on. Nothing can come in between
// that matters: an object never changes its tenant, and ids are not used again.
func (a *API) own(
	next echo.HandlerFunc,
	tenantOf func(ctx context.Context, q postgres.Querier, id webhook.ID) (string, error),
	missing func(id string) *webhook.Error,
) echo.HandlerFunc {
	return func(c echo.Context) error {
		p := PrincipalOf(c)
		if p.Tenant == nil {
			return next(c)
		}
		id, err := pathID(c, missing)
		if err != nil {
			return err
		}
		var tenant string
		ctx := c.Request().Context()
		err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
			tenant, err = tenantOf(ctx, conn, id)
			return err
		})
		if err != nil {
			return err
		}
		if !p.Covers(tenant) {
			return missing(id.String())
		}
		return next(c)
	}
}

package api

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/schema"
	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// putEventType is PUT /v1/event-types/{name}: it declares a type, or replaces
// what was declared of it.
func (a *API) putEventType(c echo.Context) error {
	if err := mayChangeEventTypes(c); err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	body, err := ReadBody(c, a.maxBodyBytes)
	if err != nil {
		return err
	}
	t, err := newEventType(pathName(c), body)
	if err != nil {
		return err
	}
	var created bool
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		created, err = postgres.PutEventType(ctx, conn, t)
		return err
	})
	if err != nil {
		return err
	}
	a.eventTypeChanged(t.Name)
	status := http.StatusOK
	if created {
		status = http.StatusCreated
		c.Response().Header().Set(echo.HeaderLocation, "/v1/event-types/"+t.Name)
	}
	return writeEventType(c, status, t)
}

// newEventType makes an event type of a declaration's body. The error is a
// *webhook.Error that lists all that is wrong.
func newEventType(name string, body []byte) (*webhook.EventType, error) {
	o, err := strictjson.Parse(body, "", "description", "schema", "name", "created_at", "updated_at")
	if err != nil {
		return nil, err
	}
	t := &webhook.EventType{Name: name, Description: o.String("description")}
	if o.Has("schema") {
		t.Schema = slices.Clone(o.Raw("schema"))
	}
	faults := slices.Concat(o.Faults(), t.Check())
	if o.Given("name") && o.String("name") != name {
		faults = append(faults, webhook.FieldError{Pointer: "/name", Detail: "must be the name in the path, or absent"})
	}
	for _, field := range []string{"created_at", "updated_at"} {
		if o.Given(field) {
			faults = append(faults, webhook.FieldError{Pointer: "/" + field, Detail: "is set by Fairhook and cannot be chosen"})
		}
	}
	if t.Schema != nil {
		_, wrong := schema.Compile(t.Schema)
		for _, f := range wrong {
			f.Pointer = "/schema" + f.Pointer
			faults = append(faults, f)
		}
	}
	if len(faults) > 0 {
		return nil, &webhook.Error{
			Code:    webhook.CodeInvalid,
			Message: "The event type breaks rules.",
			Fields:  faults[:min(len(faults), maxFaults)],
		}
	}
	return t, nil
}

func (a *API) getEventType(c echo.Context) error {
	if _, err := Query(c); err != nil {
		return err
	}
	name, err := declarableName(c)
	if err != nil {
		return err
	}
	var t *webhook.EventType
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		t, err = postgres.EventType(ctx, conn, name)
		return err
	})
	if err != nil {
		return err
	}
	return writeEventType(c, http.StatusOK, t)
}

// listEventTypes is GET /v1/event-types: in the order of their names.
func (a *API) listEventTypes(c echo.Context) error {
	query, err := Query(c, "limit", "cursor")
	if err != nil {
		return err
	}
	limit, err := pageLimit(query)
	if err != nil {
		return err
	}
	after, err := decodeNameCursor(query.Get("cursor"))
	if err != nil {
		return err
	}
	var types []*webhook.EventType
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		types, err = postgres.EventTypes(ctx, conn, after, limit+1)
		return err
	})
	if err != nil {
		return err
	}
	p := newPage(c, types, limit, func(last *webhook.EventType) string { return encodeNameCursor(last.Name) })
	envelopes := page[webhook.EventType]{Data: make([]webhook.EventType, len(p.Data)), NextCursor: p.NextCursor}
	for i, t := range p.Data {
		envelopes.Data[i] = *t
		envelopes.Data[i].Schema = nil
	}
	body, err := encodeJSON(envelopes)
	if err != nil {
		return fmt.Errorf("encode a list of event types: %w", err)
	}
	if body, err = insertSchemas(body, p.Data); err != nil {
		return err
	}
	writeBody(c, http.StatusOK, body)
	return nil
}

func (a *API) deleteEventType(c echo.Context) error {
	if err := mayChangeEventTypes(c); err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	name, err := declarableName(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) error { return postgres.DeleteEventType(ctx, conn, name) })
	if err != nil {
		return err
	}
	a.eventTypeChanged(name)
	return c.NoContent(http.StatusNoContent)
}

// mayChangeEventTypes keeps those who act for one tenant from changing what all
// tenants share.
func mayChangeEventTypes(c echo.Context) error {
	if PrincipalOf(c).Tenant != nil {
		return webhook.Errorf(webhook.CodeForbidden, "Event types are shared by all tenants, and the API key is bound to one.")
	}
	return nil
}

// eventTypeChanged says that a change of an event type has been committed.
func (a *API) eventTypeChanged(name string) {
	if a.catalog != nil {
		a.catalog.InvalidateEventType(name)
	}
}

// pathName is the event type's name in the path. It may be anything.
func pathName(c echo.Context) string {
	name := c.Param("name")
	if decoded, err := url.PathUnescape(name); err == nil {
		return decoded
	}
	return name
}

// declarableName is pathName, or the error for an event type that does not exist
// when there can be none of that name.
func declarableName(c echo.Context) (string, error) {
	name := pathName(c)
	if webhook.CheckEventType(name) != "" {
		return "", postgres.NoEventType(shown(name))
	}
	return name, nil
}

func writeEventType(c echo.Context, status int, t *webhook.EventType) error {
	envelope := *t
	envelope.Schema = nil
	body, err := encodeJSON(envelope)
	if err != nil {
		return fmt.Errorf("encode event type %s: %w", t.Name, err)
	}
	if body, err = insertSchemas(body, []*webhook.EventType{t}); err != nil {
		return err
	}
	writeBody(c, status, body)
	return nil
}

// insertSchemas puts the schemas of event types into a document in which each of
// them, in this order, has none. Their bytes stay as they are: encoding/json
// would compact them.
func insertSchemas(body []byte, types []*webhook.EventType) ([]byte, error) {
	// This text appears nowhere else: within a string its quotes would be
	// escaped.
	const placeholder = `"schema":null`
	var whole bytes.Buffer
	for _, t := range types {
		before, after, found := bytes.Cut(body, []byte(placeholder))
		if !found {
			return nil, fmt.Errorf("encode event type %s: no place for its schema", t.Name)
		}
		whole.Write(before)
		whole.WriteString(placeholder[:len(placeholder)-len("null")])
		if t.Schema == nil {
			whole.WriteString("null")
		} else {
			whole.Write(t.Schema)
		}
		body = after
	}
	whole.Write(body)
	return whole.Bytes(), nil
}

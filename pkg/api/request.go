package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// DefaultMaxBodyBytes is the largest request body that is accepted unless
// configured otherwise: 1 MiB.
const DefaultMaxBodyBytes = 1 << 20

// trustedLength is up to which length a body's buffer is made before its bytes
// have come: a client that only promises a body must not cost us its size.
const trustedLength = 64 << 10

// ReadBody reads a request's body, of at most limit bytes. The error is a
// *webhook.Error with CodeTooLarge that names the limit, one with CodeMalformed
// for a body that broke off, or an *echo.HTTPError for a body that is encoded
// (415) or did not come in time (408). A *webhook.Error of the body's own reader
// is returned as it is. A body that middleware has read is returned again.
func ReadBody(c echo.Context, limit int64) ([]byte, error) {
	if body, read := c.Get(bodyKey).([]byte); read {
		return body, nil
	}
	body, err := readBody(c, limit)
	if err == nil {
		c.Set(bodyKey, body)
	}
	return body, err
}

// bodyKey is where a request's body is kept in its echo.Context.
const bodyKey = "fairhook.body"

func readBody(c echo.Context, limit int64) ([]byte, error) {
	r := c.Request()
	if encoding := r.Header.Get(echo.HeaderContentEncoding); encoding != "" && encoding != "identity" {
		return nil, echo.NewHTTPError(http.StatusUnsupportedMediaType,
			"Send the body without Content-Encoding: what receivers get is signed byte for byte.")
	}
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	body, err := readAll(http.MaxBytesReader(c.Response(), r.Body, limit), r.ContentLength)
	var (
		over    *http.MaxBytesError
		network net.Error
		own     *webhook.Error
	)
	switch {
	case err == nil:
		return body, nil
	case errors.As(err, &own): // there is no memory for it
		return nil, own
	case errors.As(err, &over):
		return nil, tooLarge(limit)
	case errors.As(err, &network) && network.Timeout():
		return nil, echo.NewHTTPError(http.StatusRequestTimeout, "The body did not arrive in time.")
	default:
		return nil, webhook.Errorf(webhook.CodeMalformed, "The body could not be read to its end.")
	}
}

// readAll reads r to its end. length is how long it says it is, or -1.
func readAll(r io.Reader, length int64) ([]byte, error) {
	if length >= 0 && length <= trustedLength {
		body := make([]byte, length)
		_, err := io.ReadFull(r, body)
		return body, err
	}
	var buffer bytes.Buffer
	buffer.Grow(trustedLength)
	_, err := buffer.ReadFrom(r)
	return buffer.Bytes(), err
}

func tooLarge(limit int64) error {
	return webhook.Errorf(webhook.CodeTooLarge, "The body is larger than the limit of %d bytes.", limit)
}

// Query reads a request's query parameters, of which only the named ones may be
// there, each once and not empty. The error is a *webhook.Error with
// CodeMalformed.
func Query(c echo.Context, names ...string) (url.Values, error) {
	raw := c.Request().URL.RawQuery
	if raw == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, webhook.Errorf(webhook.CodeMalformed, "The query string cannot be parsed.")
	}
	var faults []webhook.FieldError
	for name, all := range values {
		switch {
		case !slices.Contains(names, name):
			faults = append(faults, parameterFault(name, "is not a known parameter"))
		case len(all) > 1:
			faults = append(faults, parameterFault(name, "is given more than once"))
		case all[0] == "":
			faults = append(faults, parameterFault(name, "must not be empty"))
		}
	}
	if len(faults) > 0 {
		return nil, badQuery(faults...)
	}
	return values, nil
}

func parameterFault(name, detail string) webhook.FieldError {
	return webhook.FieldError{Parameter: name, Detail: detail}
}

func badQuery(faults ...webhook.FieldError) error {
	slices.SortFunc(faults, compareFaults)
	return &webhook.Error{
		Code:    webhook.CodeMalformed,
		Message: "The query string has parameters that this request does not take, or not like this.",
		Fields:  faults[:min(len(faults), maxFaults)],
	}
}

// The limits of a list.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// pageLimit reads the parameter limit.
func pageLimit(query url.Values) (int, error) {
	text := query.Get("limit")
	if text == "" {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxLimit {
		return 0, badQuery(parameterFault("limit", fmt.Sprintf("must be a whole number between 1 and %d", maxLimit)))
	}
	return n, nil
}

// page is a list's answer.
type page[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor"` // nil on the last page
}

// writePage answers with one page, as newPage makes it.
func writePage[T any](c echo.Context, all []T, limit int, cursor func(last T) string) error {
	return WriteJSON(c, http.StatusOK, newPage(c, all, limit, cursor))
}

// newPage makes one page, and sets the answer's Link header if more follow. all
// holds one item more than limit where there are more pages; cursor makes the
// next page's cursor from the last item that is shown.
func newPage[T any](c echo.Context, all []T, limit int, cursor func(last T) string) page[T] {
	if len(all) > limit {
		return pageBefore(c, all[:limit], cursor(all[limit-1]))
	}
	return pageBefore(c, all, "")
}

// pageBefore makes a page, however many items it has, and sets the answer's Link header
// if more follow: next is the next page's cursor, empty on the last page.
func pageBefore[T any](c echo.Context, items []T, next string) page[T] {
	p := page[T]{Data: items}
	if p.Data == nil {
		p.Data = []T{}
	}
	if next != "" {
		p.NextCursor = &next

		u := *c.Request().URL
		query := u.Query()
		query.Set("cursor", next)
		link := url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: query.Encode()}
		c.Response().Header().Set("Link", "<"+link.RequestURI()+`>; rel="next"`)
	}
	return p
}

// listByID answers with a page of a list whose items belong to tenants and are in
// the order of their ids, newest first. query has its parameters limit, cursor and
// tenant; kind is that of its cursors. read reads the items of one tenant, or of
// all, that are older than before, in a transaction; none is read for a tenant
// that the principal may not see.
func listByID[T any](
	a *API, c echo.Context, query url.Values, kind byte,
	read func(ctx context.Context, tx postgres.Querier, tenant *string, before webhook.ID, limit int) ([]T, error),
	id func(item T) webhook.ID,
) error {
	limit, err := pageLimit(query)
	if err != nil {
		return err
	}
	before, err := decodeIDCursor(kind, query.Get("cursor"))
	if err != nil {
		return err
	}
	tenant, visible, err := listTenant(c, query)
	if err != nil {
		return err
	}
	var items []T
	if visible {
		ctx := c.Request().Context()
		err = a.inSnapshot(ctx, func(tx pgx.Tx) (err error) {
			items, err = read(ctx, tx, tenant, before, limit+1)
			return err
		})
		if err != nil {
			return err
		}
	}
	return writePage(c, items, limit, func(last T) string { return encodeIDCursor(kind, id(last)) })
}

// pathID reads the id in the path. One that is no id names nothing: that is
// missing(text), the error for an object that does not exist.
func pathID(c echo.Context, missing func(id string) *webhook.Error) (webhook.ID, error) {
	text := c.Param("id")
	id, err := webhook.ParseID(text)
	if err != nil {
		return webhook.ID{}, missing(shown(text))
	}
	return id, nil
}

// shown is text of the caller's as an answer repeats it: quoted, and cut short.
func shown(text string) string {
	const limit = 64
	if len(text) > limit {
		text = text[:limit] + "..."
	}
	return strconv.QuoteToASCII(text)
}

// listTenant is whose objects a list is to show, by its tenant parameter and by
// who asks; nil: everybody's. visible is false when there are none that the
// principal may see.
func listTenant(c echo.Context, query url.Values) (tenant *string, visible bool, err error) {
	p := PrincipalOf(c)
	asked := query.Get("tenant")
	if asked == "" {
		return p.Tenant, true, nil
	}
	if fault := webhook.CheckTenant(asked); fault != "" {
		return nil, false, badQuery(parameterFault("tenant", fault))
	}
	return &asked, p.Covers(asked), nil
}

package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/openapi/openapitest"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// testBundle is the routes on a private database. How errors are rendered is
// package ingest's matter: here a call returns them.
type testBundle struct {
	db   *pgxpool.Pool
	box  *seal.Box
	echo *echo.Echo
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{db: pgtest.DB(t), box: seal.New(seal.Key{}), echo: echo.New()}
	clock, err := postgres.NewClock(t.Context(), b.db)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	b.echo.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			p, said := c.Request().Context().Value(principalKey{}).(webhook.Principal)
			if !said {
				p = webhook.Principal{Scopes: []webhook.Scope{webhook.ScopeAdmin}}
			}
			api.SetPrincipal(c, p)
			return next(c)
		}
	})
	b.echo.HTTPErrorHandler = func(err error, c echo.Context) {
		*c.Request().Context().Value(errorKey{}).(*error) = err
	}
	api.New(api.Config{
		Pool: b.db, Clock: clock, Box: b.box, Guard: guard, MaxBodyBytes: 10_000, TestWait: 300 * time.Millisecond,
		Catalog: catalog.New(catalog.Config{Pool: b.db}),
	}).Register(b.echo)
	return b
}

type (
	errorKey     struct{}
	principalKey struct{} // the principal of a request; without one: an admin of all tenants
)

// call makes a request. body is a JSON text, or empty for none.
func (b *testBundle) call(t *testing.T, method, target, body string) (*httptest.ResponseRecorder, error) {
	t.Helper()
	var failed error
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r = r.WithContext(context.WithValue(t.Context(), errorKey{}, &failed))
	recorder := httptest.NewRecorder()
	b.echo.ServeHTTP(recorder, r)
	if failed == nil {
		checkContract(t, r, body, recorder)
	}
	return recorder, failed
}

// checkContract checks an exchange that went well against the OpenAPI document.
func checkContract(t *testing.T, r *http.Request, body string, recorder *httptest.ResponseRecorder) {
	t.Helper()
	header := recorder.Header().Clone()
	header.Set("X-Request-Id", "test") // package ingest would
	for _, fault := range openapitest.Load().Check(r, []byte(body), recorder.Code, header, recorder.Body.Bytes()) {
		t.Errorf("against the OpenAPI document: %s", fault)
	}
}

// must makes a request that answers with this status, and decodes the answer.
func must[T any](t *testing.T, b *testBundle, status int, method, target, body string) (T, http.Header) {
	t.Helper()
	recorder, err := b.call(t, method, target, body)
	if err != nil || recorder.Code != status {
		t.Fatalf("%s %s: %d, %v; want %d", method, target, recorder.Code, err, status)
	}
	var answer T
	if recorder.Body.Len() > 0 {
		if err := json.NewDecoder(bytes.NewReader(recorder.Body.Bytes())).Decode(&answer); err != nil {
			t.Fatalf("%s %s: %v", method, target, err)
		}
	}
	return answer, recorder.Header()
}

// refused makes a request that fails with this code, and returns its fields as
// "pointer or parameter: detail".
func refused(t *testing.T, b *testBundle, code webhook.Code, method, target, body string) []string {
	t.Helper()
	_, err := b.call(t, method, target, body)
	var e *webhook.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("%s %s: %v, want code %s", method, target, err, code)
	}
	fields := []string{}
	for _, f := range e.Fields {
		fields = append(fields, f.Pointer+f.Parameter+": "+f.Detail)
	}
	return fields
}

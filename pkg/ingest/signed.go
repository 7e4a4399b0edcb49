package ingest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// signedTolerance is how far a signed submission's timestamp may be from the
// database's clock. It is much less than the life of an idempotency key, so that
// a submission that is sent again either is too old or finds its key.
const signedTolerance = signature.DefaultTolerance

// maxSignedID is how long a signed submission's webhook-id may be. As an
// idempotency key it gets the number of an item behind it.
const maxSignedID = 200

// signedKey is where the webhook-id of a signed submission is kept in its
// echo.Context.
const signedKey = "fairhook.signed_id"

// signed lets requests pass whose key requires no signature, or that are signed:
// as Standard Webhooks 1.0.0 describes, with one of the key's signing secrets,
// over exactly the body, within signedTolerance. It belongs on every route that
// submits; limit is the route's own for bodies.
//
// A signed submission's webhook-id is its idempotency key, which is what keeps a
// submission that somebody has recorded from being stored again, on all copies of
// ingest. The signature covers the body, and nothing else of the request: who has
// both the API key and a recorded request could still choose another route for
// it, where the same bytes mean other events under other keys. So the first route
// by which a webhook-id comes is the only one for it, whatever became of the
// submission. One that never arrived can still be turned to another route; hence
// what is not in the body decides over no tenant: to the route for raw bodies the
// API key must be one tenant's.
func (s *Server) signed(limit int64) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			key, _ := c.Get(catalogKey).(*catalog.Key)
			if key == nil {
				return errNoSuchKey // no middleware has let it in
			}
			if !key.RequireSignature {
				return next(c)
			}
			if c.Param("id") != "" && key.Principal.Tenant == nil {
				return webhook.Errorf(webhook.CodeForbidden,
					"The API key requires signatures and is for all tenants. A signature does not cover the webhook in the path: "+
						"use POST /v1/events, or a key for one tenant.")
			}
			body, err := api.ReadBody(c, limit)
			if err != nil {
				return err
			}
			id, err := s.verify(c.Request().Header, key.Secrets, body)
			if err != nil {
				return err
			}
			if err := s.bindRoute(c, key.Principal.KeyID, id); err != nil {
				return err
			}
			c.Set(signedKey, id)
			return next(c) // which is given the very bytes that were verified
		}
	}
}

// verify checks a submission's signature and returns its webhook-id.
func (s *Server) verify(header http.Header, secrets [][]byte, body []byte) (id string, err error) {
	var values [3]string
	for i, name := range []string{signature.HeaderID, signature.HeaderTimestamp, signature.HeaderSignature} {
		all := header.Values(name)
		if len(all) != 1 || all[0] == "" {
			return "", unsigned("the header %s must be there once", name)
		}
		values[i] = all[0]
	}
	id = values[0]
	// A dot separates the id from the timestamp in what is signed.
	if !isVisibleASCII(id, maxSignedID) || strings.Contains(id, ".") {
		return "", unsigned("%s must have 1 to %d visible ASCII characters and no dot", signature.HeaderID, maxSignedID)
	}
	err = signature.Verify(secrets, id, values[1], values[2], body, s.clock.Now(), signedTolerance)
	switch {
	case err == nil:
		return id, nil
	case errors.Is(err, signature.ErrMalformed):
		return "", unsigned("%s must be whole Unix seconds", signature.HeaderTimestamp)
	case errors.Is(err, signature.ErrTooOld):
		return "", unsigned("%s is more than %d seconds in the past", signature.HeaderTimestamp, int(signedTolerance.Seconds()))
	case errors.Is(err, signature.ErrTooNew):
		return "", unsigned("%s is more than %d seconds in the future", signature.HeaderTimestamp, int(signedTolerance.Seconds()))
	case errors.Is(err, signature.ErrNoMatch):
		return "", unsigned("no v1 signature in %s is that of one of its signing secrets over this id, timestamp and body", signature.HeaderSignature)
	}
	return "", fmt.Errorf("verify a submission's signature: %w", err)
}

// bindRoute refuses a signed submission that came by another route before.
func (s *Server) bindRoute(c echo.Context, keyID webhook.ID, id string) error {
	same, err := postgres.ClaimSignedRequest(c.Request().Context(), s.pool, keyID, id, routeFingerprint(c))
	switch {
	case err != nil:
		return fmt.Errorf("bind a signed submission to its route: %w", err)
	case !same:
		return webhook.Errorf(webhook.CodeInvalid,
			"The %s was used on another route, or with another query or Content-Type, within the last 24 hours: give each submission its own.",
			signature.HeaderID)
	}
	return nil
}

// routeFingerprint tells the routes that submit apart, and all outside of the
// body that has a part in what is stored.
func routeFingerprint(c echo.Context) [sha256.Size]byte {
	h := sha256.New()
	write(h, c.Path())
	contentType := c.Request().Header.Get(echo.HeaderContentType)
	switch {
	case c.Param("id") != "": // raw
		write(h, c.Param("id"))
		write(h, c.Request().URL.RawQuery)
		write(h, contentType)
	case isNDJSON(contentType): // where a batch's events begin and end
		write(h, "ndjson")
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func unsigned(format string, args ...any) error {
	return webhook.Errorf(webhook.CodeUnauthorized, "The API key requires signed submissions: "+format+".", args...)
}

// signedID is the webhook-id of a signed submission, or an empty text.
func signedID(c echo.Context) string {
	id, _ := c.Get(signedKey).(string)
	return id
}

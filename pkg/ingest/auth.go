package ingest

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/api"
	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// bootstrapKey is the configured API key, kept as its hash. Hashes have one
// length and are compared in constant time, so that the time of an answer tells
// nothing about the key.
type bootstrapKey struct {
	hash [sha256.Size]byte
	set  bool
}

func newBootstrapKey(text string) *bootstrapKey {
	return &bootstrapKey{hash: sha256.Sum256([]byte(text)), set: text != ""}
}

// is reports whether text is the key. Without a configured key none is.
func (k *bootstrapKey) is(text string) bool {
	hash := sha256.Sum256([]byte(text))
	same := subtle.ConstantTimeCompare(hash[:], k.hash[:]) == 1
	return k.set && same
}

// bootstrap is what the configured key may do: everything.
var bootstrap = &catalog.Key{Principal: webhook.Principal{Scopes: []webhook.Scope{webhook.ScopeAdmin}}}

// bearer is the key that an Authorization header carries (RFC 6750, section
// 2.1), or an empty text.
func bearer(authorization string) string {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// rule is what a route asks of the key with which it is called.
type rule struct {
	scope webhook.Scope
	// allTenants says that what the route changes or shows is everybody's, so that a
	// key of one tenant will not do.
	allTenants bool
}

// rules are what the routes ask. A route that is not here asks for an admin's
// key that is for all tenants.
var rules = map[string]rule{
	"POST /v1/events":              {scope: webhook.ScopeSubmit},
	"POST /v1/events/batch":        {scope: webhook.ScopeSubmit},
	"POST /v1/webhooks/:id/events": {scope: webhook.ScopeSubmit},

	"GET /v1/events":              {scope: webhook.ScopeRead},
	"GET /v1/events/:id":          {scope: webhook.ScopeRead},
	"GET /v1/events/:id/attempts": {scope: webhook.ScopeRead},
	"GET /v1/events/:id/explain":  {scope: webhook.ScopeRead},

	"GET /v1/deliveries": {scope: webhook.ScopeRead},

	"GET /v1/webhooks":                {scope: webhook.ScopeRead},
	"GET /v1/webhooks/:id":            {scope: webhook.ScopeRead},
	"GET /v1/webhooks/:id/deliveries": {scope: webhook.ScopeRead},
	"GET /v1/webhooks/:id/stats":      {scope: webhook.ScopeRead},

	"POST /v1/webhooks":            {scope: webhook.ScopeManage},
	"PATCH /v1/webhooks/:id":       {scope: webhook.ScopeManage},
	"DELETE /v1/webhooks/:id":      {scope: webhook.ScopeManage},
	"POST /v1/webhooks/:id/pause":  {scope: webhook.ScopeManage},
	"POST /v1/webhooks/:id/resume": {scope: webhook.ScopeManage},
	"GET /v1/webhooks/:id/secrets": {scope: webhook.ScopeManage},
	"POST /v1/webhooks/:id/test":   {scope: webhook.ScopeManage},

	"GET /v1/webhooks/:id/tests/:test": {scope: webhook.ScopeRead},

	"POST /v1/webhooks/:id/secrets":              {scope: webhook.ScopeManage},
	"DELETE /v1/webhooks/:id/secrets/:secret_id": {scope: webhook.ScopeManage},

	"GET /v1/event-types":          {scope: webhook.ScopeRead},
	"GET /v1/event-types/:name":    {scope: webhook.ScopeRead},
	"PUT /v1/event-types/:name":    {scope: webhook.ScopeManage, allTenants: true},
	"DELETE /v1/event-types/:name": {scope: webhook.ScopeManage, allTenants: true},

	"POST /v1/keys":             {scope: webhook.ScopeAdmin},
	"GET /v1/keys":              {scope: webhook.ScopeAdmin},
	"GET /v1/keys/:id":          {scope: webhook.ScopeAdmin},
	"DELETE /v1/keys/:id":       {scope: webhook.ScopeAdmin},
	"POST /v1/keys/:id/secrets": {scope: webhook.ScopeAdmin},

	"GET /v1/instances": {scope: webhook.ScopeRead, allTenants: true},
}

// authenticate lets only calls with a valid key reach the API, whether or not
// the route exists, and only those that the key allows: by its scopes, and from
// its networks. Probes, metrics, the API's description and webhooks' public keys
// need none.
func (s *Server) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		if !needsKey(r.URL.Path) || routed(c) && !needsKey(c.Path()) {
			return next(c)
		}
		given := r.Header.Values(echo.HeaderAuthorization)
		switch len(given) {
		case 0:
			return webhook.Errorf(webhook.CodeUnauthorized, "Send an API key: Authorization: Bearer <key>.")
		case 1:
		default:
			return webhook.Errorf(webhook.CodeUnauthorized, "Send one Authorization header.")
		}
		text := bearer(given[0])
		if text == "" && isJobView(r.URL.Path) {
			text = password(r)
		}
		key, err := s.findKey(c, text)
		if err != nil {
			return err
		}
		p := key.Principal
		scopeOf(c).keyID = p.KeyID
		if client := s.clientAddr(r); !webhook.AllowsAddr(p.Networks, client) {
			return webhook.Errorf(webhook.CodeForbidden, "The API key may not be used from %s.", shownAddr(client))
		}
		if routed(c) {
			if err := permit(&p, r.Method+" "+c.Path()); err != nil {
				return err
			}
		}
		s.keyUse.record(p.KeyID)
		api.SetPrincipal(c, p)
		c.Set(catalogKey, key)
		return next(c)
	}
}

// catalogKey is where a request's *catalog.Key is kept in its echo.Context.
const catalogKey = "fairhook.key"

// findKey is the key with this text, if it is valid.
func (s *Server) findKey(c echo.Context, text string) (*catalog.Key, error) {
	if s.key.is(text) {
		return bootstrap, nil
	}
	hash, possible := webhook.HashKeyText(text)
	if !possible {
		return nil, errNoSuchKey
	}
	key, err := s.catalog.Key(c.Request().Context(), hash)
	var known *webhook.Error
	switch {
	case errors.As(err, &known) && known.Code == webhook.CodeNotFound:
		return nil, webhook.Errorf(webhook.CodeUnauthorized, "%s", known.Message)
	case err != nil:
		return nil, fmt.Errorf("find an API key: %w", err)
	}
	return key, nil
}

var errNoSuchKey = webhook.Errorf(webhook.CodeUnauthorized, "The API key is not valid.")

// routed reports whether the request has a route, so that something is asked of
// its key. What there is no route or no method for is answered so to any key.
func routed(c echo.Context) bool {
	return c.Path() != "" && c.Get(echo.ContextKeyHeaderAllow) == nil
}

// permit decides whether a principal may call a route.
func permit(p *webhook.Principal, route string) error {
	asked, known := rules[route]
	if !known {
		asked = rule{scope: webhook.ScopeAdmin, allTenants: true}
	}
	switch {
	case !p.May(asked.scope):
		return webhook.Errorf(webhook.CodeForbidden, "The API key does not have the scope %q.", asked.scope)
	case asked.allTenants && p.Tenant != nil:
		return webhook.Errorf(webhook.CodeForbidden, "The API key is for one tenant, and this concerns all.")
	}
	return nil
}

func needsKey(path string) bool {
	switch path {
	case "/livez", "/readyz", "/metrics", "/openapi.json", "/docs", api.PublicKeysRoute:
		return false
	}
	return true
}

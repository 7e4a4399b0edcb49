package ingest

import (
	"crypto/sha256"
	"crypto/subtle"
	"strings"

	"github.com/labstack/echo/v4"

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

// admits reports whether an Authorization header carries the key (RFC 6750,
// section 2.1). Without a configured key none does.
func (k *bootstrapKey) admits(authorization string) bool {
	scheme, token, _ := strings.Cut(authorization, " ")
	hash := sha256.Sum256([]byte(strings.TrimLeft(token, " ")))
	same := subtle.ConstantTimeCompare(hash[:], k.hash[:]) == 1
	return k.set && strings.EqualFold(scheme, "Bearer") && same
}

// authenticate lets only calls with a valid key reach the API, whether or not
// the route exists. Probes and metrics need none.
func (s *Server) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		if !needsKey(r.URL.Path) {
			return next(c)
		}
		given := r.Header.Get(echo.HeaderAuthorization)
		if given == "" {
			return webhook.Errorf(webhook.CodeUnauthorized, "Send an API key: Authorization: Bearer <key>.")
		}
		if !s.key.admits(given) {
			return webhook.Errorf(webhook.CodeUnauthorized, "The API key is not valid.")
		}
		return next(c)
	}
}

func needsKey(path string) bool {
	return path != "/livez" && path != "/readyz" && path != "/metrics"
}

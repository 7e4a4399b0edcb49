package api

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// defaultOverlap and maxOverlap are how long, in seconds, earlier secrets of an
	// API key or a webhook stay valid beside a new one.
	defaultOverlap = 24 * 60 * 60
	maxOverlap     = 30 * 24 * 60 * 60
	// maxKeySecrets is how many signing secrets an API key has at once: every
	// signature is compared with each of them.
	maxKeySecrets = 10
)

var keyFields = []string{"description", "tenant", "scopes", "allowed_cidrs", "expires_at", "require_signature"}

// createdKey is what creation answers: the one time that the key's text is
// shown, and its signing secret.
type createdKey struct {
	*webhook.Key
	Text          string `json:"key"`
	SigningSecret string `json:"signing_secret,omitempty"`
}

func (a *API) createKey(c echo.Context) error {
	if _, err := Query(c); err != nil {
		return err
	}
	body, err := ReadBody(c, a.maxBodyBytes)
	if err != nil {
		return err
	}
	k, err := a.newKey(body)
	if err != nil {
		return err
	}
	p := PrincipalOf(c)
	if excess := p.Exceeds(k); excess != "" {
		return webhook.Errorf(webhook.CodeForbidden, "%s", excess)
	}
	text := webhook.NewKeyText()
	hash, _ := webhook.HashKeyText(text.Reveal())
	k.Hint = webhook.KeyHint(text)
	created := createdKey{Key: k, Text: text.Reveal()}

	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		if err := postgres.InsertKey(ctx, tx, k, hash); err != nil {
			return err
		}
		if !k.RequireSignature {
			return nil
		}
		secret := signature.NewSecret()
		created.SigningSecret = secret.Reveal()
		_, err := postgres.InsertKeySecret(ctx, tx, webhook.NewID(a.clock.Now()), k.ID,
			a.box.Seal([]byte(secret.Reveal()), sealContext(k.ID)))
		return err
	})
	if err != nil {
		return err
	}
	a.keyChanged(hash)
	c.Response().Header().Set(echo.HeaderLocation, "/v1/keys/"+k.ID.String())
	noStore(c)
	return WriteJSON(c, http.StatusCreated, created)
}

// newKey makes a key of a creation's body. The error is a *webhook.Error that
// lists all that is wrong.
func (a *API) newKey(body []byte) (*webhook.Key, error) {
	o, err := strictjson.Parse(body, "", keyFields...)
	if err != nil {
		return nil, err
	}
	now := a.clock.Now()
	k := &webhook.Key{
		ID:               webhook.NewID(now),
		Description:      o.String("description"),
		Scopes:           []webhook.Scope{},
		AllowedCIDRs:     o.Strings("allowed_cidrs"),
		RequireSignature: o.Bool("require_signature"),
		ExpiresAt:        o.Time("expires_at"),
	}
	if k.AllowedCIDRs == nil {
		k.AllowedCIDRs = []string{}
	}
	if o.Has("tenant") {
		tenant := o.String("tenant")
		k.Tenant = &tenant
	}
	for _, scope := range o.Strings("scopes") {
		k.Scopes = append(k.Scopes, webhook.Scope(scope))
	}
	var faults []webhook.FieldError
	// For all tenants is the widest that a key can be: that is said, not left out.
	if !o.Given("tenant") {
		faults = append(faults, webhook.FieldError{Pointer: "/tenant", Detail: "is required: a tenant, or null for all"})
	}
	faults = required(o, faults, "scopes")
	if faults = slices.Concat(o.Faults(), faults, k.Check(now)); len(faults) > 0 {
		// A field of the wrong type has been read as empty: once is enough.
		slices.SortStableFunc(faults, compareFaults)
		faults = slices.CompactFunc(faults, func(a, b webhook.FieldError) bool { return a.Pointer == b.Pointer })
		return nil, &webhook.Error{
			Code: webhook.CodeInvalid, Message: "The API key breaks rules.", Fields: faults[:min(len(faults), maxFaults)],
		}
	}
	return k, nil
}

func (a *API) listKeys(c echo.Context) error {
	query, err := Query(c, "tenant", "limit", "cursor")
	if err != nil {
		return err
	}
	return listByID(a, c, query, keyCursorKind, postgres.Keys, func(k *webhook.Key) webhook.ID { return k.ID })
}

func (a *API) getKey(c echo.Context) error {
	id, err := pathID(c, postgres.NoKey)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	var k *webhook.Key
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		k, err = postgres.Key(ctx, conn, id, PrincipalOf(c).Tenant)
		return err
	})
	if err != nil {
		return err
	}
	return WriteJSON(c, http.StatusOK, k)
}

// revokeKey is DELETE: the key ends for good, and its row stays as a record.
func (a *API) revokeKey(c echo.Context) error {
	id, err := pathID(c, postgres.NoKey)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	var hash webhook.KeyHash
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		hash, err = postgres.RevokeKey(ctx, conn, id, PrincipalOf(c).Tenant)
		return err
	})
	if err != nil {
		return err
	}
	a.keyChanged(hash)
	return c.NoContent(http.StatusNoContent)
}

// keySecret is what rotation answers: the one time that the signing secret is
// shown.
type keySecret struct {
	ID            webhook.ID `json:"id"`
	SigningSecret string     `json:"signing_secret"`
	CreatedAt     time.Time  `json:"created_at"`
}

// rotateKeySecret gives a key a new signing secret. Those before stay valid for
// a while, so that producers can be changed over one by one.
func (a *API) rotateKeySecret(c echo.Context) error {
	id, err := pathID(c, postgres.NoKey)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	body, err := ReadBody(c, a.maxBodyBytes)
	if err != nil {
		return err
	}
	overlap, err := parseOverlap(body)
	if err != nil {
		return err
	}
	secret := signature.NewSecret()
	answer := keySecret{ID: webhook.NewID(a.clock.Now()), SigningSecret: secret.Reveal()}
	sealed := a.box.Seal([]byte(secret.Reveal()), sealContext(id))
	var hash webhook.KeyHash
	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		k, err := postgres.LockKey(ctx, tx, id, PrincipalOf(c).Tenant)
		switch {
		case err != nil:
			return err
		case k.RevokedAt != nil:
			return webhook.Errorf(webhook.CodeConflict, "The API key has been revoked.")
		case !k.RequireSignature:
			return webhook.Errorf(webhook.CodeConflict, "The API key does not require signatures, so it has no signing secrets.")
		}
		left, err := postgres.ExpireKeySecrets(ctx, tx, id, overlap)
		if err != nil {
			return err
		}
		if left >= maxKeySecrets {
			return webhook.Errorf(webhook.CodeConflict,
				"The API key has %d signing secrets that are valid still, which is as many as it may have. Let them expire sooner.", left)
		}
		if answer.CreatedAt, err = postgres.InsertKeySecret(ctx, tx, answer.ID, id, sealed); err != nil {
			return err
		}
		hash, err = postgres.KeyHashOf(ctx, tx, id)
		return err
	})
	if err != nil {
		return err
	}
	a.keyChanged(hash)
	noStore(c)
	return WriteJSON(c, http.StatusCreated, answer)
}

// parseOverlap reads the body of a rotation of an API key's secret.
func parseOverlap(body []byte) (time.Duration, error) {
	o, err := strictjson.Parse(body, "", overlapField)
	if err != nil {
		return 0, err
	}
	overlap, faults := readOverlap(o, nil)
	return overlap, invalidRotation(o, faults)
}

// overlapField says how long the secrets before a new one stay valid.
const overlapField = "expire_previous_after_seconds"

// readOverlap reads overlapField, and adds what is wrong with it to faults.
func readOverlap(o *strictjson.Object, faults []webhook.FieldError) (time.Duration, []webhook.FieldError) {
	seconds := defaultOverlap
	if o.Has(overlapField) {
		seconds = o.Int(overlapField)
	}
	if seconds < 0 || seconds > maxOverlap {
		faults = append(faults, webhook.FieldError{Pointer: "/" + overlapField, Detail: fmt.Sprintf("must be between 0 and %d", maxOverlap)})
	}
	return time.Duration(seconds) * time.Second, faults
}

// invalidRotation is the error for what is wrong with a rotation's body, one fault
// per field; nil if nothing is.
func invalidRotation(o *strictjson.Object, faults []webhook.FieldError) error {
	// A field of the wrong type has been read as its zero value.
	all := slices.Concat(o.Faults(), faults)
	if len(all) == 0 {
		return nil
	}
	slices.SortStableFunc(all, compareFaults)
	all = slices.CompactFunc(all, func(a, b webhook.FieldError) bool { return a.Pointer == b.Pointer })
	return &webhook.Error{Code: webhook.CodeInvalid, Message: "The rotation breaks rules.", Fields: all}
}

// keyChanged says that a change of an API key has been committed.
func (a *API) keyChanged(hash webhook.KeyHash) { a.catalog.InvalidateKey(hash) }

package api

import (
	"context"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// maxFaults is how many faults an answer lists.
const maxFaults = 50

// The fields that a webhook's owner chooses, and those that an answer has but no
// request may set.
var (
	chosenFields = []string{
		"tenant", "url", "description", "event_types", "status", "headers", "timeout_seconds",
		"max_in_flight", "rate_per_second", "burst", "weight", "retry_schedule_seconds", "max_age_seconds", "accept_per_second", "max_backlog",
		"allowed_cidrs", "ordering", "ordering_skip_after", "auto_disable_after_seconds", "signatures", "signature_template",
		"secret", "private_key", "auth", "tls",
	}
	setByFairhook = []string{"id", "disabled_reason", "created_at", "updated_at"}
	webhookFields = slices.Concat(chosenFields, setByFairhook)
)

// createdWebhook is what creation answers: the one time that the secret comes
// with the webhook, and its public key if it has one.
type createdWebhook struct {
	*webhook.Webhook
	Secret    string `json:"secret"`
	PublicKey string `json:"public_key,omitempty"`
}

func (a *API) createWebhook(c echo.Context) error {
	if _, err := Query(c); err != nil {
		return err
	}
	body, err := ReadBody(c, a.maxBodyBytes)
	if err != nil {
		return err
	}
	w, secrets, err := a.newWebhook(body)
	if err != nil {
		return err
	}
	if p := PrincipalOf(c); !p.Covers(w.Tenant) {
		return webhook.Errorf(webhook.CodeForbidden, "The API key is for one tenant, and makes webhooks for that tenant alone.")
	}
	created := createdWebhook{Webhook: w}
	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		if err := a.sealCredentials(ctx, tx, w); err != nil {
			return err
		}
		if err := postgres.InsertWebhook(ctx, tx, w); err != nil {
			return err
		}
		if err := postgres.StoreCredentials(ctx, tx, w); err != nil {
			return err
		}
		for _, s := range secrets {
			if s.kind == webhook.SecretEd25519 {
				created.PublicKey = signature.PublicKeyText(s.public)
			} else {
				created.Secret = s.text.Reveal()
			}
			if _, err := a.insertSecret(ctx, tx, w.ID, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.changed(w)
	header := c.Response().Header()
	header.Set(echo.HeaderLocation, "/v1/webhooks/"+w.ID.String())
	noStore(c)
	return WriteJSON(c, http.StatusCreated, created)
}

// newWebhook makes a webhook and its secrets of a creation's body: a symmetric
// one, which it may come to need, and a private key if it signs with one. The error
// is a *webhook.Error that lists all that is wrong.
func (a *API) newWebhook(body []byte) (*webhook.Webhook, []secret, error) {
	o, err := strictjson.Parse(body, "", webhookFields...)
	if err != nil {
		return nil, nil, err
	}
	w := &webhook.Webhook{ID: webhook.NewID(a.clock.Now())}
	resetWebhook(w)
	w.Tenant = o.String("tenant")
	faults := a.apply(o, w)
	symmetric := newSecret(webhook.SecretSymmetric)
	if o.Has("secret") {
		if symmetric, err = givenSecret(o.String("secret")); err != nil {
			faults = append(faults, webhook.FieldError{Pointer: "/secret", Detail: err.Error()})
		}
	}
	secrets := []secret{symmetric.spelled(w)}
	switch {
	case o.Has("private_key") && !w.Uses(webhook.SchemeStandardEd25519):
		faults = append(faults, webhook.FieldError{Pointer: "/private_key", Detail: `is used only with the signature "standard_ed25519"`})
	case o.Has("private_key"):
		key, err := givenPrivateKey(o.String("private_key"))
		if err != nil {
			faults = append(faults, webhook.FieldError{Pointer: "/private_key", Detail: err.Error()})
		}
		secrets = append(secrets, key)
	case w.Uses(webhook.SchemeStandardEd25519):
		secrets = append(secrets, newSecret(webhook.SecretEd25519))
	}
	if faults := settle(o, required(o, faults, "tenant", "url"), w); len(faults) > 0 {
		return nil, nil, invalidWebhook(faults)
	}
	return w, secrets, nil
}

// resetWebhook sets every field that has a default to it.
func resetWebhook(w *webhook.Webhook) {
	w.EventTypes = []string{"*"}
	w.State = webhook.StateActive
	w.Headers = map[string]webhook.Secret{}
	w.Auth, w.TLS = nil, nil
	w.TimeoutSeconds = webhook.DefaultTimeoutSeconds
	w.MaxInFlight = webhook.DefaultMaxInFlight
	w.RatePerSecond, w.Burst = nil, nil
	w.Weight = webhook.DefaultWeight
	w.RetrySchedule = webhook.DefaultRetrySchedule()
	w.MaxAgeSeconds = webhook.DefaultMaxAgeSeconds
	w.AcceptPerSecond = nil
	w.MaxBacklog = webhook.DefaultMaxBacklog
	w.AllowedCIDRs = []string{}
	w.Signatures, w.SignatureTemplate = []webhook.Scheme{webhook.SchemeStandard}, nil
	w.AutoDisableAfterSeconds = nil
	w.Ordering, w.OrderingSkipAfter = webhook.OrderingNone, nil
}

// apply writes the given fields into w: null means the default. The tenant and
// the secrets are left to the caller. It returns faults that neither o nor
// w.Check knows of.
func (a *API) apply(o *strictjson.Object, w *webhook.Webhook) []webhook.FieldError {
	var faults []webhook.FieldError
	defaults := &webhook.Webhook{}
	resetWebhook(defaults)
	set(o, "url", &w.URL, "", o.String)
	set(o, "description", &w.Description, "", o.String)
	set(o, "event_types", &w.EventTypes, defaults.EventTypes, o.Strings)
	set(o, "timeout_seconds", &w.TimeoutSeconds, defaults.TimeoutSeconds, o.Int)
	set(o, "max_in_flight", &w.MaxInFlight, defaults.MaxInFlight, o.Int)
	set(o, "rate_per_second", &w.RatePerSecond, defaults.RatePerSecond, o.Float)
	set(o, "burst", &w.Burst, defaults.Burst, optionalInt(o))
	set(o, "auto_disable_after_seconds", &w.AutoDisableAfterSeconds, defaults.AutoDisableAfterSeconds, optionalInt(o))
	set(o, "weight", &w.Weight, defaults.Weight, o.Int)
	set(o, "retry_schedule_seconds", &w.RetrySchedule, defaults.RetrySchedule, o.Ints)
	set(o, "max_age_seconds", &w.MaxAgeSeconds, defaults.MaxAgeSeconds, o.Int)
	set(o, "accept_per_second", &w.AcceptPerSecond, defaults.AcceptPerSecond, o.Float)
	set(o, "max_backlog", &w.MaxBacklog, defaults.MaxBacklog, o.Int)
	set(o, "allowed_cidrs", &w.AllowedCIDRs, defaults.AllowedCIDRs, o.Strings)
	set(o, "ordering", &w.Ordering, defaults.Ordering, func(name string) webhook.Ordering { return webhook.Ordering(o.String(name)) })
	set(o, "ordering_skip_after", &w.OrderingSkipAfter, defaults.OrderingSkipAfter, optionalInt(o))
	faults = append(faults, applySignatures(o, w)...)

	if o.Given("status") {
		state := webhook.StateActive
		if o.Has("status") {
			state = webhook.State(o.String("status"))
		}
		if state != webhook.StateActive && state != webhook.StatePaused {
			faults = append(faults, webhook.FieldError{Pointer: "/status", Detail: `must be "active" or "paused"`})
		} else {
			w.State, w.DisabledReason = state, nil
		}
	}
	if w.URL != "" && o.Has("url") {
		if err := a.guard.CheckURL(w.URL); err != nil {
			faults = append(faults, webhook.FieldError{Pointer: "/url", Detail: err.Error()})
		}
	}
	faults = append(faults, a.applyIdentity(o, w)...)
	for _, name := range setByFairhook {
		if o.Given(name) {
			faults = append(faults, webhook.FieldError{Pointer: "/" + name, Detail: "is set by Fairhook and cannot be chosen"})
		}
	}
	return faults
}

// optionalInt reads a number that has no default but null.
func optionalInt(o *strictjson.Object) func(name string) *int {
	return func(name string) *int { n := o.Int(name); return &n }
}

// set writes one field if it is given.
func set[T any](o *strictjson.Object, name string, field *T, def T, read func(name string) T) {
	switch {
	case !o.Given(name):
	case o.Has(name):
		*field = read(name)
	default:
		*field = def
	}
}

// required adds a fault for each of the fields that is absent or null.
func required(o *strictjson.Object, faults []webhook.FieldError, names ...string) []webhook.FieldError {
	for _, name := range names {
		if !o.Has(name) {
			faults = append(faults, webhook.FieldError{Pointer: "/" + name, Detail: "is required"})
		}
	}
	return faults
}

// settle joins what is wrong with a webhook, one fault per field: a field of the
// wrong type has been read as its zero value, which need not be reported too.
func settle(o *strictjson.Object, faults []webhook.FieldError, w *webhook.Webhook) []webhook.FieldError {
	all := slices.Concat(o.Faults(), faults, w.Check())
	if w.URL == "" {
		all = append(all, webhook.FieldError{Pointer: "/url", Detail: "must not be empty"})
	}
	slices.SortStableFunc(all, compareFaults)
	return slices.CompactFunc(all, func(a, b webhook.FieldError) bool { return a.Pointer == b.Pointer })
}

func compareFaults(a, b webhook.FieldError) int {
	return strings.Compare(a.Pointer+a.Parameter, b.Pointer+b.Parameter)
}

func invalidWebhook(faults []webhook.FieldError) error {
	return &webhook.Error{
		Code:    webhook.CodeInvalid,
		Message: "The webhook breaks rules.",
		Fields:  faults[:min(len(faults), maxFaults)],
	}
}

func (a *API) getWebhook(c echo.Context) error {
	id, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	var w *webhook.Webhook
	ctx := c.Request().Context()
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		w, err = postgres.Webhook(ctx, conn, id)
		return err
	})
	if err != nil {
		return err
	}
	if err := identity.Open(a.box, w); err != nil {
		return err
	}
	return WriteJSON(c, http.StatusOK, w)
}

func (a *API) pauseWebhook(c echo.Context) error { return a.setState(c, webhook.StatePaused) }

func (a *API) resumeWebhook(c echo.Context) error { return a.setState(c, webhook.StateActive) }

func (a *API) setState(c echo.Context, state webhook.State) error {
	id, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	var w *webhook.Webhook
	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		before, err := postgres.LockWebhook(ctx, tx, id)
		if err != nil {
			return err
		}
		if w, err = postgres.SetWebhookState(ctx, tx, id, state); err != nil {
			return err
		}
		return a.sayEnabled(ctx, tx, before.State, w)
	})
	if err != nil {
		return err
	}
	a.changed(w)
	if err := identity.Open(a.box, w); err != nil {
		return err
	}
	return WriteJSON(c, http.StatusOK, w)
}

// sayEnabled tells the operators, in the transaction of the change, of a webhook that
// Fairhook had disabled and somebody has made active.
func (a *API) sayEnabled(ctx context.Context, tx pgx.Tx, before webhook.State, w *webhook.Webhook) error {
	if before != webhook.StateDisabled || w.State != webhook.StateActive {
		return nil
	}
	return a.announcer.Enabled(ctx, tx, w, webhook.RecoveredEnabled, a.clock.Now())
}

func (a *API) listWebhooks(c echo.Context) error {
	query, err := Query(c, "tenant", "limit", "cursor")
	if err != nil {
		return err
	}
	return listByID(a, c, query, webhookCursorKind, a.webhooks, func(w *webhook.Webhook) webhook.ID { return w.ID })
}

func (a *API) updateWebhook(c echo.Context) error {
	id, err := pathID(c, postgres.NoWebhook)
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
	o, err := strictjson.Parse(body, "", webhookFields...)
	if err != nil {
		return err
	}
	var w *webhook.Webhook
	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		var err error
		if w, err = postgres.LockWebhook(ctx, tx, id); err != nil {
			return err
		}
		if err := identity.Open(a.box, w); err != nil {
			return err
		}
		before := *w
		if err := a.change(o, w); err != nil || reflect.DeepEqual(before, *w) {
			return err
		}
		if err := a.storeChange(ctx, tx, &before, w); err != nil {
			return err
		}
		if err := a.sayEnabled(ctx, tx, before.State, w); err != nil || slices.Equal(before.Signatures, w.Signatures) {
			return err
		}
		return a.ensureSecrets(ctx, tx, w)
	})
	if err != nil {
		return err
	}
	a.changed(w)
	return WriteJSON(c, http.StatusOK, w)
}

// change applies an update's body to a webhook. The error is a *webhook.Error
// that lists all that is wrong.
func (a *API) change(o *strictjson.Object, w *webhook.Webhook) error {
	faults := a.apply(o, w)
	if o.Given("tenant") && (!o.Has("tenant") || o.String("tenant") != w.Tenant) {
		faults = append(faults, webhook.FieldError{Pointer: "/tenant", Detail: "cannot be changed"})
	}
	for _, name := range []string{"secret", "private_key"} {
		if o.Given(name) {
			faults = append(faults, webhook.FieldError{Pointer: "/" + name, Detail: "cannot be changed like this: rotate it with POST .../secrets"})
		}
	}
	if o.Given("url") {
		faults = required(o, faults, "url")
	}
	if faults := settle(o, faults, w); len(faults) > 0 {
		return invalidWebhook(faults)
	}
	return nil
}

func (a *API) deleteWebhook(c echo.Context) error {
	id, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	ctx := c.Request().Context()
	var w *webhook.Webhook
	err = a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		w, err = postgres.DeleteWebhook(ctx, conn, id)
		return err
	})
	if err != nil {
		return err
	}
	a.changed(w)
	return c.NoContent(http.StatusNoContent)
}

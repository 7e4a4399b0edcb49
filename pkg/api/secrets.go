package api

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// maxSecrets is how many secrets of a family a webhook has at once: each of them
// signs every request.
const maxSecrets = 5

// familyOf is the kind of secrets that a secret of some kind replaces: texts are
// symmetric secrets too, and what a newer release may have stored is apart.
func familyOf(kind webhook.SecretKind) webhook.SecretKind {
	if kind == webhook.SecretText {
		return webhook.SecretSymmetric
	}
	return kind
}

// usesFamily reports whether a webhook signs with secrets of a family.
func usesFamily(w *webhook.Webhook, family webhook.SecretKind) bool {
	switch family {
	case webhook.SecretEd25519:
		return w.Uses(webhook.SchemeStandardEd25519)
	case webhook.SecretSymmetric:
		return slices.ContainsFunc(w.Signatures, func(s webhook.Scheme) bool { return s != webhook.SchemeStandardEd25519 })
	}
	return false
}

// secret is a signing secret on its way into the database.
type secret struct {
	kind   webhook.SecretKind
	text   webhook.Secret
	public ed25519.PublicKey // of webhook.SecretEd25519
}

// newSecret makes a secret of a family.
func newSecret(family webhook.SecretKind) secret {
	if family == webhook.SecretEd25519 {
		s, _ := givenPrivateKey(signature.NewPrivateKey().Reveal()) // which it reads
		return s
	}
	return secret{kind: webhook.SecretSymmetric, text: signature.NewSecret()}
}

// givenSecret is a symmetric secret that is brought along.
func givenSecret(text string) (secret, error) {
	kind, err := signature.ReadSecret(text)
	return secret{kind: kind, text: webhook.NewSecret(text)}, err
}

// givenPrivateKey is a private key that is brought along.
func givenPrivateKey(text string) (secret, error) {
	key, err := signature.ParsePrivateKey(text)
	if err != nil {
		return secret{}, err
	}
	return secret{
		kind: webhook.SecretEd25519, text: webhook.NewSecret(signature.PrivateKeyText(key)),
		public: key.Public().(ed25519.PublicKey),
	}, nil
}

// spelled gives a secret of Standard Webhooks one spelling, whichever its last
// home used, unless one of the webhook's schemes takes the text for the key.
func (s secret) spelled(w *webhook.Webhook) secret {
	if s.kind == webhook.SecretSymmetric && !slices.ContainsFunc(w.Signatures, webhook.Scheme.UsesText) {
		if key, err := signature.ParseSecret(s.text.Reveal()); err == nil {
			s.text = signature.SecretText(key)
		}
	}
	return s
}

// insertSecret seals and stores a secret of a webhook.
func (a *API) insertSecret(ctx context.Context, tx pgx.Tx, webhookID webhook.ID, s secret) (*postgres.Secret, error) {
	row := &postgres.Secret{
		ID: webhook.NewID(a.clock.Now()), Kind: s.kind, PublicKey: s.public,
		Sealed: a.box.Seal([]byte(s.text.Reveal()), sealContext(webhookID)),
	}
	return row, postgres.InsertSecret(ctx, tx, webhookID, row)
}

// ensureSecrets makes the secrets that a webhook's schemes ask for and that it
// does not have.
func (a *API) ensureSecrets(ctx context.Context, tx pgx.Tx, w *webhook.Webhook) error {
	secrets, err := postgres.Secrets(ctx, tx, w.ID)
	if err != nil {
		return err
	}
	for _, family := range []webhook.SecretKind{webhook.SecretSymmetric, webhook.SecretEd25519} {
		has := slices.ContainsFunc(secrets, func(s postgres.Secret) bool {
			return familyOf(s.Kind) == family && s.ExpiresAt == nil
		})
		if has || !usesFamily(w, family) {
			continue
		}
		if _, err := a.insertSecret(ctx, tx, w.ID, newSecret(family)); err != nil {
			return err
		}
	}
	return nil
}

// secretView is how the API shows a signing secret. A private key is not shown:
// nobody but Fairhook needs it. Nor is a secret of a kind that only a newer release
// knows.
type secretView struct {
	ID        webhook.ID         `json:"id"`
	Kind      webhook.SecretKind `json:"kind"`
	Secret    *string            `json:"secret"`     // nil for a private key
	PublicKey *string            `json:"public_key"` // nil for a symmetric secret
	CreatedAt time.Time          `json:"created_at"`
	ExpiresAt *time.Time         `json:"expires_at"`
}

func viewSecret(s *postgres.Secret, text string) secretView {
	view := secretView{ID: s.ID, Kind: s.Kind, CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt}
	switch familyOf(s.Kind) {
	case webhook.SecretEd25519:
		public := signature.PublicKeyText(s.PublicKey)
		view.PublicKey = &public
	case webhook.SecretSymmetric:
		view.Secret = &text
	}
	return view
}

func (a *API) listSecrets(c echo.Context) error {
	id, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	views, err := a.secrets(c.Request().Context(), id)
	if err != nil {
		return err
	}
	noStore(c)
	return WriteJSON(c, http.StatusOK, struct {
		Data []secretView `json:"data"`
	}{views})
}

func (a *API) secrets(ctx context.Context, id webhook.ID) ([]secretView, error) {
	var secrets []postgres.Secret
	err := a.withConn(ctx, func(conn *pgxpool.Conn) (err error) {
		secrets, err = postgres.Secrets(ctx, conn, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	views := make([]secretView, 0, len(secrets))
	for _, s := range secrets {
		text, err := a.openSecret(id, &s)
		if err != nil {
			return nil, err
		}
		views = append(views, viewSecret(&s, text))
	}
	return views, nil
}

func (a *API) openSecret(webhookID webhook.ID, s *postgres.Secret) (string, error) {
	text, err := a.box.Open(s.Sealed, sealContext(webhookID))
	if err != nil {
		return "", fmt.Errorf("open secret %s of webhook %s: %w", s.ID, webhookID, err)
	}
	return string(text), nil
}

// rotation is what a rotation asks for.
type rotation struct {
	secret  secret
	given   bool          // the secret was brought along, and not made here
	overlap time.Duration // how long those before stay valid
}

// parseRotation reads the body of a rotation. The error is a *webhook.Error that
// lists all that is wrong.
func parseRotation(body []byte) (r rotation, err error) {
	o, err := strictjson.Parse(body, "", "kind", "secret", overlapField)
	if err != nil {
		return r, err
	}
	var faults []webhook.FieldError
	fault := func(pointer, detail string) {
		faults = append(faults, webhook.FieldError{Pointer: pointer, Detail: detail})
	}
	text := o.String("secret")
	kind := webhook.SecretKind(o.String("kind"))
	switch {
	case o.Has("kind") && kind != webhook.SecretSymmetric && kind != webhook.SecretEd25519:
		fault("/kind", `must be "symmetric" or "ed25519"`)
	case !o.Has("kind") && strings.HasPrefix(text, signature.PrivateKeyPrefix):
		kind = webhook.SecretEd25519
	}
	switch r.given = o.Has("secret"); {
	case !r.given:
		r.secret = newSecret(kind)
	case kind == webhook.SecretEd25519:
		r.secret, err = givenPrivateKey(text)
	default:
		r.secret, err = givenSecret(text)
	}
	if err != nil {
		fault("/secret", err.Error())
	}
	r.overlap, faults = readOverlap(o, faults)
	return r, invalidRotation(o, faults)
}

// rotateSecret gives a webhook a new signing secret, made here or brought along.
// Those of its family before stay valid for a while, and all sign at once, so that
// a receiver can be changed over at leisure. The same one brought along again
// changes nothing.
func (a *API) rotateSecret(c echo.Context) error {
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
	r, err := parseRotation(body)
	if err != nil {
		return err
	}
	var (
		w      *webhook.Webhook
		view   secretView
		status = http.StatusCreated
	)
	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		var err error
		if w, err = postgres.LockWebhook(ctx, tx, id); err != nil {
			return err
		}
		if r.secret.kind == webhook.SecretEd25519 && !w.Uses(webhook.SchemeStandardEd25519) {
			return webhook.Errorf(webhook.CodeConflict, "The webhook does not sign with a private key: its signatures do not have %q.", webhook.SchemeStandardEd25519)
		}
		s := r.secret.spelled(w)
		kept, err := a.replace(ctx, tx, id, r, s)
		if err != nil {
			return err
		}
		if kept != nil {
			view, status = viewSecret(kept, s.text.Reveal()), http.StatusOK
			return nil
		}
		row, err := a.insertSecret(ctx, tx, id, s)
		view = viewSecret(row, s.text.Reveal())
		return err
	})
	if err != nil {
		return err
	}
	a.changed(w)
	noStore(c)
	return WriteJSON(c, status, view)
}

// replace makes room for a secret of a webhook: it lets those of its family end. If
// the secret is the current one already, that is kept and returned.
func (a *API) replace(ctx context.Context, tx pgx.Tx, id webhook.ID, r rotation, s secret) (kept *postgres.Secret, err error) {
	secrets, err := postgres.Secrets(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	var before []webhook.ID
	for _, old := range secrets {
		if familyOf(old.Kind) != familyOf(s.kind) {
			continue
		}
		if r.given {
			text, err := a.openSecret(id, &old)
			switch {
			case err != nil:
				return nil, err
			case text == s.text.Reveal() && old.ExpiresAt == nil:
				return &old, nil
			case text == s.text.Reveal(): // back to what was before, which would sign twice
				if err := postgres.DeleteSecret(ctx, tx, id, old.ID); err != nil {
					return nil, err
				}
				continue
			}
		}
		before = append(before, old.ID)
	}
	if r.overlap > 0 && len(before) >= maxSecrets {
		return nil, webhook.Errorf(webhook.CodeConflict,
			"The webhook has %d secrets of this kind that are valid still, which is as many as it may have. Delete one, or let them expire sooner.", len(before))
	}
	return nil, postgres.ExpireSecrets(ctx, tx, id, before, r.overlap)
}

// deleteSecret ends one of a webhook's secrets at once.
func (a *API) deleteSecret(c echo.Context) error {
	id, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	secretID, err := webhook.ParseID(c.Param("secret_id"))
	if err != nil {
		return postgres.NoSecret(shown(c.Param("secret_id")))
	}
	if _, err := Query(c); err != nil {
		return err
	}
	var w *webhook.Webhook
	ctx := c.Request().Context()
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		var err error
		if w, err = postgres.LockWebhook(ctx, tx, id); err != nil {
			return err
		}
		secrets, err := postgres.Secrets(ctx, tx, id)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(secrets, func(s postgres.Secret) bool { return s.ID == secretID })
		switch {
		case at < 0:
			return postgres.NoSecret(secretID.String())
		case secrets[at].ExpiresAt == nil && usesFamily(w, familyOf(secrets[at].Kind)):
			return webhook.Errorf(webhook.CodeConflict, "The secret is the current one, which the webhook signs with. Rotate it first.")
		}
		return postgres.DeleteSecret(ctx, tx, id, secretID)
	})
	if err != nil {
		return err
	}
	a.changed(w)
	return c.NoContent(http.StatusNoContent)
}

// sealContext binds a sealed secret to its webhook: moved to another one's row
// it does not open.
func sealContext(webhookID webhook.ID) string { return webhookID.String() }

// noStore keeps secrets out of caches (RFC 9111, section 5.2.2.5).
func noStore(c echo.Context) { c.Response().Header().Set(echo.HeaderCacheControl, "no-store") }

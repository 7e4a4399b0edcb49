package dispatch

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/catalog"
	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// authorization is how one attempt says who sends it.
type authorization struct {
	tokens *identity.Tokens
	hook   *webhook.Webhook
	token  webhook.Secret // of oauth2, once it is there
}

// requestTo is a request to a webhook as it is now, but for what it is about.
func requestTo(target *catalog.Entry, a *authorization, userAgent string) *courier.Request {
	hook := &target.Webhook
	return &courier.Request{
		URL:       hook.URL,
		Signer:    target.Signer,
		Headers:   hook.Headers,
		Authorize: a.authorize(),
		Secrets:   a.secrets(),
		Timeout:   time.Duration(hook.TimeoutSeconds) * time.Second,
		UserAgent: userAgent,
	}
}

// authorize is courier.Request.Authorize.
func (a *authorization) authorize() func(ctx context.Context) (webhook.Secret, error) {
	auth := a.hook.Auth
	if auth == nil {
		return nil
	}
	return func(ctx context.Context) (webhook.Secret, error) {
		switch auth.Type {
		case webhook.AuthBasic:
			pair := auth.Username + ":" + auth.Password.Reveal()
			return webhook.NewSecret("Basic " + base64.StdEncoding.EncodeToString([]byte(pair))), nil
		case webhook.AuthBearer:
			return webhook.NewSecret("Bearer " + auth.Token.Reveal()), nil
		case webhook.AuthOAuth2:
			token, err := a.tokens.Token(ctx, a.hook.ID, auth)
			if err != nil {
				return webhook.Secret{}, err
			}
			a.token = token
			return webhook.NewSecret("Bearer " + token.Reveal()), nil
		}
		return webhook.Secret{}, &identity.TokenError{
			Reason: webhook.ReasonInternalError, Detail: "this version does not know the webhook's type of auth",
		}
	}
}

// secrets are what the attempt's record must not have.
func (a *authorization) secrets() []webhook.Secret {
	if a.hook.Auth == nil {
		return nil
	}
	return a.hook.Auth.Secrets()
}

// answered takes note of what the receiver made of it.
func (a *authorization) answered(status int) {
	if status == http.StatusUnauthorized && !a.token.IsZero() {
		a.tokens.Refused(a.hook.ID, a.token)
	}
}

const (
	// expiresSoon is how long before its end a client certificate begins to show.
	expiresSoon = 30 * 24 * time.Hour
	// closeBatch is how many webhooks' headers are sealed in one run of the duty.
	closeBatch = 1000
)

// sealing is the duty that seals headers which a release before stored in the open, and
// counts the client certificates that expire.
type sealing struct {
	db           *pgxpool.Pool
	box          identity.Box
	logger       *slog.Logger
	certificates *prometheus.GaugeVec
	sealed       prometheus.Counter
}

func newSealing(db *pgxpool.Pool, box identity.Box, logger *slog.Logger, reg prometheus.Registerer) *sealing {
	d := &sealing{
		db: db, box: box, logger: logger,
		certificates: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fairhook_client_certificates",
			Help: "Webhooks whose client certificate expires within 30 days, or has expired, as the leader last saw them; 0 on other instances.",
		}, []string{"state"}),
		sealed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_headers_sealed_total",
			Help: "Webhooks whose headers were stored in the open and were sealed by this instance.",
		}),
	}
	reg.MustRegister(d.certificates, d.sealed)
	d.Lost()
	return d
}

// Run does both parts.
func (d *sealing) Run(ctx context.Context) error {
	return errors.Join(d.closeHeaders(ctx), d.countCertificates(ctx))
}

func (d *sealing) countCertificates(ctx context.Context) error {
	expiring, expired, err := postgres.ExpiringCertificates(ctx, d.db, expiresSoon)
	if err != nil {
		return err
	}
	d.certificates.WithLabelValues("expiring").Set(float64(expiring))
	d.certificates.WithLabelValues("expired").Set(float64(expired))
	return nil
}

// Lost is for when this instance leads no more.
func (d *sealing) Lost() {
	d.certificates.WithLabelValues("expiring").Set(0)
	d.certificates.WithLabelValues("expired").Set(0)
}

// closeHeaders seals headers that are in the open, unless there is a dispatcher that
// could not send them then.
func (d *sealing) closeHeaders(ctx context.Context) error {
	read, err := postgres.SealedHeadersAreRead(ctx, d.db, webhook.StaleAfter)
	if err != nil || !read {
		return err
	}
	ids, err := postgres.OpenHeaders(ctx, d.db, closeBatch)
	if err != nil {
		return err
	}
	closed := 0
	for _, id := range ids {
		done, err := d.closeOne(ctx, id)
		if err != nil {
			return err
		}
		if done {
			closed++
		}
	}
	if closed > 0 {
		d.sealed.Add(float64(closed))
		d.logger.InfoContext(ctx, "sealed headers that were stored in the open", "webhooks", closed)
	}
	return nil
}

func (d *sealing) closeOne(ctx context.Context, id webhook.ID) (done bool, err error) {
	err = pgx.BeginFunc(ctx, d.db, func(tx pgx.Tx) error {
		w, err := postgres.LockWebhook(ctx, tx, id)
		if webhook.ErrorCode(err) == webhook.CodeNotFound {
			return nil // deleted since
		}
		if err != nil {
			return err
		}
		if err := identity.Open(d.box, w); err != nil {
			return err
		}
		if w.HeadersSealed || len(w.Headers) == 0 {
			return nil // somebody was faster
		}
		if err := identity.Seal(d.box, w, true); err != nil {
			return err
		}
		done = true
		return postgres.CloseHeaders(ctx, tx, w)
	})
	return done && err == nil, err
}

package api

import (
	"context"
	"reflect"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// The fields of auth, by its type, and those of tls. An answer's tls also has those
// that are made of the certificates.
var (
	authFields = map[webhook.AuthType][]string{
		webhook.AuthBasic:  {"username", "password"},
		webhook.AuthBearer: {"token"},
		webhook.AuthOAuth2: {"token_url", "client_id", "client_secret", "scopes", "audience", "auth_style"},
	}
	allAuthFields = append([]string{"type"},
		slices.Concat(authFields[webhook.AuthBasic], authFields[webhook.AuthBearer], authFields[webhook.AuthOAuth2])...)
	tlsFields    = []string{"client_certificate", "client_key", "ca_certificates", "server_name"}
	tlsToldOnly  = []string{"certificate", "authorities"}
	allTLSFields = slices.Concat(tlsFields, tlsToldOnly)
)

// applyIdentity writes headers, auth and tls, where they are given, into w. It returns
// faults that neither o nor w.Check knows of.
func (a *API) applyIdentity(o *strictjson.Object, w *webhook.Webhook) []webhook.FieldError {
	var faults []webhook.FieldError
	if o.Given("headers") {
		headers := map[string]webhook.Secret{}
		for name, value := range o.StringMap("headers") {
			headers[name] = webhook.NewSecret(value)
		}
		faults = append(faults, below("/headers", webhook.KeepHeaders(headers, w.Headers))...)
		w.Headers = headers
	}
	if o.Given("auth") {
		auth, found := a.readAuth(o, w.Auth)
		faults = append(faults, below("/auth", found)...)
		w.Auth = auth
	}
	if o.Given("tls") {
		tls, found := a.readTLS(o, w.TLS)
		faults = append(faults, below("/tls", found)...)
		w.TLS = tls
	}
	return faults
}

// readAuth reads the member auth; nil where it is null, or no such object. Pointers of
// the faults begin at it.
func (a *API) readAuth(o *strictjson.Object, stored *webhook.Auth) (*webhook.Auth, []webhook.FieldError) {
	inner := o.Object("auth", allAuthFields...)
	if inner == nil {
		return nil, nil
	}
	auth := &webhook.Auth{Type: webhook.AuthType(inner.String("type"))}
	auth.Username = inner.String("username")
	auth.Password = secretOf(inner, "password")
	auth.Token = secretOf(inner, "token")
	auth.TokenURL = inner.String("token_url")
	auth.ClientID = inner.String("client_id")
	auth.ClientSecret = secretOf(inner, "client_secret")
	auth.Audience = inner.String("audience")
	auth.AuthStyle = webhook.AuthStyle(inner.String("auth_style"))
	scopes := inner.Strings("scopes")
	if auth.Type == webhook.AuthOAuth2 {
		auth.Scopes = append([]string{}, scopes...)
		if !inner.Has("auth_style") {
			auth.AuthStyle = webhook.AuthStyleBasic
		}
	}
	faults := inner.Faults()
	fields, known := authFields[auth.Type]
	for _, name := range allAuthFields[1:] {
		if known && inner.Has(name) && !slices.Contains(fields, name) {
			faults = append(faults, webhook.FieldError{Pointer: "/" + name, Detail: "does not belong to this type of auth"})
		}
	}
	faults = append(faults, auth.Keep(stored)...)
	if auth.TokenURL != "" {
		if err := a.guard.CheckURL(auth.TokenURL); err != nil {
			faults = append(faults, webhook.FieldError{Pointer: "/token_url", Detail: err.Error()})
		}
	}
	return auth, faults
}

// readTLS is readAuth for the member tls.
func (a *API) readTLS(o *strictjson.Object, stored *webhook.TLS) (*webhook.TLS, []webhook.FieldError) {
	inner := o.Object("tls", allTLSFields...)
	if inner == nil {
		return nil, nil
	}
	tls := &webhook.TLS{
		ClientCertificate: secretOf(inner, "client_certificate"),
		ClientKey:         secretOf(inner, "client_key"),
		CACertificates:    secretOf(inner, "ca_certificates"),
		ServerName:        inner.String("server_name"),
	}
	faults := inner.Faults()
	for _, name := range tlsToldOnly {
		if inner.Given(name) {
			faults = append(faults, webhook.FieldError{Pointer: "/" + name, Detail: "is set by Fairhook and cannot be chosen"})
		}
	}
	if kept := tls.Keep(stored); len(kept) > 0 {
		return tls, append(faults, kept...)
	}
	return tls, append(faults, tls.Check(a.clock.Now())...)
}

// secretOf reads a string; unset where it is absent or null.
func secretOf(o *strictjson.Object, name string) webhook.Secret {
	if !o.Has(name) {
		return webhook.Secret{}
	}
	return webhook.NewSecret(o.String(name))
}

// below moves faults below a pointer.
func below(pointer string, faults []webhook.FieldError) []webhook.FieldError {
	moved := make([]webhook.FieldError, len(faults))
	for i, f := range faults {
		f.Pointer = pointer + f.Pointer
		moved[i] = f
	}
	return moved
}

// sealCredentials seals what w has of them. While there is a dispatcher that cannot
// read sealed headers those stay in the open.
func (a *API) sealCredentials(ctx context.Context, tx pgx.Tx, w *webhook.Webhook) error {
	headers := true
	if len(w.Headers) > 0 {
		var err error
		if headers, err = postgres.SealedHeadersAreRead(ctx, tx, webhook.StaleAfter); err != nil {
			return err
		}
	}
	return identity.Seal(a.box, w, headers)
}

// storeChange writes a webhook that is not as it was before. Credentials that are the
// same are left alone: what is stored of them opens the webhook's gate.
func (a *API) storeChange(ctx context.Context, tx pgx.Tx, before, w *webhook.Webhook) error {
	if !reflect.DeepEqual(before.Headers, w.Headers) || !reflect.DeepEqual(before.Auth, w.Auth) || !reflect.DeepEqual(before.TLS, w.TLS) {
		if err := a.sealCredentials(ctx, tx, w); err != nil {
			return err
		}
		if err := postgres.StoreCredentials(ctx, tx, w); err != nil {
			return err
		}
	}
	return postgres.UpdateWebhook(ctx, tx, w)
}

// webhooks is postgres.Webhooks with credentials that are opened.
func (a *API) webhooks(ctx context.Context, q postgres.Querier, tenant *string, before webhook.ID, limit int) ([]*webhook.Webhook, error) {
	page, err := postgres.Webhooks(ctx, q, tenant, before, limit)
	if err != nil {
		return nil, err
	}
	for _, w := range page {
		if err := identity.Open(a.box, w); err != nil {
			return nil, err
		}
	}
	return page, nil
}

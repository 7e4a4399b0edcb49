package client

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Scope is what an API key may be used for. A newer Fairhook may have more than
// these.
type Scope string

// The scopes of API keys.
const (
	ScopeSubmit Scope = "submit" // submit events
	ScopeRead   Scope = "read"   // see webhooks, events, attempts and instances
	ScopeManage Scope = "manage" // change webhooks and event types, see webhooks' secrets
	ScopeAdmin  Scope = "admin"  // everything, API keys included
)

// Key is an API key as Fairhook knows it, without its text.
type Key struct {
	ID          string `json:"id"`
	Hint        string `json:"hint"` // how its text begins
	Description string `json:"description"`
	// Tenant is whose things it is for; nil: everybody's.
	Tenant *string `json:"tenant"`
	Scopes []Scope `json:"scopes"`
	// AllowedCIDRs are the networks from which it may be used; empty: all.
	AllowedCIDRs []string `json:"allowed_cidrs"`
	// RequireSignature says that what is submitted with it must be signed:
	// WithSigningSecret does that.
	RequireSignature bool       `json:"require_signature"`
	CreatedAt        time.Time  `json:"created_at"`
	ExpiresAt        *time.Time `json:"expires_at"`
	RevokedAt        *time.Time `json:"revoked_at"`
	LastUsedAt       *time.Time `json:"last_used_at"` // to the minute
}

// NewKey is an API key to make. Only Scopes are required.
type NewKey struct {
	Description string `json:"description,omitzero"`
	// Tenant: nil is all tenants.
	Tenant           *string   `json:"tenant"`
	Scopes           []Scope   `json:"scopes"`
	AllowedCIDRs     []string  `json:"allowed_cidrs,omitzero"` // default: everywhere
	ExpiresAt        time.Time `json:"expires_at,omitzero"`    // default: never
	RequireSignature bool      `json:"require_signature,omitzero"`
}

// CreatedKey is a new API key with its text, which Fairhook does not keep.
type CreatedKey struct {
	Key
	Text string `json:"key"`
	// SigningSecret is empty unless the key requires signatures.
	SigningSecret string `json:"signing_secret"`
}

// String hides the key's text and its secret, in logs and in %v.
func (k CreatedKey) String() string { return "API key " + k.ID }

// GoString hides the key's text and its secret in %#v.
func (k CreatedKey) GoString() string { return k.String() }

// ListKeys says which API keys to list; the zero value is all that the client's
// own key may see.
type ListKeys struct {
	Tenant string
	// PageSize is how many are fetched at a time; 0 is the server's default.
	PageSize int
}

// Keys manages API keys; the client's own needs the scope admin for it.
type Keys struct{ client *Client }

// Keys is the part of the API that manages API keys.
func (c *Client) Keys() Keys { return Keys{c} }

// Create makes an API key. It is not repeated after an error that leaves open
// whether it was done: revoke the one that List then shows, and make another.
func (k Keys) Create(ctx context.Context, key NewKey) (*CreatedKey, error) {
	body, err := json.Marshal(key)
	if err != nil {
		return nil, fmt.Errorf("fairhook: encode the API key: %w", err)
	}
	created := &CreatedKey{}
	if _, err := k.client.do(ctx, call{method: http.MethodPost, path: "/v1/keys", header: jsonContent(), body: body}, created); err != nil {
		return nil, err
	}
	return created, nil
}

// Get reads an API key.
func (k Keys) Get(ctx context.Context, id string) (*Key, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	key := &Key{}
	if _, err := k.client.do(ctx, call{method: http.MethodGet, path: "/v1/keys/" + id, repeatable: true}, key); err != nil {
		return nil, err
	}
	return key, nil
}

// Revoke ends an API key for good. Revoking twice is as good as once.
func (k Keys) Revoke(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	_, err := k.client.do(ctx, call{method: http.MethodDelete, path: "/v1/keys/" + id, repeatable: true}, nil)
	return err
}

// RotateSecret makes a new signing secret for a key that requires signatures and
// returns its text. Those before stay valid for overlap, in whole seconds. Like
// Create it is not repeated when its outcome is open.
func (k Keys) RotateSecret(ctx context.Context, id string, overlap time.Duration) (string, error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	body := fmt.Appendf(nil, `{"expire_previous_after_seconds":%d}`, int64(overlap/time.Second))
	var made struct {
		SigningSecret string `json:"signing_secret"`
	}
	call := call{method: http.MethodPost, path: "/v1/keys/" + id + "/secrets", header: jsonContent(), body: body}
	if _, err := k.client.do(ctx, call, &made); err != nil {
		return "", err
	}
	return made.SigningSecret, nil
}

// List goes through API keys, newest first, revoked and expired ones too,
// fetching page after page as the loop goes on. An error is the last thing it
// yields.
func (k Keys) List(ctx context.Context, filter ListKeys) iter.Seq2[*Key, error] {
	query := url.Values{}
	if filter.Tenant != "" {
		query.Set("tenant", filter.Tenant)
	}
	if filter.PageSize != 0 {
		query.Set("limit", strconv.Itoa(filter.PageSize))
	}
	return list[Key](ctx, k.client, "/v1/keys", query)
}

// WithSigningSecret signs what is submitted, for an API key that requires it,
// with its signing secret ("whsec_..."). Idempotency keys of one's own then must
// have no dot and at most 200 characters, since they are what identifies a
// signed request. The host's clock must be right to within 5 minutes.
func WithSigningSecret(secret string) Option {
	return func(c *Client) {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		if err != nil || len(key) == 0 {
			c.fault = errors.New(`fairhook: the signing secret must be "whsec_" followed by base64`)
			return
		}
		c.sign = func(req *http.Request, body []byte) error { return sign(req, key, body, time.Now()) }
	}
}

// sign adds the three headers of Standard Webhooks 1.0.0 to a submission. Its
// idempotency key is its id.
func sign(req *http.Request, key, body []byte, now time.Time) error {
	id := req.Header.Get("Idempotency-Key")
	if id == "" {
		id = NewIdempotencyKey()
	}
	if strings.Contains(id, ".") {
		return errors.New("the idempotency key of a signed submission must not contain a dot")
	}
	timestamp := strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + timestamp + "."))
	mac.Write(body)
	req.Header.Set("Webhook-Id", id)
	req.Header.Set("Webhook-Timestamp", timestamp)
	req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return nil
}

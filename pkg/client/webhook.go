package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Webhook is one subscriber's destination.
type Webhook struct {
	ID          string `json:"id"`
	Tenant      string `json:"tenant"`
	URL         string `json:"url"`
	Description string `json:"description"`
	// EventTypes are what it subscribes to: exact types, "*" for all, or
	// "order.*" for everything below order.
	EventTypes     []string          `json:"event_types"`
	Status         WebhookStatus     `json:"status"`
	DisabledReason *string           `json:"disabled_reason"`
	Headers        map[string]string `json:"headers"` // sent with every request; their values read as Masked
	TimeoutSeconds int               `json:"timeout_seconds"`
	MaxInFlight    int               `json:"max_in_flight"`
	// RatePerSecond limits how many requests a second are made; nil: no limit.
	// Burst is how many may be made at once after a pause; nil: what the rate
	// allows in 0.2 s.
	RatePerSecond *float64 `json:"rate_per_second"`
	Burst         *int     `json:"burst"`
	// Weight is its part of the turns beside other webhooks with a backlog.
	Weight int `json:"weight"`
	// RetrySchedule is the waits after each failed attempt, in seconds: n
	// entries allow n+1 attempts.
	RetrySchedule []int `json:"retry_schedule_seconds"`
	MaxAgeSeconds int   `json:"max_age_seconds"`
	// AcceptPerSecond limits how many events a second are accepted for the
	// webhook; nil: no limit.
	AcceptPerSecond *float64 `json:"accept_per_second"`
	// MaxBacklog is how many deliveries may wait for it.
	MaxBacklog int `json:"max_backlog"`
	// AllowedCIDRs are the networks from which events may be submitted to it
	// directly; empty: all.
	AllowedCIDRs []string `json:"allowed_cidrs"`
	// Auth is how requests say who sends them, and TLS what is special about
	// connections to it; nil: nothing.
	Auth *Auth     `json:"auth"`
	TLS  *ShownTLS `json:"tls"`
	// Signatures are how its requests are signed, and SignatureTemplate goes with
	// SignTemplate.
	Signatures        []SignatureScheme  `json:"signatures"`
	SignatureTemplate *SignatureTemplate `json:"signature_template"`
	// AutoDisableAfterSeconds is for how long nothing but failure may come of the webhook
	// before it is disabled; 0: for ever; nil: what Fairhook is set to.
	AutoDisableAfterSeconds *int `json:"auto_disable_after_seconds"`
	// Ordering is which deliveries wait for each other, and OrderingSkipAfter after how
	// many failed attempts one is given up so that those behind it go on; nil: when it
	// is too old.
	Ordering          Ordering  `json:"ordering"`
	OrderingSkipAfter *int      `json:"ordering_skip_after"`
	CreatedAt         time.Time `json:"created_at"`
	UpdatedAt         time.Time `json:"updated_at"`
}

// WebhookStatus is whether a webhook receives. A newer Fairhook may have more
// than these.
type WebhookStatus string

// The statuses of a webhook. Deliveries of one that is not active wait.
const (
	WebhookActive   WebhookStatus = "active"
	WebhookPaused   WebhookStatus = "paused"   // by Pause
	WebhookDisabled WebhookStatus = "disabled" // by Fairhook: see Webhook.DisabledReason
)

// Ordering is which deliveries of a webhook wait for each other, in the order in which
// their events were accepted. A newer Fairhook may have more than these.
type Ordering string

// The orderings.
const (
	OrderingNone   Ordering = "none"
	OrderingStrict Ordering = "strict" // all: one at a time
	OrderingKey    Ordering = "key"    // those with the same Event.OrderingKey
)

// NewWebhook is a webhook to create. Only Tenant and URL are required; what is
// left zero gets Fairhook's default.
type NewWebhook struct {
	Tenant         string            `json:"tenant"`
	URL            string            `json:"url"`
	Description    string            `json:"description,omitzero"`
	EventTypes     []string          `json:"event_types,omitzero"` // default: all
	Status         WebhookStatus     `json:"status,omitzero"`      // WebhookActive or WebhookPaused
	Headers        map[string]string `json:"headers,omitzero"`
	TimeoutSeconds int               `json:"timeout_seconds,omitzero"`
	MaxInFlight    int               `json:"max_in_flight,omitzero"`
	// RatePerSecond: nil is no limit. Burst needs one; nil is what it allows in
	// 0.2 s.
	RatePerSecond *float64 `json:"rate_per_second,omitzero"`
	Burst         *int     `json:"burst,omitzero"`
	Weight        int      `json:"weight,omitzero"` // default: 1
	// RetrySchedule: nil is the default schedule, empty is a single attempt.
	RetrySchedule []int `json:"retry_schedule_seconds,omitzero"`
	MaxAgeSeconds int   `json:"max_age_seconds,omitzero"`
	// AcceptPerSecond: nil is no limit.
	AcceptPerSecond *float64 `json:"accept_per_second,omitzero"`
	MaxBacklog      int      `json:"max_backlog,omitzero"`
	AllowedCIDRs    []string `json:"allowed_cidrs,omitzero"` // default: all
	// Ordering: the default is OrderingNone. OrderingSkipAfter needs another.
	Ordering          Ordering `json:"ordering,omitzero"`
	OrderingSkipAfter *int     `json:"ordering_skip_after,omitzero"`
	// AutoDisableAfterSeconds: nil is what Fairhook is set to, 0 for ever.
	AutoDisableAfterSeconds *int  `json:"auto_disable_after_seconds,omitzero"`
	Auth                    *Auth `json:"auth,omitzero"` // default: none
	TLS                     *TLS  `json:"tls,omitzero"`  // default: nothing special
	// Signatures: default SignStandard. SignTemplate needs SignatureTemplate.
	Signatures        []SignatureScheme  `json:"signatures,omitzero"`
	SignatureTemplate *SignatureTemplate `json:"signature_template,omitzero"`
	// Secret is an existing signing secret to bring along, "whsec_..." or another
	// text, so that the receiver need not change; empty has Fairhook make one.
	// PrivateKey is the same for SignStandardEd25519: "whsk_...".
	Secret     string `json:"secret,omitzero"`
	PrivateKey string `json:"private_key,omitzero"`
}

// CreatedWebhook is a webhook with its signing secret, which its receiver needs,
// and with SignStandardEd25519 its public key ("whpk_...").
type CreatedWebhook struct {
	Webhook
	Secret    string `json:"secret"`
	PublicKey string `json:"public_key"`
}

// String hides the secret, in logs and in %v.
func (w CreatedWebhook) String() string { return "webhook " + w.ID }

// GoString hides the secret in %#v.
func (w CreatedWebhook) GoString() string { return w.String() }

// WebhookUpdate is a change of a webhook: nil fields stay as they are, and
// slices, maps, Auth and TLS replace the whole of what was there. A header's value, or
// a secret of Auth or TLS, that is Masked stays as it is.
type WebhookUpdate struct {
	URL             *string           `json:"url,omitzero"`
	Description     *string           `json:"description,omitzero"`
	EventTypes      []string          `json:"event_types,omitzero"`
	Status          *WebhookStatus    `json:"status,omitzero"` // WebhookActive or WebhookPaused, as Resume and Pause
	Headers         map[string]string `json:"headers,omitzero"`
	TimeoutSeconds  *int              `json:"timeout_seconds,omitzero"`
	MaxInFlight     *int              `json:"max_in_flight,omitzero"`
	RatePerSecond   *float64          `json:"rate_per_second,omitzero"`
	Burst           *int              `json:"burst,omitzero"`
	Weight          *int              `json:"weight,omitzero"`
	RetrySchedule   []int             `json:"retry_schedule_seconds,omitzero"`
	MaxAgeSeconds   *int              `json:"max_age_seconds,omitzero"`
	AcceptPerSecond *float64          `json:"accept_per_second,omitzero"`
	MaxBacklog      *int              `json:"max_backlog,omitzero"`
	AllowedCIDRs    []string          `json:"allowed_cidrs,omitzero"`
	Auth            *Auth             `json:"auth,omitzero"`
	TLS             *TLS              `json:"tls,omitzero"`
	Signatures      []SignatureScheme `json:"signatures,omitzero"`
	// SignatureTemplate goes with SignTemplate: who leaves that resets this too.
	SignatureTemplate *SignatureTemplate `json:"signature_template,omitzero"`
	// AutoDisableAfterSeconds: 0 is for ever.
	AutoDisableAfterSeconds *int      `json:"auto_disable_after_seconds,omitzero"`
	Ordering                *Ordering `json:"ordering,omitzero"`
	OrderingSkipAfter       *int      `json:"ordering_skip_after,omitzero"`
	// Reset names the fields, as in JSON, to put back to Fairhook's defaults.
	Reset []string `json:"-"`
}

// ListWebhooks says which webhooks to list; the zero value is all of them.
type ListWebhooks struct {
	Tenant string
	// PageSize is how many are fetched at a time; 0 is the server's default.
	PageSize int
}

// Webhooks manages webhooks.
type Webhooks struct{ client *Client }

// Webhooks is the part of the API that manages webhooks.
func (c *Client) Webhooks() Webhooks { return Webhooks{c} }

// Create makes a webhook. It is not repeated after an error that leaves open
// whether it was done; List tells.
func (w Webhooks) Create(ctx context.Context, webhook NewWebhook) (*CreatedWebhook, error) {
	body, err := json.Marshal(webhook)
	if err != nil {
		return nil, fmt.Errorf("fairhook: encode the webhook: %w", err)
	}
	created := &CreatedWebhook{}
	_, err = w.client.do(ctx, call{method: http.MethodPost, path: "/v1/webhooks", header: jsonContent(), body: body}, created)
	if err != nil {
		return nil, err
	}
	return created, nil
}

// Get reads a webhook.
func (w Webhooks) Get(ctx context.Context, id string) (*Webhook, error) {
	return w.one(ctx, id, "", call{method: http.MethodGet, repeatable: true})
}

// Update changes a webhook and returns it as it then is. Like Create it is not
// repeated when its outcome is open, since it could undo somebody else's change.
func (w Webhooks) Update(ctx context.Context, id string, update WebhookUpdate) (*Webhook, error) {
	body, err := update.encode()
	if err != nil {
		return nil, err
	}
	return w.one(ctx, id, "", call{method: http.MethodPatch, header: jsonContent(), body: body})
}

// Pause has a webhook's deliveries wait. Pausing twice is as good as once.
func (w Webhooks) Pause(ctx context.Context, id string) (*Webhook, error) {
	return w.one(ctx, id, "/pause", call{method: http.MethodPost, repeatable: true})
}

// Resume has the deliveries of a paused or disabled webhook go on where they
// stopped.
func (w Webhooks) Resume(ctx context.Context, id string) (*Webhook, error) {
	return w.one(ctx, id, "/resume", call{method: http.MethodPost, repeatable: true})
}

// Delete removes a webhook; its waiting deliveries end as cancelled.
func (w Webhooks) Delete(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	got, err := w.client.do(ctx, call{method: http.MethodDelete, path: "/v1/webhooks/" + id, repeatable: true}, nil)
	if got != nil && got.status == http.StatusNotFound && got.tries > 1 {
		return nil // an earlier try, whose answer was lost, deleted it
	}
	return err
}

// Secrets reads a webhook's signing secrets.
func (w Webhooks) Secrets(ctx context.Context, id string) ([]Secret, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	var secrets []Secret
	for secret, err := range list[Secret](ctx, w.client, "/v1/webhooks/"+id+"/secrets", url.Values{}) {
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, *secret)
	}
	return secrets, nil
}

// List goes through the webhooks, newest first, fetching page after page as the
// loop goes on. An error is the last thing it yields.
func (w Webhooks) List(ctx context.Context, filter ListWebhooks) iter.Seq2[*Webhook, error] {
	query := url.Values{}
	if filter.Tenant != "" {
		query.Set("tenant", filter.Tenant)
	}
	if filter.PageSize != 0 {
		query.Set("limit", strconv.Itoa(filter.PageSize))
	}
	return list[Webhook](ctx, w.client, "/v1/webhooks", query)
}

// one makes a call about one webhook that answers with the webhook.
func (w Webhooks) one(ctx context.Context, id, action string, call call) (*Webhook, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	call.path = "/v1/webhooks/" + id + action
	webhook := &Webhook{}
	if _, err := w.client.do(ctx, call, webhook); err != nil {
		return nil, err
	}
	return webhook, nil
}

func (u WebhookUpdate) encode() ([]byte, error) {
	body, err := json.Marshal(u)
	if err != nil || len(u.Reset) == 0 {
		return body, err
	}
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(body, &members); err != nil {
		return nil, fmt.Errorf("fairhook: encode the update: %w", err)
	}
	for _, name := range u.Reset {
		if _, set := members[name]; set {
			return nil, fmt.Errorf("fairhook: the update both sets and resets %s", name)
		}
		members[name] = json.RawMessage("null")
	}
	return json.Marshal(members)
}

// list goes through every page of a list. It may be gone through again.
func list[T any](ctx context.Context, c *Client, path string, filter url.Values) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		query := maps.Clone(filter)
		for {
			var got page[T]
			if _, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query, repeatable: true}, &got); err != nil {
				yield(nil, err)
				return
			}
			for i := range got.Data {
				if !yield(&got.Data[i], nil) {
					return
				}
			}
			if got.NextCursor == "" {
				return
			}
			if got.NextCursor == query.Get("cursor") {
				yield(nil, errors.New("fairhook: the list does not go on: the same cursor came twice"))
				return
			}
			query.Set("cursor", got.NextCursor)
		}
	}
}

func jsonContent() http.Header { return http.Header{"Content-Type": {"application/json"}} }

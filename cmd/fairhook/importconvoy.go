//go:build unix

package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// convoyExport is what collect.py writes of Convoy's projects: the answers of Convoy's
// API as they came.
type convoyExport struct {
	Projects []struct {
		Project       convoyProject        `json:"project"`
		Endpoints     []convoyEndpoint     `json:"endpoints"`
		Subscriptions []convoySubscription `json:"subscriptions"`
	} `json:"projects"`
}

// convoyProject is Convoy's ProjectResponse.
type convoyProject struct {
	UID    string `json:"uid"`
	Type   string `json:"type"`
	Config struct {
		Strategy struct {
			Type       string        `json:"type"`
			Duration   convoySeconds `json:"duration"`
			RetryCount int           `json:"retry_count"`
		} `json:"strategy"`
		Signature struct {
			Header   string `json:"header"`
			Versions []struct {
				Hash     string `json:"hash"`
				Encoding string `json:"encoding"`
			} `json:"versions"`
		} `json:"signature"`
	} `json:"config"`
}

// convoyEndpoint is Convoy's EndpointResponse.
type convoyEndpoint struct {
	UID                string                `json:"uid"`
	OwnerID            string                `json:"owner_id"`
	Name               string                `json:"name"`
	Description        string                `json:"description"`
	URL                string                `json:"url"`
	Status             string                `json:"status"`
	ContentType        string                `json:"content_type"`
	HTTPTimeout        convoySeconds         `json:"http_timeout"`
	RateLimit          float64               `json:"rate_limit"`
	RateLimitDuration  convoySeconds         `json:"rate_limit_duration"`
	AdvancedSignatures bool                  `json:"advanced_signatures"`
	Secrets            []convoySecret        `json:"secrets"`
	Authentication     *convoyAuthentication `json:"authentication"`
	MTLS               *struct {
		Certificate string `json:"client_cert"`
		Key         string `json:"client_key"`
	} `json:"mtls_client_cert"`
	SupportEmail string `json:"support_email"`
	SlackURL     string `json:"slack_webhook_url"`
	TeamsURL     string `json:"teams_webhook_url"`
}

type convoySecret struct {
	Value     string     `json:"value"`
	ExpiresAt *time.Time `json:"expires_at"`
	DeletedAt *time.Time `json:"deleted_at"`
}

type convoyAuthentication struct {
	Type   string `json:"type"`
	APIKey struct {
		Name  string `json:"header_name"`
		Value string `json:"header_value"`
	} `json:"api_key"`
	Basic struct {
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"basic_auth"`
	OAuth2 struct {
		URL          string          `json:"url"`
		ClientID     string          `json:"client_id"`
		ClientSecret string          `json:"client_secret"`
		Scope        string          `json:"scope"`
		Audience     string          `json:"audience"`
		Type         string          `json:"authentication_type"`
		Mapping      json.RawMessage `json:"field_mapping"`
	} `json:"oauth2"`
}

// convoySubscription is Convoy's SubscriptionResponse, with the subscription's filters
// (FilterResponse).
type convoySubscription struct {
	Function *string `json:"function"`
	Endpoint *struct {
		UID string `json:"uid"`
	} `json:"endpoint_metadata"`
	FilterConfig struct {
		EventTypes []string     `json:"event_types"`
		Filter     convoyFilter `json:"filter"`
	} `json:"filter_config"`
	Filters []convoyFilter `json:"filters"`
}

type convoyFilter struct {
	Headers map[string]any `json:"headers"`
	Body    map[string]any `json:"body"`
	Query   map[string]any `json:"query"`
	Path    map[string]any `json:"path"`
}

func (f convoyFilter) isEmpty() bool {
	return len(f.Headers) == 0 && len(f.Body) == 0 && len(f.Query) == 0 && len(f.Path) == 0
}

// convoySeconds is a time that Convoy writes as a number of seconds, or, in older
// versions of its API, as text such as "1m0s".
type convoySeconds int

func (s *convoySeconds) UnmarshalJSON(text []byte) error {
	var duration string
	if json.Unmarshal(text, &duration) != nil {
		return json.Unmarshal(text, (*int)(s))
	}
	if duration == "" {
		*s = 0
		return nil
	}
	parsed, err := time.ParseDuration(duration)
	if err != nil {
		return fmt.Errorf("%q is no duration", duration)
	}
	*s = convoySeconds(parsed / time.Second)
	return nil
}

func (e *convoyExport) candidates() (all []*candidate) {
	for _, project := range e.Projects {
		for _, endpoint := range project.Endpoints {
			var subscriptions []convoySubscription
			for _, s := range project.Subscriptions {
				if s.Endpoint != nil && s.Endpoint.UID == endpoint.UID {
					subscriptions = append(subscriptions, s)
				}
			}
			all = append(all, endpoint.candidate(&project.Project, subscriptions))
		}
	}
	return all
}

// candidate maps an endpoint of Convoy, and the subscriptions that lead to it, to a
// webhook.
func (e *convoyEndpoint) candidate(project *convoyProject, subscriptions []convoySubscription) *candidate {
	c := &candidate{origin: "convoy " + e.UID, webhook: client.NewWebhook{
		Tenant: cmp.Or(e.OwnerID, project.UID), URL: e.URL,
	}}
	description := e.Name
	if e.Description != "" && e.Description != e.Name {
		description = strings.TrimLeft(e.Name+": "+e.Description, ": ")
	}
	c.describe(description)
	if project.Type == "incoming" {
		c.lose("its project, which takes other senders' webhooks in: Fairhook only sends")
		c.impossible = true
	}
	c.subscribeConvoy(subscriptions)
	e.secret(c)
	e.sign(c, project)
	e.authenticate(c)
	if e.RateLimit > 0 {
		rate := e.RateLimit / float64(max(e.RateLimitDuration, 1))
		c.webhook.RatePerSecond = &rate
	}
	if e.HTTPTimeout > 0 {
		c.webhook.TimeoutSeconds = min(int(e.HTTPTimeout), webhook.MaxTimeoutSeconds)
		if c.webhook.TimeoutSeconds != int(e.HTTPTimeout) {
			c.note("its timeout of %d s becomes %d s, the longest", e.HTTPTimeout, c.webhook.TimeoutSeconds)
		}
	}
	project.retry(c)
	if e.Status != "active" {
		c.pause(e.Status)
	}
	if e.ContentType != "" && e.ContentType != "application/json" {
		c.lose("its content type, %s, into which Convoy turns payloads", e.ContentType)
	}
	if e.SupportEmail != "" || e.SlackURL != "" || e.TeamsURL != "" {
		c.note("where failures are reported to (email, Slack, Teams) has no place")
	}
	return c
}

// subscribeConvoy sets the event types that the subscriptions have together.
func (c *candidate) subscribeConvoy(subscriptions []convoySubscription) {
	var types []string
	for _, s := range subscriptions {
		types = append(types, s.FilterConfig.EventTypes...)
		if s.Function != nil && *s.Function != "" {
			c.lose("a subscription's function: it would get payloads as they were submitted")
		}
		if !s.FilterConfig.Filter.isEmpty() || slices.ContainsFunc(s.Filters, func(f convoyFilter) bool { return !f.isEmpty() }) {
			c.lose("a subscription's filter on payloads or headers: it would get all events of its types")
		}
	}
	if len(types) == 0 {
		c.lose("which events it gets: the file has no subscription of it with event types")
		c.impossible = true
		return
	}
	if len(subscriptions) > 1 {
		c.note("it has %d subscriptions, which become one webhook: an event that several of them match comes once", len(subscriptions))
	}
	slices.Sort(types)
	types = slices.Compact(types)
	if slices.Contains(types, "*") {
		types = []string{"*"}
	}
	c.subscribe(types)
}

// secret brings the newest secret along that does not expire.
func (e *convoyEndpoint) secret(c *candidate) {
	valid := slices.DeleteFunc(slices.Clone(e.Secrets), func(s convoySecret) bool {
		return s.Value == "" || s.DeletedAt != nil && !s.DeletedAt.IsZero()
	})
	if len(valid) == 0 {
		c.lose("its secret, which the file does not have")
		return
	}
	chosen := len(valid) - 1
	for chosen > 0 && valid[chosen].ExpiresAt != nil && !valid[chosen].ExpiresAt.IsZero() {
		chosen--
	}
	c.webhook.Secret = valid[chosen].Value
	if len(valid) > 1 {
		c.note("it has %d secrets; the newest is brought along", len(valid))
	}
}

// sign has the webhook signed as Convoy does, in the project's header, and as Standard
// Webhooks describes besides.
func (e *convoyEndpoint) sign(c *candidate, project *convoyProject) {
	config := project.Config.Signature
	if config.Header == "" || len(config.Versions) == 0 {
		c.lose("how it is signed: the file's project has no signature configuration")
		return
	}
	version := len(config.Versions)
	last := config.Versions[version-1]
	template := &client.SignatureTemplate{
		Header: config.Header, Signed: "{body}", Algorithm: "hmac-" + strings.ToLower(last.Hash), Encoding: last.Encoding, Value: "{signature}",
	}
	if e.AdvancedSignatures {
		// "t=1700000000,v1=...,v1=...", over the timestamp, a comma and the body. There
		// is one signature for each secret, and Convoy counts the project's versions.
		prefix := fmt.Sprintf(",v%d=", version)
		template.Signed = "{timestamp},{body}"
		template.Value = "t={timestamp}" + prefix + "{signature}"
		template.Separator = prefix
		if version > 1 {
			c.note("of its project's %d versions of signatures, the last is brought along (v%d)", version, version)
		}
	}
	c.webhook.Signatures = []client.SignatureScheme{client.SignStandard, client.SignTemplate}
	c.webhook.SignatureTemplate = template
}

// authenticate maps how requests say who sends them.
func (e *convoyEndpoint) authenticate(c *candidate) {
	if e.MTLS != nil && e.MTLS.Certificate != "" {
		c.webhook.TLS = &client.TLS{ClientCertificate: e.MTLS.Certificate, ClientKey: e.MTLS.Key}
	}
	a := e.Authentication
	if a == nil {
		return
	}
	switch a.Type {
	case "":
	case "api_key":
		c.send(a.APIKey.Name, a.APIKey.Value)
	case "basic_auth":
		c.send("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(a.Basic.Username+":"+a.Basic.Password)))
	case "oauth2":
		o := a.OAuth2
		if o.Type != "shared_secret" || o.ClientSecret == "" {
			c.lose("its OAuth 2 authentication, %q: only client secrets can be", o.Type)
			return
		}
		c.webhook.Auth = &client.Auth{
			Type: client.AuthOAuth2, TokenURL: o.URL, ClientID: o.ClientID, ClientSecret: o.ClientSecret, Audience: o.Audience,
		}
		if scopes := strings.Fields(o.Scope); len(scopes) > 0 {
			c.webhook.Auth.Scopes = scopes
		}
		if len(o.Mapping) > 0 && string(o.Mapping) != "null" {
			c.note("the names of the fields of its token server's answers have no place")
		}
	default:
		c.lose("its authentication, of the type %q", a.Type)
	}
}

// longestConvoyWait is what Convoy's exponential waits stop at unless its configuration
// says otherwise, in seconds.
const longestConvoyWait = 7200

// retry maps the project's strategy, which counts attempts, to a schedule of waits.
func (p *convoyProject) retry(c *candidate) {
	s := p.Config.Strategy
	if s.Type == "" || s.Duration <= 0 {
		return // Fairhook's own
	}
	waits := max(s.RetryCount-1, 0)
	if waits > webhook.MaxRetries {
		c.note("its %d attempts become %d, the most", s.RetryCount, webhook.MaxRetries+1)
		waits = webhook.MaxRetries
	}
	c.webhook.RetrySchedule = make([]int, waits)
	wait, longest, sum := int(s.Duration), webhook.MaxRetrySeconds, 0
	if s.Type == "exponential" {
		longest = longestConvoyWait
	}
	for i := range c.webhook.RetrySchedule {
		wait = min(wait, longest)
		c.webhook.RetrySchedule[i] = wait
		sum += wait
		if s.Type == "exponential" {
			wait *= 2
		}
	}
	// The last attempt must not come too late, a tenth being jitter.
	if sum += sum / 5; sum > webhook.DefaultMaxAgeSeconds {
		c.webhook.MaxAgeSeconds = min(sum, webhook.MaxMaxAgeSeconds)
	}
}

//go:build unix

package main

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/fairhook/fairhook/pkg/client"
)

// svixExport is what collect.py writes of a Svix environment: the answers of Svix's
// API as they came.
type svixExport struct {
	Applications []struct {
		Application svixApplication `json:"application"`
		Endpoints   []svixItem      `json:"endpoints"`
	} `json:"applications"`
}

// svixApplication is Svix's ApplicationOut.
type svixApplication struct {
	ID           string   `json:"id"`
	UID          string   `json:"uid"`
	ThrottleRate *float64 `json:"throttleRate"`
}

type svixItem struct {
	// Endpoint is Svix's EndpointOut.
	Endpoint struct {
		ID           string            `json:"id"`
		UID          string            `json:"uid"`
		URL          string            `json:"url"`
		Description  string            `json:"description"`
		Disabled     bool              `json:"disabled"`
		EventTypes   []string          `json:"eventTypes"`
		Channels     []string          `json:"channels"`
		ThrottleRate *float64          `json:"throttleRate"`
		Metadata     map[string]string `json:"metadata"`
	} `json:"endpoint"`
	// Secret is Svix's EndpointSecretOut.
	Secret struct {
		Key string `json:"key"`
	} `json:"secret"`
	// Headers is Svix's EndpointHeadersOut: Sensitive has the names of those whose
	// values it does not tell.
	Headers struct {
		Headers   map[string]string `json:"headers"`
		Sensitive []string          `json:"sensitive"`
	} `json:"headers"`
	// Transformation is Svix's EndpointTransformationOut, and OAuth and MTLS are its
	// EndpointOauthOut and EndpointMtlsOut. All are empty where it knows no such thing.
	Transformation svixSwitch `json:"transformation"`
	OAuth          svixSwitch `json:"oauth"`
	MTLS           svixSwitch `json:"mtls"`
}

// svixSwitch says whether something is on.
type svixSwitch struct {
	Enabled bool `json:"enabled"`
}

func (e *svixExport) candidates() (all []*candidate) {
	for _, application := range e.Applications {
		for _, item := range application.Endpoints {
			all = append(all, item.candidate(application.Application))
		}
	}
	return all
}

// candidate maps an endpoint of Svix to a webhook.
func (i *svixItem) candidate(application svixApplication) *candidate {
	e := i.Endpoint
	c := &candidate{origin: "svix " + e.ID, webhook: client.NewWebhook{
		Tenant: cmp.Or(application.UID, application.ID), URL: e.URL,
	}}
	c.describe(e.Description)
	c.subscribe(e.EventTypes)
	for _, name := range slices.Sorted(maps.Keys(i.Headers.Headers)) {
		c.send(name, i.Headers.Headers[name])
	}
	for _, name := range i.Headers.Sensitive {
		if !hasHeader(i.Headers.Headers, name) {
			c.lose("the value of the header %q, which Svix does not tell; put it into the file, among \"headers\"", name)
		}
	}
	switch key := i.Secret.Key; {
	case key == "":
		c.lose("its secret, which the file does not have")
	case strings.HasPrefix(key, "whsk_"):
		c.webhook.PrivateKey = key
		c.webhook.Signatures = []client.SignatureScheme{client.SignStandardEd25519}
	default:
		c.webhook.Secret = key
	}
	if len(e.Channels) > 0 {
		c.lose("its channels (%s): it would get the events of all of them", strings.Join(e.Channels, ", "))
	}
	if i.Transformation.Enabled {
		c.lose("its transformation: it would get payloads as they were submitted")
	}
	if i.OAuth.Enabled {
		c.lose("its OAuth 2 authentication, whose secret Svix does not tell")
	}
	if i.MTLS.Enabled {
		c.lose("its client certificate, whose key Svix does not tell")
	}
	if e.ThrottleRate != nil && *e.ThrottleRate > 0 {
		c.webhook.RatePerSecond = e.ThrottleRate
	}
	if application.ThrottleRate != nil && *application.ThrottleRate > 0 {
		c.note("its application has a rate for all endpoints together, %v a second; tenants have none", *application.ThrottleRate)
	}
	if e.Disabled {
		c.pause("disabled")
	}
	if e.UID != "" {
		c.note("its uid, %q, has no place", e.UID)
	}
	if len(e.Metadata) > 0 {
		c.note("its metadata has no place")
	}
	return c
}

// hasHeader reports whether headers have a value for name, in any spelling.
func hasHeader(headers map[string]string, name string) bool {
	for known := range headers {
		if strings.EqualFold(known, name) {
			return true
		}
	}
	return false
}

// pause has the webhook made paused, since it did not receive.
func (c *candidate) pause(was string) {
	c.webhook.Status = client.WebhookPaused
	c.note("it was %s, and is made paused: its events wait from now on, where they were dropped before. Delete it if it is not to come back", was)
}

package webhook

import (
	"fmt"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// State is whether a webhook receives. Deliveries of a webhook that is not
// active wait; none is dropped.
type State string

// The closed set of webhook states (the API's `status`).
const (
	StateActive   State = "active"
	StatePaused   State = "paused"   // by hand
	StateDisabled State = "disabled" // by Fairhook: see DisabledReason
)

// Defaults of a webhook's limits.
const (
	DefaultTimeoutSeconds = 20
	DefaultMaxInFlight    = 50
	DefaultMaxAgeSeconds  = 4 * 24 * 60 * 60
	DefaultMaxBacklog     = 1_000_000
	DefaultWeight         = 1
)

// DefaultRetrySchedule is the waits after each failed attempt, in seconds: 10
// attempts over 75 h 35 m 05 s (Standard Webhooks 1.0.0, "Deliverability and
// reliability").
func DefaultRetrySchedule() []int {
	return []int{5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400}
}

// Bounds of what a webhook may ask for.
const (
	MaxURLLength         = 2048
	MaxDescriptionLength = 1024
	MaxEventTypes        = 100
	MaxHeaders           = 20
	MaxHeaderName        = 128
	MaxHeaderValue       = 1024
	MaxTimeoutSeconds    = 120
	MaxMaxInFlight       = 1000
	MaxRetries           = 50
	MaxRetrySeconds      = 7 * 24 * 60 * 60
	MaxMaxAgeSeconds     = 30 * 24 * 60 * 60
	MaxMaxBacklog        = 100_000_000
	MaxAcceptPerSecond   = 1_000_000
	MaxRatePerSecond     = 1_000_000
	MaxBurst             = 1_000_000
	MaxWeight            = 100
	MaxAllowedCIDRs      = 100
	MaxSkipAfter         = 1000
)

// Webhook is one subscriber's destination.
type Webhook struct {
	ID          ID     `json:"id"`
	Tenant      string `json:"tenant"`
	URL         string `json:"url"`
	Description string `json:"description"`
	// EventTypes are what the webhook subscribes to: exact types, "*" for all,
	// or "order.*" for everything below order.
	EventTypes     []string          `json:"event_types"`
	State          State             `json:"status"`
	DisabledReason *string           `json:"disabled_reason"`
	Headers        map[string]Secret `json:"headers"` // sent with every request
	TimeoutSeconds int               `json:"timeout_seconds"`
	MaxInFlight    int               `json:"max_in_flight"`
	// RatePerSecond limits how many requests a second are made, over all
	// dispatchers; nil: no limit. Burst is how many may be made at once after a
	// pause; nil: what the rate allows in 0.2 s.
	RatePerSecond *float64 `json:"rate_per_second"`
	Burst         *int     `json:"burst"`
	// Weight is the webhook's part of the dispatchers' turns beside others that
	// have a backlog too.
	Weight int `json:"weight"`
	// Ordering is what deliveries wait for each other, in the order in which their
	// events were accepted; empty counts as OrderingNone. OrderingSkipAfter is after how
	// many failed attempts that count one is given up, so that those behind it go on;
	// nil: when it is too old.
	Ordering          Ordering `json:"ordering"`
	OrderingSkipAfter *int     `json:"ordering_skip_after"`
	// RetrySchedule is the waits after each failed attempt, in seconds: n
	// entries allow n+1 attempts.
	RetrySchedule []int `json:"retry_schedule_seconds"`
	MaxAgeSeconds int   `json:"max_age_seconds"`
	// AcceptPerSecond limits how many events a second are accepted for the
	// webhook, over all copies of ingest; nil: no limit.
	AcceptPerSecond *float64 `json:"accept_per_second"`
	// MaxBacklog is how many deliveries may wait for the webhook; more are not
	// accepted.
	MaxBacklog int `json:"max_backlog"`
	// AllowedCIDRs are the networks from which events may be submitted to the
	// webhook directly; empty: all.
	AllowedCIDRs []string `json:"allowed_cidrs"`
	// Auth is how requests say who sends them, and TLS what is special about their
	// connections; nil: nothing.
	Auth *Auth `json:"auth"`
	TLS  *TLS  `json:"tls"`
	// Sealed are Headers, Auth and TLS as they are stored (package identity); nil where
	// there are none. HeadersSealed says that Headers are in it: those of a webhook that
	// a release before it wrote are stored in the open until they are sealed too.
	Sealed        []byte `json:"-"`
	HeadersSealed bool   `json:"-"`
	// Signatures are how its requests are signed. SignatureTemplate goes with
	// SchemeTemplate, and is nil without it.
	Signatures        []Scheme           `json:"signatures"`
	SignatureTemplate *SignatureTemplate `json:"signature_template"`
	// AutoDisableAfterSeconds is for how long nothing but failure may come of the webhook
	// before it is disabled; 0: it never is; nil: what the dispatchers are set to.
	AutoDisableAfterSeconds *int      `json:"auto_disable_after_seconds"`
	CreatedAt               time.Time `json:"created_at"`
	UpdatedAt               time.Time `json:"updated_at"`
}

// Subscribes reports whether the webhook wants events of this type.
func (w *Webhook) Subscribes(eventType string) bool {
	return slices.ContainsFunc(w.EventTypes, func(pattern string) bool {
		return MatchesType(pattern, eventType)
	})
}

// MatchesType reports whether an event type falls under a pattern: the type
// itself, "*", or "order.*", which stands for "order.paid" and
// "order.item.added" but not for "order" itself.
func MatchesType(pattern, eventType string) bool {
	if pattern == "*" || pattern == eventType {
		return true
	}
	prefix, wild := strings.CutSuffix(pattern, "*")
	return wild && strings.HasSuffix(prefix, ".") && strings.HasPrefix(eventType, prefix)
}

// Check returns everything wrong with a webhook, by JSON Pointer. The URL's
// address rules belong to package egress, which knows what is allowed.
func (w *Webhook) Check() []FieldError {
	var faults []FieldError
	fault := func(pointer, detail string) {
		if detail != "" {
			faults = append(faults, FieldError{Pointer: pointer, Detail: detail})
		}
	}
	within := func(pointer string, value, low, high int) {
		if value < low || value > high {
			fault(pointer, fmt.Sprintf("must be between %d and %d", low, high))
		}
	}

	fault("/tenant", CheckTenant(w.Tenant))
	if w.Description != "" {
		fault("/description", checkFreeText(w.Description, MaxDescriptionLength))
	}
	if len(w.EventTypes) == 0 || len(w.EventTypes) > MaxEventTypes {
		fault("/event_types", fmt.Sprintf("must have between 1 and %d entries", MaxEventTypes))
	}
	for i, pattern := range w.EventTypes {
		fault(fmt.Sprintf("/event_types/%d", i), checkPattern(pattern))
	}
	if len(w.Headers) > MaxHeaders {
		fault("/headers", fmt.Sprintf("must have at most %d entries", MaxHeaders))
	}
	spellings := map[string]int{}
	for name := range w.Headers {
		spellings[textproto.CanonicalMIMEHeaderKey(name)]++
	}
	for name, value := range w.Headers {
		if len(name) > MaxHeaderName { // the pointer does not repeat it
			fault("/headers", fmt.Sprintf("must have names of at most %d bytes", MaxHeaderName))
			continue
		}
		detail := checkHeader(name, value.Reveal())
		if detail == "" && w.Auth != nil && strings.EqualFold(name, "Authorization") {
			detail = "is set by auth, and cannot be chosen beside it"
		}
		if detail == "" && spellings[textproto.CanonicalMIMEHeaderKey(name)] > 1 {
			detail = "is there twice, in different spellings"
		}
		fault("/headers/"+EscapePointer(name), detail)
	}
	within("/timeout_seconds", w.TimeoutSeconds, 1, MaxTimeoutSeconds)
	within("/max_in_flight", w.MaxInFlight, 1, MaxMaxInFlight)
	if w.RatePerSecond != nil && !(*w.RatePerSecond > 0 && *w.RatePerSecond <= MaxRatePerSecond) {
		fault("/rate_per_second", fmt.Sprintf("must be more than 0 and at most %d, or null for no limit", MaxRatePerSecond))
	}
	if w.Burst != nil {
		within("/burst", *w.Burst, 1, MaxBurst)
		if w.RatePerSecond == nil {
			fault("/burst", "needs a rate_per_second, which it is a burst of")
		}
	}
	within("/weight", w.Weight, 1, MaxWeight)
	w.checkOrdering(fault, within)
	if len(w.RetrySchedule) > MaxRetries {
		fault("/retry_schedule_seconds", fmt.Sprintf("must have at most %d entries", MaxRetries))
	}
	for i, wait := range w.RetrySchedule {
		within(fmt.Sprintf("/retry_schedule_seconds/%d", i), wait, 1, MaxRetrySeconds)
	}
	within("/max_age_seconds", w.MaxAgeSeconds, 1, MaxMaxAgeSeconds)
	within("/max_backlog", w.MaxBacklog, 1, MaxMaxBacklog)
	if w.AcceptPerSecond != nil && (*w.AcceptPerSecond <= 0 || *w.AcceptPerSecond > MaxAcceptPerSecond) {
		fault("/accept_per_second", fmt.Sprintf("must be more than 0 and at most %d, or null for no limit", MaxAcceptPerSecond))
	}
	faults = append(faults, CheckCIDRs("/allowed_cidrs", w.AllowedCIDRs)...)
	if w.Auth != nil {
		faults = append(faults, w.Auth.check("/auth")...)
	}
	if w.TLS != nil && !strings.HasPrefix(strings.ToLower(w.URL), "https://") {
		fault("/tls", "needs a url that begins with https://")
	}
	faults = append(faults, w.checkSignatures()...)
	if s := w.AutoDisableAfterSeconds; s != nil && *s != 0 && (*s < MinAutoDisableSeconds || *s > MaxAutoDisableSeconds) {
		fault("/auto_disable_after_seconds", fmt.Sprintf("must be between %d and %d, or 0 for never, or null for what the dispatchers are set to",
			MinAutoDisableSeconds, MaxAutoDisableSeconds))
	}
	slices.SortStableFunc(faults, func(a, b FieldError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return faults
}

func checkPattern(pattern string) string {
	if pattern == "*" {
		return ""
	}
	if fault := CheckEventType(strings.TrimSuffix(pattern, ".*")); fault != "" {
		return fault + " (or be \"*\", or end in \".*\")"
	}
	return ""
}

// checkFreeText allows line breaks, which checkText does not.
func checkFreeText(s string, limit int) string {
	switch {
	case len(s) > limit:
		return fmt.Sprintf("must be at most %d bytes long", limit)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return "must be valid UTF-8 without NUL"
	}
	return ""
}

func checkHeader(name, value string) string {
	switch {
	case !httpguts.ValidHeaderFieldName(name):
		return "is not a header name"
	case ReservedHeader(name):
		return "is set by Fairhook or belongs to the connection, and cannot be chosen"
	case len(value) > MaxHeaderValue:
		return fmt.Sprintf("must be at most %d bytes long", MaxHeaderValue)
	case !httpguts.ValidHeaderFieldValue(value):
		return "is not a header value"
	}
	return ""
}

// CheckCIDRs returns what is wrong with a list of networks, as field errors below
// the given JSON Pointer. A network is an address, a slash and a length, without
// bits beyond that length.
func CheckCIDRs(pointer string, cidrs []string) []FieldError {
	if len(cidrs) > MaxAllowedCIDRs {
		return []FieldError{{Pointer: pointer, Detail: fmt.Sprintf("must have at most %d entries", MaxAllowedCIDRs)}}
	}
	var faults []FieldError
	for i, text := range cidrs {
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			faults = append(faults, FieldError{Pointer: fmt.Sprintf("%s/%d", pointer, i), Detail: "must be a network such as 192.0.2.0/24"})
		case prefix.Masked() != prefix:
			faults = append(faults, FieldError{Pointer: fmt.Sprintf("%s/%d", pointer, i), Detail: "has bits beyond its length: did you mean " + prefix.Masked().String() + "?"})
		}
	}
	return faults
}

// ReservedHeader reports whether a header may not be chosen by a webhook: it is
// one of ours, frames the message, or is hop-by-hop (RFC 9110, section 7.6.1).
// Connection is among them, so no other can be made hop-by-hop by naming it there.
func ReservedHeader(name string) bool {
	name = textproto.CanonicalMIMEHeaderKey(name)
	if strings.HasPrefix(name, "Webhook-") || strings.HasPrefix(name, "Fairhook-") || strings.HasPrefix(name, "Proxy-") {
		return true
	}
	switch name {
	case "Host", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Connection",
		"Keep-Alive", "Te", "Trailer", "Upgrade", "Http2-Settings", "Expect", "User-Agent", "Traceparent", "Tracestate":
		return true
	}
	return false
}

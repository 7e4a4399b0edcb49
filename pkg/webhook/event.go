package webhook

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits on the parts of an event. Sizes are in bytes.
const (
	maxReasonLength      = 64
	MaxTenantLength      = 256
	MaxEventTypeLength   = 256
	MaxMetadataKeys      = 50
	MaxMetadataKeyLength = 64
	MaxMetadataValue     = 512
	MaxContentTypeLength = 256
)

// Event is one thing that happened. Its payload is kept and sent byte for byte.
type Event struct {
	ID          ID
	Tenant      string
	Type        string
	Payload     []byte
	ContentType string            // media type of Payload
	OccurredAt  *time.Time        // when it happened, where the producer said so
	Metadata    map[string]string // the producer's own labels; never sent to receivers
	WebhookIDs  []ID              // the targets chosen at acceptance
	// OrderingKey is what the event is ordered by where a webhook is ordered by key;
	// empty: nothing.
	OrderingKey string
}

// ContentTypeJSON is the content type of an event submitted as JSON.
const ContentTypeJSON = "application/json"

// CreatedAt is when the event was accepted, to the millisecond, by the
// database's clock: the time in its id.
func (e *Event) CreatedAt() time.Time { return e.ID.Time() }

// EventView is how the API shows an event.
type EventView struct {
	ID          ID                `json:"id"`
	Tenant      string            `json:"tenant"`
	Type        string            `json:"type"`
	CreatedAt   time.Time         `json:"created_at"`
	Timestamp   *time.Time        `json:"timestamp"`
	Metadata    map[string]string `json:"metadata"`
	OrderingKey *string           `json:"ordering_key"`
	ContentType string            `json:"content_type"`
	// Payload is the payload itself when it is JSON, byte for byte; null
	// otherwise, and then PayloadBase64 has it.
	Payload       json.RawMessage `json:"payload"`
	PayloadBase64 *string         `json:"payload_base64,omitempty"`
	Deliveries    []Delivery      `json:"deliveries"`
}

// CheckTenant returns what is wrong with a tenant key, or an empty string.
func CheckTenant(tenant string) string { return checkText(tenant, MaxTenantLength) }

// CheckReason returns what is wrong with a reason that is asked for, or an empty
// string. A word that is not in the closed set is not wrong: a newer version may have
// written it.
func CheckReason(reason string) string { return checkText(reason, maxReasonLength) }

// CheckEventType returns what is wrong with an event type, or an empty string.
// A type is dot-delimited segments of letters, digits, '_' and '-' (Standard
// Webhooks 1.0.0, "Payload structure", plus the hyphen that senders in the wild
// use).
func CheckEventType(eventType string) string {
	if fault := checkText(eventType, MaxEventTypeLength); fault != "" {
		return fault
	}
	for segment := range strings.SplitSeq(eventType, ".") {
		if segment == "" {
			return "must be dot-delimited segments, none of them empty"
		}
		for _, r := range segment {
			if !isTypeRune(r) {
				return "must be dot-delimited segments of letters, digits, '_' and '-'"
			}
		}
	}
	return ""
}

func isTypeRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-'
}

// checkText refuses what Postgres text or an HTTP header could not carry.
func checkText(s string, limit int) string {
	switch {
	case s == "":
		return "must not be empty"
	case len(s) > limit:
		return fmt.Sprintf("must be at most %d bytes long", limit)
	case !utf8.ValidString(s):
		return "must be valid UTF-8"
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f {
			return "must not contain control characters"
		}
	}
	return ""
}

// CheckMetadata returns what is wrong with an event's metadata, as field errors
// below the given JSON Pointer.
func CheckMetadata(pointer string, metadata map[string]string) []FieldError {
	// Which of far too many are wrong besides is not worth telling.
	if len(metadata) > MaxMetadataKeys {
		return []FieldError{{Pointer: pointer, Detail: fmt.Sprintf("must have at most %d keys", MaxMetadataKeys)}}
	}
	var faults []FieldError
	for key, value := range metadata {
		at := pointer + "/" + EscapePointer(key)
		if fault := checkText(key, MaxMetadataKeyLength); fault != "" {
			faults = append(faults, FieldError{Pointer: at, Detail: "its name " + fault})
		}
		if value == "" {
			continue
		}
		if fault := checkText(value, MaxMetadataValue); fault != "" {
			faults = append(faults, FieldError{Pointer: at, Detail: fault})
		}
	}
	return faults
}

// EscapePointer escapes one reference token of a JSON Pointer (RFC 6901,
// section 3).
func EscapePointer(token string) string {
	return pointerEscapes.Replace(token)
}

var pointerEscapes = strings.NewReplacer("~", "~0", "/", "~1")

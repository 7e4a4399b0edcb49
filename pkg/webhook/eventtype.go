package webhook

import (
	"encoding/json"
	"mime"
	"strings"
	"time"
)

// EventType is a type of event that the operator has declared. Declared types
// are shared by all tenants.
type EventType struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	// Schema is the JSON Schema (draft 2020-12) that payloads of the type must
	// satisfy, byte for byte as it was given; nil: any payload will do.
	// encoding/json would compact it.
	Schema    json.RawMessage `json:"schema"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// Check returns everything wrong with an event type besides its schema, which
// package schema judges.
func (t *EventType) Check() []FieldError {
	var faults []FieldError
	if fault := CheckEventType(t.Name); fault != "" {
		faults = append(faults, FieldError{Parameter: "name", Detail: fault})
	}
	if fault := checkFreeText(t.Description, MaxDescriptionLength); fault != "" {
		faults = append(faults, FieldError{Pointer: "/description", Detail: fault})
	}
	return faults
}

// IsJSON reports whether a content type is one of JSON's: application/json, or
// any with the suffix +json (RFC 6839, section 3.1).
func IsJSON(contentType string) bool {
	if contentType == ContentTypeJSON {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && (mediaType == ContentTypeJSON || strings.HasSuffix(mediaType, "+json"))
}

package webhook_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestIsJSON(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]bool{
		"application/json":                  true,
		"Application/JSON; charset=utf-8":   true,
		"application/cloudevents+json":      true,
		"application/problem+json; a=b":     true,
		"text/plain":                        false,
		"application/jsonl":                 false,
		"application/json5":                 false,
		"text/plain; type=application/json": false,
		"":                                  false,
		"application/json; =":               false,
	} {
		if got := webhook.IsJSON(contentType); got != want {
			t.Errorf("IsJSON(%q) = %t", contentType, got)
		}
	}
}

func TestEventTypeCheck(t *testing.T) {
	t.Parallel()
	good := webhook.EventType{Name: "order.paid", Description: "line one\nline two"}
	if faults := good.Check(); len(faults) > 0 {
		t.Errorf("Check() = %+v", faults)
	}
	bad := webhook.EventType{Name: "order.*", Description: strings.Repeat("a", webhook.MaxDescriptionLength+1)}
	want := []webhook.FieldError{
		{Parameter: "name", Detail: "must be dot-delimited segments of letters, digits, '_' and '-'"},
		{Pointer: "/description", Detail: "must be at most 1024 bytes long"},
	}
	if faults := bad.Check(); !slices.Equal(faults, want) {
		t.Errorf("Check() = %+v, want %+v", faults, want)
	}
}

package ingest

import (
	"context"
	"fmt"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// parse is parseSubmission for a body whose structure is within bounds.
func (s *Server) parse(body []byte) (*submission, error) {
	if err := s.bounds.Check(body); err != nil {
		return nil, err
	}
	return parseSubmission(body)
}

// checkPayload checks a submission against what has been declared of its type.
// typeField is where the request has the type.
func (s *Server) checkPayload(ctx context.Context, sub *submission, typeField webhook.FieldError) error {
	declared, err := s.catalog.EventType(ctx, sub.eventType)
	switch {
	case err != nil:
		return fmt.Errorf("find an event's type: %w", err)
	case !declared.Declared && s.strictEventTypes:
		typeField.Detail = "is not a declared event type"
		return invalidEvent(typeField)
	case !declared.HasSchema():
		return nil
	case !webhook.IsJSON(sub.contentType):
		return webhook.Errorf(webhook.CodeInvalid,
			"The event's type has a JSON Schema, so its payload must be JSON and its Content-Type must say so.")
	}
	faults, err := declared.Validate(ctx, sub.payload)
	switch {
	case err != nil:
		return fmt.Errorf("check a payload of type %s: %w", sub.eventType, err)
	case len(faults) == 0:
		return nil
	}
	if sub.way != wayRaw { // there the payload is the body
		for i := range faults {
			faults[i].Pointer = "/payload" + faults[i].Pointer
		}
	}
	return &webhook.Error{Code: webhook.CodeInvalid, Message: "The payload does not satisfy the schema of its type.", Fields: faults}
}

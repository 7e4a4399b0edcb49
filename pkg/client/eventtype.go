package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// EventType is what has been declared of a type of event.
type EventType struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	// Schema is the JSON Schema (draft 2020-12) that payloads of the type must
	// satisfy, byte for byte as it was declared; nil: any payload will do.
	Schema    json.RawMessage `json:"schema"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// UnmarshalJSON reads an event type. A null schema is none.
func (t *EventType) UnmarshalJSON(text []byte) error {
	type plain EventType
	if err := json.Unmarshal(text, (*plain)(t)); err != nil {
		return err
	}
	if string(t.Schema) == "null" {
		t.Schema = nil
	}
	return nil
}

// EventTypeDeclaration is what to declare of an event type. It replaces all that
// was declared before.
type EventTypeDeclaration struct {
	Description string
	// Schema is a JSON Schema, kept byte for byte; nil: any payload will do.
	Schema json.RawMessage
}

// EventTypes manages event types, which all tenants share.
type EventTypes struct{ client *Client }

// EventTypes is the part of the API that manages event types.
func (c *Client) EventTypes() EventTypes { return EventTypes{c} }

// Put declares an event type, or replaces what was declared of it.
func (e EventTypes) Put(ctx context.Context, name string, declaration EventTypeDeclaration) (*EventType, error) {
	body, err := declaration.encode()
	if err != nil {
		return nil, err
	}
	return e.one(ctx, name, call{method: http.MethodPut, header: jsonContent(), body: body, repeatable: true})
}

// Get reads an event type.
func (e EventTypes) Get(ctx context.Context, name string) (*EventType, error) {
	return e.one(ctx, name, call{method: http.MethodGet, repeatable: true})
}

// Delete takes back the declaration of an event type.
func (e EventTypes) Delete(ctx context.Context, name string) error {
	path, err := eventTypePath(name)
	if err != nil {
		return err
	}
	got, err := e.client.do(ctx, call{method: http.MethodDelete, path: path, repeatable: true}, nil)
	if got != nil && got.status == http.StatusNotFound && got.tries > 1 {
		return nil // an earlier try, whose answer was lost, deleted it
	}
	return err
}

// List goes through the declared event types in the order of their names,
// fetching page after page, of pageSize or the server's default, as the loop goes
// on. An error is the last thing it yields.
func (e EventTypes) List(ctx context.Context, pageSize int) iter.Seq2[*EventType, error] {
	query := url.Values{}
	if pageSize != 0 {
		query.Set("limit", strconv.Itoa(pageSize))
	}
	return list[EventType](ctx, e.client, "/v1/event-types", query)
}

func (e EventTypes) one(ctx context.Context, name string, call call) (*EventType, error) {
	var err error
	if call.path, err = eventTypePath(name); err != nil {
		return nil, err
	}
	t := &EventType{}
	if _, err := e.client.do(ctx, call, t); err != nil {
		return nil, err
	}
	return t, nil
}

// eventTypePath refuses names that would make another path than the one meant.
func eventTypePath(name string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", fmt.Errorf("fairhook: %q is not an event type", name)
	}
	return "/v1/event-types/" + url.PathEscape(name), nil
}

func (d EventTypeDeclaration) encode() ([]byte, error) {
	description, err := json.Marshal(d.Description)
	if err != nil {
		return nil, fmt.Errorf("fairhook: encode the event type: %w", err)
	}
	schema := []byte(d.Schema)
	switch {
	case schema == nil:
		schema = []byte("null")
	case !json.Valid(schema):
		return nil, errors.New("fairhook: the schema is not JSON")
	}
	// encoding/json would compact the schema.
	return slices.Concat([]byte(`{"description":`), description, []byte(`,"schema":`), schema, []byte(`}`)), nil
}

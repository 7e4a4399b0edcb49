package strictjson

import (
	"encoding/json"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Value is a part of a body that has been found to be JSON. It refers to the
// body, which must not change.
type Value struct {
	raw []byte // without surrounding whitespace
}

// ParseElements reads an array and returns its elements, but at most limit of
// them: more are counted by nobody, so a caller that bounds them asks for one
// more than it takes.
//
// The error is a *webhook.Error with CodeMalformed: the body is not JSON (with
// the offset of the first byte that is wrong), or no array.
func ParseElements(body []byte, limit int) ([]Value, error) {
	if !json.Valid(body) {
		return nil, syntaxError(body)
	}
	rest := skipSpace(body)
	if rest[0] != '[' {
		return nil, malformed("The body must be a JSON array.", webhook.FieldError{Detail: "must be an array, not " + kind(rest)})
	}
	var values []Value
	rest = skipSpace(rest[1:])
	for rest[0] != ']' && len(values) < limit {
		value := rest[:valueEnd(rest)]
		values = append(values, Value{value})
		rest = skipSpace(rest[len(value):])
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
	}
	return values, nil
}

// ParseValue reads one value, of any type.
//
// The error is a *webhook.Error with CodeMalformed: the text is not JSON, with
// the offset of the first byte that is wrong.
func ParseValue(text []byte) (Value, error) {
	if !json.Valid(text) {
		return Value{}, syntaxError(text)
	}
	rest := skipSpace(text)
	end := valueEnd(rest)
	return Value{rest[:end]}, nil
}

// Bytes is the value exactly as sent, without the whitespace around it.
func (v Value) Bytes() []byte { return v.raw }

// Object reads the value as Parse reads a body. Pointers begin at the value.
func (v Value) Object(verbatim string, names ...string) (*Object, error) {
	return parseObject("item", v.raw, verbatim, names)
}

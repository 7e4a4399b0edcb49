package openapi

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// members is a JSON object in the order in which it is written: readers are to
// see the fields as the document's author arranged them.
type members[T any] []member[T]

type member[T any] struct {
	Name  string
	Value T
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *members[T]) UnmarshalJSON(text []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return fmt.Errorf("read an object: it begins with %v", start)
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return fmt.Errorf("read an object: %w", err)
		}
		one := member[T]{Name: name.(string)} // a key: the decoder sees to it
		if err := decoder.Decode(&one.Value); err != nil {
			return fmt.Errorf("read %s: %w", one.Name, err)
		}
		*m = append(*m, one)
	}
	return nil
}

// get is the value with this name, and whether there is one.
func (m members[T]) get(name string) (value T, found bool) {
	for _, one := range m {
		if one.Name == name {
			return one.Value, true
		}
	}
	return value, false
}

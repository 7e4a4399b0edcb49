// Package strictjson reads a request body that must be one JSON object with
// known members, and says exactly what is wrong with one that is not.
//
// encoding/json forgives what an API must not: it matches names in any case,
// lets the last of two equal names win, replaces invalid UTF-8 and lone
// surrogates, and drops what it does not know. This package refuses each of
// these, names the place by JSON Pointer (RFC 6901), and leaves a member that
// the caller wants verbatim untouched: its bytes are a part of the body, never
// encoded again.
//
// Whether a body is JSON at all (RFC 8259) is encoding/json's judgement, nesting
// limit included. Trouble with the body as a whole or with its members' names
// is webhook.CodeMalformed; a member of the wrong type is collected as a fault,
// so that a caller can answer with everything that is wrong at once.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// maxFaults is how many faults an answer lists.
	maxFaults = 50
	// maxNameShown is how many bytes of an unknown name an answer repeats.
	maxNameShown = 128
)

// Object is a JSON object's known members. Its reading methods return the zero
// value for a member that is absent or null; one of another type is a fault.
//
// It refers to the body that it was read from, which must not change.
type Object struct {
	names  []string
	values [][]byte // as in the body, without surrounding whitespace; nil: absent
	faults []webhook.FieldError
}

// Parse reads an object with these members. A verbatim member, if it is not
// empty, is one of them whose strings need not be valid UTF-8: it is for
// passing on, not for reading.
//
// The error is a *webhook.Error with CodeMalformed: the body is not JSON (with
// the offset of the first byte that is wrong), is no object, has members that
// are unknown or given twice, or holds text that is not valid UTF-8.
func Parse(body []byte, verbatim string, names ...string) (*Object, error) {
	if !json.Valid(body) {
		return nil, syntaxError(body)
	}
	return parseObject("body", skipSpace(body), verbatim, names)
}

// parseObject is Parse for text that is JSON. subject is what an answer calls it.
func parseObject(subject string, rest []byte, verbatim string, names []string) (*Object, error) {
	if rest[0] != '{' {
		return nil, malformed("The "+subject+" must be a JSON object.", webhook.FieldError{Detail: "must be an object, not " + kind(rest)})
	}
	o := &Object{names: names, values: make([][]byte, len(names))}
	var structural []webhook.FieldError
	eachMember(rest, func(rawName, value []byte) {
		if len(structural) >= maxFaults {
			return
		}
		name, fault := text(rawName)
		if fault != "" {
			structural = append(structural, webhook.FieldError{Pointer: pointer(name), Detail: "its name " + fault})
			return
		}
		i := slices.Index(names, name)
		switch {
		case i < 0:
			structural = append(structural, webhook.FieldError{Pointer: pointer(name), Detail: "is not a known field"})
		case o.values[i] != nil:
			structural = append(structural, webhook.FieldError{Pointer: pointer(name), Detail: "is given more than once"})
		default:
			o.values[i] = value
			if name == verbatim {
				return
			}
			if !utf8.Valid(value) {
				structural = append(structural, webhook.FieldError{Pointer: pointer(name), Detail: "must be valid UTF-8"})
			}
		}
	})
	if len(structural) > 0 {
		return nil, malformed("The "+subject+" has fields that this request does not take, or not like this.", structural...)
	}
	return o, nil
}

func malformed(message string, faults ...webhook.FieldError) *webhook.Error {
	return &webhook.Error{Code: webhook.CodeMalformed, Message: message, Fields: faults}
}

// syntaxError says where a body that is not JSON goes wrong.
func syntaxError(body []byte) *webhook.Error {
	var discard json.RawMessage
	err := json.Unmarshal(body, &discard)
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return malformed("The body is not JSON.", webhook.FieldError{Detail: "is not JSON"})
	}
	detail := fmt.Sprintf("%s at byte offset %d", syntax.Error(), max(syntax.Offset-1, 0))
	if syntax.Offset >= int64(len(body)) && bytes.HasPrefix([]byte(syntax.Error()), []byte("unexpected end")) {
		detail = fmt.Sprintf("ends too early, at byte offset %d", len(body))
	}
	return malformed("The body is not JSON: "+detail+".", webhook.FieldError{Detail: detail})
}

// Faults is what the reading methods found wrong so far, as field errors with
// pointers, at most 50 of them.
func (o *Object) Faults() []webhook.FieldError { return o.faults }

func (o *Object) fault(pointer, detail string) {
	if len(o.faults) < maxFaults {
		o.faults = append(o.faults, webhook.FieldError{Pointer: pointer, Detail: detail})
	}
}

// Raw is a member's bytes exactly as sent, without the whitespace around it, or
// nil when it is absent. A null is the four bytes of null.
func (o *Object) Raw(name string) []byte {
	i := slices.Index(o.names, name)
	if i < 0 {
		panic("strictjson: " + name + " was not given to Parse") // a programmer's mistake
	}
	return o.values[i]
}

// Given reports whether a member is there, null or not.
func (o *Object) Given(name string) bool { return o.Raw(name) != nil }

// Has reports whether a member is there and not null.
func (o *Object) Has(name string) bool {
	raw := o.Raw(name)
	return raw != nil && raw[0] != 'n'
}

// String reads a string.
func (o *Object) String(name string) string {
	if !o.Has(name) {
		return ""
	}
	s, fault := stringValue(o.Raw(name))
	if fault != "" {
		o.fault("/"+name, fault)
	}
	return s
}

// Int reads a whole number of at most 32 bits.
func (o *Object) Int(name string) int {
	if !o.Has(name) {
		return 0
	}
	n, fault := intValue(o.Raw(name))
	if fault != "" {
		o.fault("/"+name, fault)
	}
	return n
}

// Bool reads true or false; false when the member is absent or null.
func (o *Object) Bool(name string) bool {
	if !o.Has(name) {
		return false
	}
	raw := o.Raw(name)
	if raw[0] != 't' && raw[0] != 'f' {
		o.fault("/"+name, "must be true or false, not "+kind(raw))
	}
	return raw[0] == 't'
}

// Float reads a finite number; nil when the member is absent or null.
func (o *Object) Float(name string) *float64 {
	if !o.Has(name) {
		return nil
	}
	raw := o.Raw(name)
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || raw[0] == '"' {
		o.fault("/"+name, "must be a number, not "+kind(raw))
		return nil
	}
	return &f
}

// Time reads a moment as RFC 3339 writes it, between the years 1 and 9999 UTC;
// nil when the member is absent or null.
func (o *Object) Time(name string) *time.Time {
	if !o.Has(name) {
		return nil
	}
	s, fault := stringValue(o.Raw(name))
	if fault != "" {
		o.fault("/"+name, fault)
		return nil
	}
	var t time.Time
	err := t.UnmarshalText([]byte(s))
	t = t.UTC()
	// Package time takes a comma for the decimal point, which RFC 3339 does not.
	if err != nil || strings.Contains(s, ",") || t.Year() < 1 || t.Year() > 9999 {
		o.fault("/"+name, "must be a moment as in RFC 3339, for example 2026-01-31T12:00:00Z")
		return nil
	}
	return &t
}

// Strings reads an array of strings; nil when the member is absent or null, and
// otherwise never nil.
func (o *Object) Strings(name string) []string {
	return array(o, name, "strings", stringValue)
}

// Ints reads an array of whole numbers of at most 32 bits; nil when the member
// is absent or null, and otherwise never nil.
func (o *Object) Ints(name string) []int {
	return array(o, name, "whole numbers", intValue)
}

func array[T any](o *Object, name, of string, read func([]byte) (T, string)) []T {
	if !o.Has(name) {
		return nil
	}
	raw := o.Raw(name)
	if raw[0] != '[' {
		o.fault("/"+name, "must be an array of "+of+", not "+kind(raw))
		return nil
	}
	all := []T{}
	eachElement(raw, func(value []byte) {
		element, fault := read(value)
		if fault != "" {
			o.fault("/"+name+"/"+strconv.Itoa(len(all)), fault)
		}
		all = append(all, element)
	})
	return all
}

// StringMap reads an object whose members are strings; nil when it is absent or
// null, and otherwise never nil. A name given twice is a fault.
func (o *Object) StringMap(name string) map[string]string {
	if !o.Has(name) {
		return nil
	}
	raw := o.Raw(name)
	if raw[0] != '{' {
		o.fault("/"+name, "must be an object of strings, not "+kind(raw))
		return nil
	}
	all := map[string]string{}
	eachMember(raw, func(rawName, rawValue []byte) {
		key, fault := text(rawName)
		at := "/" + name + pointer(key)
		if fault != "" {
			o.fault(at, "its name "+fault)
			return
		}
		if _, twice := all[key]; twice {
			o.fault(at, "is given more than once")
			return
		}
		value, fault := stringValue(rawValue)
		if fault != "" {
			o.fault(at, fault)
		}
		all[key] = value
	})
	return all
}

func stringValue(raw []byte) (s, fault string) {
	if raw[0] != '"' {
		return "", "must be a string, not " + kind(raw)
	}
	return text(raw)
}

func intValue(raw []byte) (n int, fault string) {
	if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, "must be a whole number, not " + kind(raw)
	}
	n64, err := strconv.ParseInt(string(raw), 10, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, "is out of range"
	case err != nil:
		return 0, "must be a whole number, without fraction or exponent"
	}
	return int(n64), ""
}

// text decodes a valid JSON string, quotes included. What encoding/json would
// silently replace is a fault.
func text(raw []byte) (s, fault string) {
	inner := raw[1 : len(raw)-1]
	if !utf8.Valid(inner) {
		return string(bytes.ToValidUTF8(inner, []byte("\uFFFD"))), "must be valid UTF-8"
	}
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner), ""
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", "must be a string" // not reached: raw was scanned as a string
	}
	if hasLoneSurrogate(inner) {
		return s, "must not contain half of a surrogate pair"
	}
	return s, ""
}

// hasLoneSurrogate looks for an escape that is one half of a UTF-16 pair
// without its other half (RFC 8259, section 8.2).
func hasLoneSurrogate(inner []byte) bool {
	for i := 0; i < len(inner); i++ {
		if inner[i] != '\\' {
			continue
		}
		i++ // the escaped character
		if inner[i] != 'u' {
			continue
		}
		unit := hex4(inner[i+1:])
		i += 4
		switch {
		case unit >= 0xDC00 && unit < 0xE000:
			return true
		case unit >= 0xD800 && unit < 0xDC00:
			next := inner[i+1:]
			if len(next) < 6 || next[0] != '\\' || next[1] != 'u' {
				return true
			}
			if low := hex4(next[2:]); low < 0xDC00 || low >= 0xE000 {
				return true
			}
			i += 6
		}
	}
	return false
}

// hex4 reads the four digits of an escape that encoding/json has found valid.
func hex4(digits []byte) uint64 {
	n, _ := strconv.ParseUint(string(digits[:4]), 16, 32)
	return n
}

// pointer is the JSON Pointer of a member, with an endless name cut short.
func pointer(name string) string {
	if len(name) > maxNameShown {
		cut := maxNameShown
		for !utf8.RuneStart(name[cut]) {
			cut--
		}
		name = name[:cut] + "…"
	}
	return "/" + webhook.EscapePointer(name)
}

// kind names a valid value's type, as an API's reader would.
func kind(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// The functions below walk over text that json.Valid has accepted, so they look
// for no errors; that is what makes them short.

// eachMember calls f with each member of an object: its name in quotes and its
// value. Both are parts of raw.
func eachMember(raw []byte, f func(name, value []byte)) {
	rest := skipSpace(raw[1:])
	for rest[0] != '}' {
		name := rest[:valueEnd(rest)]
		rest = skipSpace(rest[len(name):])
		rest = skipSpace(rest[1:]) // the colon
		value := rest[:valueEnd(rest)]
		f(name, value)
		rest = skipSpace(rest[len(value):])
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
	}
}

// eachElement calls f with each value of an array.
func eachElement(raw []byte, f func(value []byte)) {
	rest := skipSpace(raw[1:])
	for rest[0] != ']' {
		value := rest[:valueEnd(rest)]
		f(value)
		rest = skipSpace(rest[len(value):])
		if rest[0] == ',' {
			rest = skipSpace(rest[1:])
		}
	}
}

func skipSpace(rest []byte) []byte {
	for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\n' || rest[0] == '\t' || rest[0] == '\r') {
		rest = rest[1:]
	}
	return rest
}

// valueEnd is the length of the value at the start of rest.
func valueEnd(rest []byte) int {
	switch rest[0] {
	case '"':
		return stringEnd(rest)
	case '{', '[':
		depth := 0
		for i := 0; ; i++ {
			switch rest[i] {
			case '"':
				i += stringEnd(rest[i:]) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	default: // a number, true, false or null
		if i := bytes.IndexAny(rest, ",]} \n\t\r"); i >= 0 {
			return i
		}
		return len(rest)
	}
}

// stringEnd is the length of the string at the start of rest, quotes included.
// One that does not end, which is not JSON, reaches to the end of rest.
func stringEnd(rest []byte) int {
	i := 1
	for {
		closing := bytes.IndexByte(rest[i:], '"')
		if closing < 0 {
			return len(rest)
		}
		i += closing
		backslashes := 0
		for rest[i-1-backslashes] == '\\' {
			backslashes++
		}
		i++
		if backslashes%2 == 0 {
			return i
		}
	}
}

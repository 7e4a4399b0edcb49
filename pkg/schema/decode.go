package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Limits on numbers that are compared with a schema's. They are computed with
// exactly, and a number of a few bytes can have a million digits. An IEEE double
// written out in full is within them.
const (
	maxNumberLength   = 512
	maxNumberExponent = 1000
)

// maxNameShown is how many bytes of a member's name a pointer repeats.
const maxNameShown = 128

// location is a value's place in a document.
type location struct {
	parent *location // nil: the document itself
	token  string    // a member's name, or an element's index
}

func (l *location) pointer() string {
	var tokens []string
	for ; l != nil; l = l.parent {
		tokens = append(tokens, l.token)
	}
	var text strings.Builder
	for i := len(tokens) - 1; i >= 0; i-- {
		text.WriteString(pointerToken(tokens[i]))
	}
	return text.String()
}

// pointerToken is one step of a JSON Pointer, with an endless name cut short.
func pointerToken(name string) string {
	if len(name) > maxNameShown {
		name = cut(name, maxNameShown)
	}
	return "/" + webhook.EscapePointer(name)
}

// cut shortens text to at most limit bytes and an ellipsis.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit] + "…"
}

// decoder makes a tree of a JSON text. What readers would understand in
// different ways, or what would cost too much to compare, is a fault: a schema
// must not approve of one reading while a receiver goes by another.
type decoder struct {
	json      *json.Decoder
	maxDepth  int
	maxValues int
	values    int
	faults    []webhook.FieldError
}

// decode reads a whole JSON text into the values that a schema is compared with:
// map[string]any, []any, string, json.Number, bool and nil. It reports what is
// wrong with the text by JSON Pointer, and has a value only when nothing is.
func decode(text []byte, maxDepth, maxValues int) (any, []webhook.FieldError) {
	switch {
	case !utf8.Valid(text):
		return nil, []webhook.FieldError{{Detail: "must be valid UTF-8"}}
	case !json.Valid(text):
		return nil, []webhook.FieldError{{Detail: "is not JSON"}}
	}
	d := &decoder{json: json.NewDecoder(bytes.NewReader(text)), maxDepth: maxDepth, maxValues: maxValues}
	d.json.UseNumber()
	value := d.value(nil, 0)
	if len(d.faults) > 0 {
		return nil, d.faults
	}
	return value, nil
}

func (d *decoder) fault(at *location, detail string) {
	if len(d.faults) < MaxFaults {
		d.faults = append(d.faults, webhook.FieldError{Pointer: at.pointer(), Detail: detail})
	}
}

// stop ends the reading: what is left is not worth a look.
func (d *decoder) stop(at *location, detail string) {
	d.fault(at, detail)
	d.json = nil
}

// value reads the next value. After stop it returns at once.
func (d *decoder) value(at *location, depth int) any {
	if d.values++; d.values > d.maxValues {
		d.stop(nil, fmt.Sprintf("has more than %d values", d.maxValues))
		return nil
	}
	switch token := d.token().(type) {
	case json.Delim:
		if depth++; depth > d.maxDepth {
			d.stop(at, fmt.Sprintf("is nested deeper than %d levels", d.maxDepth))
			return nil
		}
		if token == '[' {
			return d.array(at, depth)
		}
		return d.object(at, depth)
	case json.Number:
		d.checkNumber(at, string(token))
		return token
	default: // a string, a boolean or null
		return token
	}
}

func (d *decoder) array(at *location, depth int) []any {
	all := []any{}
	for d.more() {
		all = append(all, d.value(&location{at, strconv.Itoa(len(all))}, depth))
	}
	d.token()
	return all
}

func (d *decoder) object(at *location, depth int) map[string]any {
	all := map[string]any{}
	for d.more() {
		name, _ := d.token().(string)
		member := &location{at, name}
		if _, twice := all[name]; twice {
			d.fault(member, "is given more than once")
		}
		all[name] = d.value(member, depth)
	}
	d.token()
	return all
}

func (d *decoder) more() bool { return d.json != nil && d.json.More() }

// token is the next token of a text that is known to be JSON.
func (d *decoder) token() json.Token {
	if d.json == nil {
		return nil
	}
	token, err := d.json.Token()
	if err != nil {
		d.stop(nil, "is not JSON") // not reached: json.Valid has accepted the text
	}
	return token
}

func (d *decoder) checkNumber(at *location, text string) {
	if len(text) > maxNumberLength {
		d.fault(at, fmt.Sprintf("is a number of more than %d characters", maxNumberLength))
		return
	}
	if n := exponent(text); n < -maxNumberExponent || n > maxNumberExponent {
		d.fault(at, fmt.Sprintf("is a number with an exponent beyond %d", maxNumberExponent))
	}
}

// exponent is what follows the e of a JSON number, or 0. One that does not fit
// an int is as far out as an int can say.
func exponent(number string) int {
	i := strings.IndexAny(number, "eE")
	if i < 0 {
		return 0
	}
	n, _ := strconv.Atoi(number[i+1:]) // out of range: the nearest int
	return n
}

// appendCanonical appends a text that two decoded values have in common exactly
// if JSON Schema counts them as equal (draft 2020-12, core, section 4.2.2): the
// order of members and the spelling of a number do not matter.
func appendCanonical(text []byte, value any) []byte {
	switch value := value.(type) {
	case nil:
		return append(text, 'n')
	case bool:
		return strconv.AppendBool(text, value)
	case json.Number:
		return append(appendNumber(append(text, '#'), string(value)), ';')
	case string:
		// The length keeps what follows apart from it.
		text = strconv.AppendInt(append(text, '"'), int64(len(value)), 10)
		return append(append(text, ':'), value...)
	case []any:
		text = append(text, '[')
		for _, element := range value {
			text = appendCanonical(text, element)
		}
		return append(text, ']')
	case map[string]any:
		text = append(text, '{')
		for _, name := range sortedNames(value) {
			text = appendCanonical(text, name)
			text = appendCanonical(text, value[name])
		}
		return append(text, '}')
	default:
		panic(fmt.Sprintf("schema: a %T in a decoded value", value)) // a programmer's mistake
	}
}

// appendNumber appends the sign of a JSON number, its digits and power of ten.
func appendNumber(text []byte, number string) []byte {
	significant, power := digits(number)
	if number[0] == '-' && significant != "" {
		text = append(text, '-')
	}
	text = append(append(text, significant...), 'e')
	return strconv.AppendInt(text, int64(power), 10)
}

// digits takes a JSON number apart: its digits, without zeros at either end, and
// the power of ten of the last of them. Zero has no digits.
func digits(number string) (significant string, power int) {
	rest := strings.TrimPrefix(number, "-")
	power = exponent(rest)
	if i := strings.IndexAny(rest, "eE"); i >= 0 {
		rest = rest[:i]
	}
	whole, fraction, _ := strings.Cut(rest, ".")
	all := whole + fraction
	trimmed := strings.TrimRight(all, "0")
	power += len(all) - len(trimmed) - len(fraction)
	if significant = strings.TrimLeft(trimmed, "0"); significant == "" {
		return "", 0
	}
	return significant, power
}

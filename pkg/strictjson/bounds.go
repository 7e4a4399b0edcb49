package strictjson

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Bounds limits the structure of a JSON text, whatever it means: readers of it
// may be harmed by what costs its sender nothing.
type Bounds struct {
	// MaxDepth is how deep arrays and objects may be nested, the outermost
	// counting as one. 0: any depth.
	MaxDepth int
	// MaxKeys is how many members all objects may have together. 0: any number.
	MaxKeys int
}

// Check returns a *webhook.Error with CodeInvalid for a text that is over a
// limit, naming the limit and, by JSON Pointer, the place where it is crossed. It
// reads the text once and makes nothing of it. Whether the text is JSON is not
// its business: it judges any bytes, by their brackets, colons and quotes.
func (b Bounds) Check(text []byte) error {
	depth, keys := 0, 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i += stringEnd(text[i:]) - 1
		case '{', '[':
			if depth++; b.MaxDepth > 0 && depth > b.MaxDepth {
				return overBounds(text[:i], fmt.Sprintf("is nested deeper than the limit of %d levels", b.MaxDepth))
			}
		case '}', ']':
			depth--
		case ':':
			if keys++; b.MaxKeys > 0 && keys > b.MaxKeys {
				return overBounds(text[:i+1], fmt.Sprintf("has more object keys than the limit of %d", b.MaxKeys))
			}
		}
	}
	return nil
}

func overBounds(before []byte, detail string) error {
	return &webhook.Error{
		Code:    webhook.CodeInvalid,
		Message: "The JSON " + detail + ".",
		Fields:  []webhook.FieldError{{Pointer: placeAfter(before), Detail: detail}},
	}
}

// placeAfter is the JSON Pointer of the value that would come after the beginning
// of a text.
func placeAfter(beginning []byte) string {
	type container struct {
		isArray bool
		index   int
		name    []byte // of the member being read, in quotes
	}
	var open []container
	var last []byte // the string read last, which has ended if anything follows it
	for i := 0; i < len(beginning); i++ {
		top := len(open) - 1
		switch beginning[i] {
		case '"':
			last = beginning[i : i+stringEnd(beginning[i:])]
			i += len(last) - 1
		case '{', '[':
			open = append(open, container{isArray: beginning[i] == '['})
		case '}', ']':
			open = open[:max(top, 0)]
		case ',':
			if top >= 0 {
				open[top].index++
			}
		case ':':
			if top >= 0 {
				open[top].name = last
			}
		}
	}
	var place bytes.Buffer
	for _, c := range open {
		switch {
		case c.isArray:
			place.WriteString("/" + strconv.Itoa(c.index))
		case len(c.name) >= 2:
			name, _ := text(c.name)
			place.WriteString(pointer(name))
		}
	}
	return place.String()
}

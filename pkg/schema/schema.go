// Package schema checks payloads against JSON Schema, draft 2020-12. It
// guarantees that
//
//   - nothing outside a schema is ever loaded: a reference leads to somewhere in
//     the schema itself, or to JSON Schema's own meta-schemas;
//   - checking ends: neither a schema nor a payload can make it take more than a
//     bounded amount of work, and a request that has ended stops it;
//   - what is approved is what receivers will read: a payload in which a name is
//     given twice, or that is not UTF-8, satisfies no schema;
//   - every fault names its place by JSON Pointer (RFC 6901).
//
// The keyword format only describes, as the draft has it by default, and patterns
// are Go's regular expressions, which have no look-around and no back-references.
package schema

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"runtime"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// MaxFaults is how many faults a check reports.
const MaxFaults = 50

// Bounds of a schema.
const (
	MaxBytes = 64 << 10 // of its text
	maxDepth = 128      // of its nesting
	// maxValues bounds what compiling it costs, which grows with the square of
	// its subschemas.
	maxValues = 5000
)

// maxPayloadValues bounds the tree that is made of a payload, and with it the
// memory that a check takes.
const maxPayloadValues = 100_000

// maxCheckers bounds how many payloads are checked against one schema at the
// same time, where there are more processors than that.
const maxCheckers = 8

const (
	// base is what a schema's references are relative to, unless it has an $id.
	base = "urn:fairhook:schema"
	// oppositeBase is the name of a schema of our own: see checker.
	oppositeBase = "urn:fairhook:opposite"
	// dialect is the one value of $schema that is understood.
	dialect = "https://json-schema.org/draft/2020-12/schema"
)

// Schema is a compiled JSON Schema. It is safe for concurrent use.
type Schema struct {
	document    any
	size        int // of its text
	patternSize int
	maxWork     int

	// The library's compiled form can be used by several goroutines at once, and
	// the count of the work done cannot: a checker has both, and is lent to one
	// check at a time.
	idle  chan *checker // checkers that nobody uses
	spare chan struct{} // has a token for each checker that may still be made
}

// Compile makes a Schema of its text. What is wrong with it is reported by JSON
// Pointer within the schema; then there is no Schema.
func Compile(text []byte) (*Schema, []webhook.FieldError) {
	if len(text) > MaxBytes {
		return nil, []webhook.FieldError{{Detail: fmt.Sprintf("must be at most %d bytes long", MaxBytes)}}
	}
	document, faults := decode(text, maxDepth, maxValues)
	if faults != nil {
		return nil, faults
	}
	switch root := document.(type) {
	case bool:
	case map[string]any:
		if name, given := root["$schema"]; given && name != dialect && name != dialect+"#" {
			return nil, []webhook.FieldError{{Pointer: "/$schema", Detail: "must be " + dialect + ", or absent"}}
		}
	default:
		return nil, []webhook.FieldError{{Detail: "must be a JSON Schema: an object or a boolean"}}
	}
	first, err := compile(document)
	if err != nil {
		return nil, compileFaults(document, err)
	}
	n := min(runtime.GOMAXPROCS(0), maxCheckers)
	s := &Schema{
		document: document, size: len(text), patternSize: first.patternSize, maxWork: maxWork,
		idle: make(chan *checker, n), spare: make(chan struct{}, n-1),
	}
	s.idle <- first
	for range n - 1 {
		s.spare <- struct{}{}
	}
	return s, nil
}

// Weight is roughly how many bytes of memory the schema takes while its payloads
// are checked one at a time.
func (s *Schema) Weight() int {
	const (
		perByte        = 64  // of text; measured with ordinary schemas: 40 to 60
		perInstruction = 100 // of a pattern
	)
	return 4096 + perByte*s.size + perInstruction*s.patternSize
}

// Validate checks a payload. It returns at most MaxFaults faults, each with the
// JSON Pointer of a place in the payload, in an order that depends on nothing else;
// none means that the payload satisfies the schema. The payload is only read. The
// error is not about the payload: ctx ended.
func (s *Schema) Validate(ctx context.Context, payload []byte) ([]webhook.FieldError, error) {
	value, faults := decode(payload, maxPayloadDepth, maxPayloadValues)
	if faults != nil {
		return faults, nil
	}
	c, err := s.borrow(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { s.idle <- c }()
	return c.check(ctx, value, s.maxWork)
}

// maxPayloadDepth is what encoding/json allows; an operator's limit is smaller.
const maxPayloadDepth = 10_000

// borrow takes a checker that nobody uses, or makes one, or waits for one.
func (s *Schema) borrow(ctx context.Context) (*checker, error) {
	select {
	case c := <-s.idle:
		return c, nil
	default:
	}
	select {
	case c := <-s.idle:
		return c, nil
	case <-s.spare:
		c, err := compile(s.document)
		if err != nil {
			s.spare <- struct{}{}
			return nil, fmt.Errorf("compile a schema again: %w", err)
		}
		return c, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to check a payload: %w", context.Cause(ctx))
	}
}

// compile makes a checker of a decoded schema.
func compile(document any) (c *checker, err error) {
	// The library is made for schemas of one's own, and meets strangers' here.
	defer func() {
		if value := recover(); value != nil {
			c, err = nil, fmt.Errorf("compiling panicked: %v", value)
		}
	}()
	c = &checker{patterns: map[string]*pattern{}}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.UseLoader(noLoader{})
	compiler.UseRegexpEngine(c.compilePattern)
	compiled := map[*jsonschema.Schema]struct{}{}
	compiler.AssertVocabs()
	compiler.RegisterVocabulary(&jsonschema.Vocabulary{
		URL: "urn:fairhook:vocabulary",
		// No keyword of ours: only a way to get hold of every compiled subschema.
		Compile: func(ctx *jsonschema.CompilerContext, _ map[string]any) (jsonschema.SchemaExt, error) {
			compiled[ctx.Enqueue(nil)] = struct{}{}
			return nil, nil
		},
	})
	if err := compiler.AddResource(base, document); err != nil {
		return nil, err
	}
	if err := compiler.AddResource(oppositeBase, map[string]any{"not": map[string]any{"$ref": base}}); err != nil {
		return nil, err
	}
	if c.root, err = compiler.Compile(base); err != nil {
		return nil, err
	}
	if c.opposite, err = compiler.Compile(oppositeBase); err != nil {
		return nil, err
	}
	for subschema := range compiled {
		c.watch(subschema)
	}
	return c, nil
}

// noLoader loads nothing.
type noLoader struct{}

var errRemote = errors.New("only what is in the schema itself can be referred to")

func (noLoader) Load(string) (any, error) { return nil, errRemote }

// compileFaults says what is wrong with a schema that does not compile.
func compileFaults(document any, err error) []webhook.FieldError {
	var (
		invalid *jsonschema.SchemaValidationError
		cause   *jsonschema.ValidationError
		load    *jsonschema.LoadURLError
		pattern *jsonschema.InvalidRegexError // where the meta-schema has let it pass
	)
	switch {
	case errors.As(err, &invalid) && errors.As(invalid.Err, &cause):
		// The URL is that of the part that was compared with the meta-schema.
		root := fragment(invalid.URL)
		faults := faultsOf(cause)
		for i := range faults {
			faults[i].Pointer = root + faults[i].Pointer
		}
		return faults
	case errors.As(err, &load):
		return []webhook.FieldError{{
			Pointer: findReference(document, nil, load.URL).pointer(),
			Detail:  fmt.Sprintf("refers to %q: %s", cut(load.URL, maxTextShown), errRemote),
		}}
	case errors.As(err, &pattern):
		return []webhook.FieldError{{Pointer: fragment(pattern.URL), Detail: cut(pattern.Err.Error(), maxTextShown)}}
	}
	text := strings.ReplaceAll(err.Error(), base, "")
	return []webhook.FieldError{{Detail: "cannot be compiled: " + cut(text, maxTextShown)}}
}

// fragment is the JSON Pointer at the end of a URL, or empty.
func fragment(text string) string {
	_, pointer, _ := strings.Cut(text, "#")
	if decoded, err := url.PathUnescape(pointer); err == nil {
		return decoded
	}
	return pointer
}

// findReference is where a schema refers to url; the schema itself where that
// cannot be told.
func findReference(value any, at *location, target string) *location {
	switch value := value.(type) {
	case map[string]any:
		for _, name := range sortedNames(value) {
			member := &location{at, name}
			if text, ok := value[name].(string); ok && (name == "$ref" || name == "$dynamicRef" || name == "$schema") {
				if text, _, _ = strings.Cut(text, "#"); text != "" && strings.HasSuffix(target, text) {
					return member
				}
			}
			if found := findReference(value[name], member, target); found != nil {
				return found
			}
		}
	case []any:
		for i, element := range value {
			if found := findReference(element, &location{at, fmt.Sprint(i)}, target); found != nil {
				return found
			}
		}
	}
	return nil
}

func sortedNames(object map[string]any) []string { return slices.Sorted(maps.Keys(object)) }

package schema

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// maxWork is how much work it may be to tell whether a payload satisfies a
	// schema, in units of roughly a value compared with a subschema: about a
	// second of the slowest kind.
	maxWork = 2_000_000
	// maxFaultWork is how much work it may be to tell what is wrong with it, which
	// takes a few hundred bytes of memory for each comparison that fails.
	maxFaultWork = 250_000
	// workBetweenLooks is how often a check looks whether it is still wanted.
	workBetweenLooks = 10_000

	// maxPatternLength and maxPatternSize bound a pattern's text, and all
	// patterns of a schema as compiled instructions.
	maxPatternLength = 1024
	maxPatternSize   = 50_000
	// patternBytes is how many bytes times instructions of a pattern are a unit
	// of work.
	patternBytes = 64
	// canonicalBytes is how many bytes of a value's canonical text are a unit.
	canonicalBytes = 16
)

const (
	// maxTextShown is how much of a caller's text, or of what a schema says, a
	// fault repeats.
	maxTextShown = 200
	// maxChoicesShown is how many of an enum's values a fault lists.
	maxChoicesShown = 10
)

// checker is a compiled schema with the account of one check's work. It must be
// used by one goroutine at a time.
//
// The library has no limits and no way to stop it, but calls a schema's format
// before it descends into it. Every subschema gets a format that counts (watch),
// and leaves the check by a panic once there was enough.
type checker struct {
	root *jsonschema.Schema
	// opposite is satisfied by what root is not. To tell that, the library does
	// not describe what is wrong.
	opposite    *jsonschema.Schema
	patterns    map[string]*pattern // by their text
	patternSize int                 // of all of them

	// Of the check that is under way:
	ctx  context.Context
	left int // the work that it may still be
	look int // what is left when ctx is looked at again
}

// enough is what a check panics with to leave the library. Its error is nil when
// the work was too much, and ctx's otherwise.
type enough struct{ err error }

// check compares a decoded payload with the schema; see Schema.Validate. work is
// maxWork, but for tests.
func (c *checker) check(ctx context.Context, payload any, work int) ([]webhook.FieldError, error) {
	verdict, enough, err := c.compare(ctx, c.opposite, payload, work)
	switch {
	case err != nil:
		return nil, err
	case enough:
		return []webhook.FieldError{{Detail: "is too much work to check against the schema of its type"}}, nil
	case verdict != nil:
		return nil, nil
	}
	verdict, enough, err = c.compare(ctx, c.root, payload, min(work, maxFaultWork))
	switch {
	case err != nil:
		return nil, err
	case enough || verdict == nil:
		return []webhook.FieldError{{Detail: "does not satisfy the schema of its type, in too many places to list"}}, nil
	}
	return faultsOf(verdict), nil
}

// compare has the library compare a payload with a compiled schema. verdict is
// nil if the payload satisfies it; tooMuch says that there is no verdict.
func (c *checker) compare(ctx context.Context, with *jsonschema.Schema, payload any, work int) (
	verdict *jsonschema.ValidationError, tooMuch bool, err error,
) {
	c.ctx, c.left, c.look = ctx, work, work-workBetweenLooks
	defer func() {
		c.ctx = nil
		switch stop := recover().(type) {
		case nil:
		case enough:
			verdict, tooMuch, err = nil, stop.err == nil, stop.err
		default:
			panic(stop)
		}
	}()
	err = with.Validate(payload)
	if errors.As(err, &verdict) {
		return verdict, false, nil
	}
	return nil, false, err
}

// charge counts work, and ends the check when it was too much.
func (c *checker) charge(work int) {
	if c.ctx == nil {
		return // not a check: the schema itself is being compared with the meta-schema
	}
	if c.left -= work; c.left < 0 {
		panic(enough{})
	}
	if c.left <= c.look {
		c.look = c.left - workBetweenLooks
		if c.ctx.Err() != nil {
			panic(enough{fmt.Errorf("check a payload: %w", context.Cause(c.ctx))})
		}
	}
}

// watch makes a subschema count, and takes over from the library those keywords
// whose cost there is out of proportion, or whose faults it puts in wrong places
// (propertyNames).
func (c *checker) watch(s *jsonschema.Schema) {
	n := node{checker: c}
	n.each = 1 + len(s.PatternProperties)
	n.fixed = 1 + len(s.AllOf) + len(s.AnyOf) + len(s.OneOf) + len(s.Required) + len(s.Dependencies) + len(s.DependentSchemas)
	for _, names := range s.DependentRequired {
		n.fixed += 1 + len(names)
	}
	var choices []any
	switch {
	case s.Const != nil && s.Enum != nil:
		// Both must hold: the constant is the only choice, if it is one at all.
		constant := string(appendCanonical(nil, *s.Const))
		for _, choice := range s.Enum.Values {
			if string(appendCanonical(nil, choice)) == constant {
				choices = []any{choice}
			}
		}
		n.limited = true
	case s.Const != nil:
		choices, n.limited = []any{*s.Const}, true
	case s.Enum != nil:
		choices, n.limited = s.Enum.Values, true
	}
	if n.limited {
		n.choices = make(map[string]struct{}, len(choices))
		for _, choice := range choices {
			n.choices[string(appendCanonical(nil, choice))] = struct{}{}
		}
		n.otherwise = &choiceError{describeChoices(choices)}
	}
	n.unique, n.names = s.UniqueItems, s.PropertyNames
	if s.Types != nil {
		n.types = s.Types.ToStrings()
	}
	s.Types, s.Const, s.Enum, s.UniqueItems, s.PropertyNames = nil, nil, nil, false, nil
	s.Format = &jsonschema.Format{Name: "work", Validate: n.meet}
}

// node is what is watched of one subschema.
type node struct {
	checker *checker
	fixed   int // what comparing any value with it costs
	each    int // what each member or element of a value adds

	types     []string // empty: any
	limited   bool     // by enum or const
	choices   map[string]struct{}
	otherwise error
	unique    bool               // uniqueItems
	names     *jsonschema.Schema // propertyNames
}

type typeError struct {
	want []string
	got  any
}

func (e *typeError) Error() string { return describeTypes(e.want, typeOf(e.got)) }

type choiceError struct{ detail string }

func (e *choiceError) Error() string { return e.detail }

type duplicateError struct{ first, second int }

func (e *duplicateError) Error() string {
	return fmt.Sprintf("must have no equal elements: %d and %d are", e.first, e.second)
}

// namesError is members whose names do not satisfy propertyNames.
type namesError struct{ names []string }

func (e *namesError) Error() string { return "has a name that the schema does not allow" }

// meet is called when a value is compared with the subschema, before anything
// below either of them is looked at.
func (n *node) meet(value any) error {
	n.checker.charge(n.fixed + n.each*breadth(value))
	if len(n.types) > 0 && !slices.ContainsFunc(n.types, func(name string) bool { return isOfType(value, name) }) {
		return &typeError{n.types, value}
	}
	if n.limited {
		text := appendCanonical(nil, value)
		n.checker.charge(len(text) / canonicalBytes)
		if _, found := n.choices[string(text)]; !found {
			return n.otherwise
		}
	}
	switch value := value.(type) {
	case map[string]any:
		if n.names != nil {
			return n.checkNames(value)
		}
	case []any:
		if n.unique {
			return n.checkUnique(value)
		}
	}
	return nil
}

func (n *node) checkNames(object map[string]any) error {
	var wrong []string
	for name := range object {
		if n.names.Validate(name) != nil {
			wrong = append(wrong, name)
		}
	}
	if wrong != nil {
		return &namesError{wrong}
	}
	return nil
}

func (n *node) checkUnique(elements []any) error {
	seen := make(map[string]int, len(elements))
	for i, element := range elements {
		text := string(appendCanonical(nil, element))
		n.checker.charge(1 + len(text)/canonicalBytes)
		if first, twice := seen[text]; twice {
			return &duplicateError{first, i}
		}
		seen[text] = i
	}
	return nil
}

// breadth is how many values are directly in a value; for a string, its length
// by a measure of its own, since keywords on strings count its characters.
func breadth(value any) int {
	switch value := value.(type) {
	case map[string]any:
		return len(value)
	case []any:
		return len(value)
	case string:
		return len(value) / 256
	}
	return 0
}

// pattern is a regular expression that counts.
type pattern struct {
	*regexp.Regexp
	checker *checker
	size    int
}

// compilePattern is the library's way to a pattern. It comes here once to compare
// the schema with the meta-schema and once to compile it.
func (c *checker) compilePattern(text string) (jsonschema.Regexp, error) {
	if known, ok := c.patterns[text]; ok {
		return known, nil
	}
	p, err := c.newPattern(text)
	if err != nil {
		return nil, fmt.Errorf("is not a pattern: %w", err)
	}
	c.patterns[text] = p
	return p, nil
}

func (c *checker) newPattern(text string) (*pattern, error) {
	if len(text) > maxPatternLength {
		return nil, fmt.Errorf("it is longer than %d bytes", maxPatternLength)
	}
	expression, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	if c.patternSize += len(program.Inst); c.patternSize > maxPatternSize {
		return nil, errors.New("the patterns of the schema are too large together")
	}
	return &pattern{expression, c, len(program.Inst)}, nil
}

// MatchString implements jsonschema.Regexp.
func (p *pattern) MatchString(text string) bool {
	// Matching takes time in proportion to both.
	p.checker.charge(1 + (1+len(text))*p.size/patternBytes)
	return p.Regexp.MatchString(text)
}

// faultsOf flattens what the library found: one fault for each keyword that is
// broken, at the place in the checked value.
func faultsOf(err *jsonschema.ValidationError) []webhook.FieldError {
	var faults []webhook.FieldError
	collect(err, &faults)
	slices.SortFunc(faults, compareFaults)
	faults = slices.Compact(faults)
	return faults[:min(len(faults), MaxFaults)]
}

func compareFaults(a, b webhook.FieldError) int {
	if c := strings.Compare(a.Pointer, b.Pointer); c != 0 {
		return c
	}
	return strings.Compare(a.Detail, b.Detail)
}

// maxCollected bounds the faults that are sorted to find the ones to report.
const maxCollected = 10_000

func collect(err *jsonschema.ValidationError, faults *[]webhook.FieldError) {
	if len(*faults) >= maxCollected {
		return
	}
	at := ""
	for _, token := range err.InstanceLocation {
		at += pointerToken(token)
	}
	add := func(pointer, detail string) {
		*faults = append(*faults, webhook.FieldError{Pointer: pointer, Detail: cut(detail, maxTextShown)})
	}
	switch k := err.ErrorKind.(type) {
	case *kind.Schema, *kind.Group, *kind.Reference, *kind.AllOf:
		// They say only that something below them is wrong.
	case *kind.Required:
		for _, name := range k.Missing {
			add(at+pointerToken(name), "is required")
		}
	case *kind.DependentRequired:
		for _, name := range k.Missing {
			add(at+pointerToken(name), fmt.Sprintf("is required beside %q", k.Prop))
		}
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			add(at+pointerToken(name), "is not a member that the schema allows")
		}
	case *kind.FalseSchema:
		add(at, "is not allowed by the schema")
	case *kind.PropertyNames: // of the meta-schema: see watch
		add(at, fmt.Sprintf("has the name %q, which is not allowed", cut(k.Property, maxNameShown)))
		return // the causes are about the name, and would point at nothing
	case *kind.Type: // of the meta-schema
		add(at, describeTypes(k.Want, k.Got))
	case *kind.Format:
		var names *namesError
		if !errors.As(k.Err, &names) {
			add(at, k.Err.Error())
			break
		}
		for _, name := range names.names {
			add(at+pointerToken(name), names.Error())
		}
	case *kind.AnyOf:
		add(at, "matches no schema of anyOf")
	case *kind.OneOf:
		if len(k.Subschemas) == 0 {
			add(at, "matches no schema of oneOf")
		} else {
			add(at, "matches more than one schema of oneOf")
		}
	case *kind.Not:
		add(at, "matches the schema of not")
	case *kind.Pattern:
		add(at, fmt.Sprintf("must match the pattern %q", k.Want))
	case *kind.RefCycle:
		add(at, "cannot be checked: references of the schema go round in a circle")
	default:
		add(at, err.ErrorKind.LocalizedString(printer()))
	}
	for _, cause := range err.Causes {
		collect(cause, faults)
	}
}

// printer is for the library's own texts: "maxItems: got 3, want 2".
func printer() *message.Printer { return message.NewPrinter(language.English) }

func describeTypes(want []string, got string) string {
	named := make([]string, len(want))
	for i, name := range want {
		named[i] = withArticle(name)
	}
	return fmt.Sprintf("must be %s, not %s", strings.Join(named, " or "), withArticle(got))
}

// isOfType reports whether a decoded value is of a type that JSON Schema names.
func isOfType(value any, name string) bool {
	if name != "integer" {
		return typeOf(value) == name
	}
	number, ok := value.(json.Number)
	if !ok {
		return false
	}
	_, power := digits(string(number))
	return power >= 0
}

func typeOf(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case json.Number:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	default:
		return "object"
	}
}

func withArticle(name string) string {
	switch name {
	case "null":
		return name
	case "array", "integer", "object":
		return "an " + name
	}
	return "a " + name
}

func describeChoices(choices []any) string {
	if len(choices) == 0 {
		return "can have no value: const is not in enum"
	}
	texts := make([]string, 0, maxChoicesShown)
	for _, choice := range choices[:min(len(choices), maxChoicesShown)] {
		text, err := json.Marshal(choice)
		if err != nil {
			text = []byte("?") // not reached: it was decoded from JSON
		}
		texts = append(texts, cut(string(text), maxTextShown/maxChoicesShown))
	}
	if len(choices) > maxChoicesShown {
		texts = append(texts, "…")
	}
	if len(choices) == 1 {
		return "must be " + texts[0]
	}
	return "must be one of " + strings.Join(texts, ", ")
}

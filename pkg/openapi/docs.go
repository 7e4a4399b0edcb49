package openapi

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"slices"
	"strings"
)

//go:embed docs.html
var pageTemplate string

//go:embed docs.css
var style string

// contentSecurityPolicy lets the page use its own style, and nothing else from
// anywhere.
var contentSecurityPolicy = func() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// spec is what the page shows of an OpenAPI document.
type spec struct {
	Info struct {
		Title       string
		Summary     string
		Version     string
		Description string
	}
	Tags []struct {
		Name        string
		Description string
	}
	Paths      members[members[operation]]
	Components struct {
		Parameters members[parameter]
		Responses  members[response]
		Schemas    members[schema]
	}
}

type operation struct {
	OperationID string
	Tags        []string
	Summary     string
	Description string
	Security    []map[string][]string
	Parameters  []parameter
	RequestBody struct{ Content members[media] }
	Responses   members[response]
}

type parameter struct {
	Ref         string `json:"$ref"`
	Name        string
	In          string
	Required    bool
	Description string
	Schema      schema
}

type response struct {
	Ref         string `json:"$ref"`
	Description string
	Headers     members[struct{}]
	Content     members[media]
}

type media struct{ Schema schema }

// schema is what the page shows of a JSON Schema.
type schema struct {
	Ref         string `json:"$ref"`
	Type        oneOrMore
	Format      string
	Description string
	Enum        []any
	Const       any
	Default     json.RawMessage
	Required    []string
	Properties  members[schema]
	Items       *schema
	AllOf       []schema
	AnyOf       []schema
	OneOf       []schema
	Examples    []json.RawMessage

	Pattern                        string
	Minimum, Maximum               json.Number
	ExclusiveMinimum               json.Number
	MinLength, MaxLength, MaxItems json.Number
}

// oneOrMore is a schema's type: a text, or a list of them.
type oneOrMore []string

// UnmarshalJSON implements json.Unmarshaler.
func (o *oneOrMore) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*o = []string{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(o))
}

// UnmarshalJSON implements json.Unmarshaler: true and false are schemas, too.
func (s *schema) UnmarshalJSON(text []byte) error {
	if text := string(bytes.TrimSpace(text)); text == "true" || text == "false" {
		return nil
	}
	type plain schema // without this method
	return json.Unmarshal(text, (*plain)(s))
}

// call is one operation as the page shows it.
type call struct {
	operation

	Method, Path string
	Scope        string // empty: it needs no key
	Inputs       []parameter
	Answers      []answer
}

type answer struct {
	response

	Status string
}

// group is the calls with one tag.
type group struct {
	Name, Description string
	Calls             []call
}

// render makes the page of an OpenAPI document.
func render(document []byte) ([]byte, error) {
	var s spec
	if err := json.Unmarshal(document, &s); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	groups, err := s.groups()
	if err != nil {
		return nil, err
	}
	parsed, err := template.New("docs").Funcs(template.FuncMap{
		"paragraphs": func(text string) []string { return strings.Split(text, "\n\n") },
		"code":       spans,
		"last":       refName,
		"bounds":     bounds,
		"required":   func(s schema, name string) bool { return slices.Contains(s.Required, name) },
		"kinds":      func(s schema) string { return strings.Join(s.Type, " or ") },
		"text":       jsonText,
		"raw":        func(r json.RawMessage) string { return string(r) },
		// It is a constant of this package.
		"style": func() template.CSS { return template.CSS(style) },
	}).Parse(pageTemplate)
	if err != nil {
		return nil, fmt.Errorf("read the template of the page: %w", err)
	}
	var page bytes.Buffer
	if err := parsed.Execute(&page, map[string]any{"Spec": s, "Groups": groups}); err != nil {
		return nil, fmt.Errorf("render the OpenAPI document: %w", err)
	}
	return page.Bytes(), nil
}

// groups are the operations by their tags, in the order of the tags.
func (s *spec) groups() ([]group, error) {
	var groups []group
	for _, tag := range s.Tags {
		g := group{Name: tag.Name, Description: tag.Description}
		for _, path := range s.Paths {
			for _, op := range path.Value {
				if !slices.Contains(op.Value.Tags, tag.Name) {
					continue
				}
				one, err := s.call(path.Name, op.Name, op.Value)
				if err != nil {
					return nil, fmt.Errorf("%s %s: %w", op.Name, path.Name, err)
				}
				g.Calls = append(g.Calls, one)
			}
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func (s *spec) call(path, method string, op operation) (call, error) {
	c := call{operation: op, Method: strings.ToUpper(method), Path: path}
	for _, requirement := range op.Security {
		c.Scope = strings.Join(requirement["key"], ", ")
	}
	for _, p := range op.Parameters {
		if p.Ref != "" {
			shared, found := s.Components.Parameters.get(refName(p.Ref))
			if !found {
				return call{}, fmt.Errorf("no parameter %s", p.Ref)
			}
			p = shared
		}
		c.Inputs = append(c.Inputs, p)
	}
	for _, r := range op.Responses {
		one := answer{r.Value, r.Name}
		if one.Ref != "" {
			shared, found := s.Components.Responses.get(refName(one.Ref))
			if !found {
				return call{}, fmt.Errorf("no response %s", one.Ref)
			}
			one.response = shared
		}
		c.Answers = append(c.Answers, one)
	}
	return c, nil
}

// refName is what a reference within the document refers to.
func refName(ref string) string { return ref[strings.LastIndexByte(ref, '/')+1:] }

// span is a piece of a description: plain, or code.
type span struct {
	Text string
	Code bool
}

// spans divides a text at its backticks.
func spans(text string) []span {
	var all []span
	for i, piece := range strings.Split(text, "`") {
		if piece != "" {
			all = append(all, span{piece, i%2 == 1})
		}
	}
	return all
}

// bounds is what a schema asks of a value besides its type.
func bounds(s schema) []string {
	var all []string
	add := func(label string, value json.Number) {
		if value != "" {
			all = append(all, label+" "+value.String())
		}
	}
	if s.Format != "" {
		all = append(all, s.Format)
	}
	add("at least", s.Minimum)
	add("more than", s.ExclusiveMinimum)
	add("at most", s.Maximum)
	add("length at least", s.MinLength)
	add("length at most", s.MaxLength)
	add("entries at most", s.MaxItems)
	if s.Const != nil {
		all = append(all, jsonText(s.Const))
	}
	for i, value := range s.Enum {
		word := jsonText(value)
		if i == 0 {
			word = "one of " + word
		}
		all = append(all, word)
	}
	if s.Default != nil && string(s.Default) != "null" {
		all = append(all, "default "+string(s.Default))
	}
	return all
}

// jsonText is a value of the document as JSON. It came from JSON, so it has one.
func jsonText(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
}

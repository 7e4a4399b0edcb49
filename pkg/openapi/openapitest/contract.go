// Package openapitest checks what a server does against the OpenAPI document of
// package openapi. In a test, Contract.Watch stands before the server's handler
// and reports
//
//   - a route, a method, a status, a header, a media type or a member of an answer
//     that the document does not have, and an answer without what it says is always
//     there;
//   - a request that the document does not allow and the server accepts.
//
// So the document is neither behind the server nor narrower or wider than it.
package openapitest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/fairhook/fairhook/pkg/openapi"
)

// Contract is the document, ready to check with. It is safe for concurrent use.
type Contract struct {
	document   object
	operations []*Operation
	// misses are the answers to what no operation is there for.
	misses map[int]*response
	item   *jsonschema.Schema // of a batch
}

// Operation is one method of one path.
type Operation struct {
	ID     string
	Method string // in capitals
	Path   string // as /v1/events/{id}
	Scopes []string

	segments   []string
	parameters []parameter
	bodies     map[string]*jsonschema.Schema // by media type
	responses  map[int]*response
}

type parameter struct {
	name, in string
	required bool
	schema   *jsonschema.Schema
}

type response struct {
	headers []parameter
	content map[string]*jsonschema.Schema // by media type
}

// Load reads the document of package openapi. It panics where that is not sound.
func Load() *Contract { return load() }

var load = sync.OnceValue(func() *Contract {
	decoded, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi.Document()))
	if err != nil {
		panic(err)
	}
	c := &Contract{document: decoded.(object), misses: map[int]*response{}}
	paths := c.document["paths"].(object)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		for method, operation := range paths[path].(object) {
			c.operations = append(c.operations, c.operation(strings.ToUpper(method), path, operation.(object)))
		}
	}
	// Where two paths match a request, that with the fewer parameters is meant.
	slices.SortStableFunc(c.operations, func(a, b *Operation) int {
		return strings.Count(a.Path, "{") - strings.Count(b.Path, "{")
	})
	for status, name := range map[int]string{
		401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed", 500: "Internal", 503: "Unavailable",
	} {
		c.misses[status] = c.response(object{"$ref": "#/components/responses/" + name})
	}
	c.item = compile(c.inlined(object{"$ref": "#/components/schemas/BatchItem"}, false, true))
	return c
})

// Operations are all that the document has.
func (c *Contract) Operations() []*Operation { return slices.Clone(c.operations) }

// Enum is the list of words that a schema of the document has: its own, or that of
// the first branch of its anyOf.
func (c *Contract) Enum(schema string) []string {
	s := c.resolve("#/components/schemas/" + schema)
	if branches, found := s["anyOf"].([]any); found {
		s = c.resolved(branches[0])
	}
	var words []string
	for _, word := range s["enum"].([]any) {
		words = append(words, word.(string))
	}
	return words
}

// Defaults are the defaults that a schema of the document gives its members.
func (c *Contract) Defaults(schema string) map[string]any {
	defaults := map[string]any{}
	for name, value := range c.resolve("#/components/schemas/" + schema)["properties"].(object) {
		if def, found := value.(object)["default"]; found {
			defaults[name] = def
		}
	}
	return defaults
}

// ProblemTypes are the types of problem documents that the document has.
func (c *Contract) ProblemTypes() []string {
	var types []string
	for name := range c.document["components"].(object)["responses"].(object) {
		content := c.resolve("#/components/responses/" + name)["content"].(object)
		schema := content["application/problem+json"].(object)["schema"].(object)
		kind := schema["properties"].(object)["type"].(object)
		list, _ := kind["enum"].([]any)
		if one, found := kind["const"]; found {
			list = append(list, one)
		}
		for _, one := range list {
			types = append(types, one.(string))
		}
	}
	slices.Sort(types)
	return types
}

func (c *Contract) operation(method, path string, o object) *Operation {
	op := &Operation{
		Method: method, Path: path, segments: strings.Split(path, "/"),
		bodies: map[string]*jsonschema.Schema{}, responses: map[int]*response{},
	}
	op.ID, _ = o["operationId"].(string)
	security, _ := o["security"].([]any)
	for _, requirement := range security {
		for _, scope := range requirement.(object)["key"].([]any) {
			op.Scopes = append(op.Scopes, scope.(string))
		}
	}
	parameters, _ := o["parameters"].([]any)
	for _, value := range parameters {
		p := c.resolved(value)
		required, _ := p["required"].(bool)
		op.parameters = append(op.parameters, parameter{
			name: p["name"].(string), in: p["in"].(string), required: required,
			schema: compile(c.inlined(p["schema"], false, true)),
		})
	}
	if body := c.resolved(o["requestBody"]); body != nil {
		for mediaType, content := range body["content"].(object) {
			op.bodies[mediaType] = compile(c.inlined(content.(object)["schema"], false, true))
		}
	}
	for text, value := range o["responses"].(object) {
		var status int
		if _, err := fmt.Sscanf(text, "%d", &status); err != nil {
			panic(fmt.Sprintf("%s %s: status %s: %v", method, path, text, err))
		}
		op.responses[status] = c.response(value)
	}
	return op
}

func (c *Contract) response(value any) *response {
	o := c.resolved(value)
	r := &response{content: map[string]*jsonschema.Schema{}}
	headers, _ := o["headers"].(object)
	for name, value := range headers {
		h := c.resolved(value)
		required, _ := h["required"].(bool)
		r.headers = append(r.headers, parameter{name: name, required: required, schema: compile(c.inlined(h["schema"], false, true))})
	}
	content, _ := o["content"].(object)
	for mediaType, one := range content {
		r.content[mediaType] = compile(c.closed(one.(object)["schema"]))
	}
	return r
}

// find is the operation for a request, with the path's parameters, and whether
// there is any for its path. The path is as it came, escapes and all.
func (c *Contract) find(method, path string) (op *Operation, values map[string]string, routed bool) {
	segments := strings.Split(path, "/")
	for _, one := range c.operations {
		found, matches := match(one.segments, segments)
		if !matches {
			continue
		}
		routed = true
		if one.Method == method {
			return one, found, true
		}
	}
	return nil, nil, routed
}

// match is the parameters in a path, if it has this pattern.
func match(pattern, segments []string) (values map[string]string, matches bool) {
	if len(pattern) != len(segments) {
		return nil, false
	}
	values = map[string]string{}
	for i, segment := range segments {
		name, isParameter := strings.CutPrefix(pattern[i], "{")
		switch {
		case !isParameter && segment != pattern[i], isParameter && segment == "":
			return nil, false
		case isParameter:
			unescaped, err := url.PathUnescape(segment)
			if err != nil {
				return nil, false
			}
			values[strings.TrimSuffix(name, "}")] = unescaped
		}
	}
	return values, true
}

// faultText is a validation error as one line for each thing that is wrong.
func faultText(err error) string {
	var invalid *jsonschema.ValidationError
	if errors.As(err, &invalid) {
		return strings.ReplaceAll(invalid.Error(), "\n", "; ")
	}
	return err.Error()
}

package openapitest

import (
	"fmt"
	"maps"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// object is a JSON object of the document.
type object = map[string]any

// closed is a schema of an answer that refuses members which it does not name.
// The document leaves room in answers for what later versions add; what is sent
// today is in it.
func (c *Contract) closed(schema any) any { return c.inlined(schema, true, true) }

// inlined is a schema with what it refers to in place of the references. closed
// is as above; whole is false for a part of an allOf, which says nothing about
// members that other parts have.
func (c *Contract) inlined(schema any, closed, whole bool) any {
	s, isObject := schema.(object)
	if !isObject {
		return schema
	}
	if ref, refers := s["$ref"].(string); refers {
		target := maps.Clone(c.resolve(ref))
		for name, value := range s { // such as a description of its own
			if name != "$ref" {
				target[name] = value
			}
		}
		return c.inlined(target, closed, whole)
	}
	out := maps.Clone(s)
	properties, hasProperties := s["properties"].(object)
	_, hasParts := s["allOf"]
	if hasProperties {
		inner := object{}
		for name, one := range properties {
			inner[name] = c.inlined(one, closed, true)
		}
		out["properties"] = inner
	}
	for _, name := range []string{"items", "additionalProperties", "propertyNames"} {
		if one, found := s[name]; found {
			out[name] = c.inlined(one, closed, true)
		}
	}
	for name, whole := range map[string]bool{"allOf": false, "anyOf": whole && !hasProperties, "oneOf": whole && !hasProperties} {
		if list, found := s[name].([]any); found {
			inner := make([]any, len(list))
			for i, one := range list {
				inner[i] = c.inlined(one, closed, whole)
			}
			out[name] = inner
		}
	}
	_, open := s["additionalProperties"]
	if closed && whole && (hasProperties || hasParts) && !open {
		out["unevaluatedProperties"] = false
	}
	return out
}

// resolve is what a reference within the document refers to.
func (c *Contract) resolve(ref string) object {
	var at any = c.document
	for token := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		inner, _ := at.(object)
		at = inner[strings.NewReplacer("~1", "/", "~0", "~").Replace(token)]
	}
	found, isObject := at.(object)
	if !isObject {
		panic(fmt.Sprintf("the document refers to %s, which is not there", ref))
	}
	return found
}

// resolved is an object of the document, or the one that it refers to.
func (c *Contract) resolved(value any) object {
	o, _ := value.(object)
	if ref, refers := o["$ref"].(string); refers {
		return c.resolve(ref)
	}
	return o
}

func compile(schema any) *jsonschema.Schema {
	const name = "mem:schema.json"
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource(name, schema); err != nil {
		panic(err)
	}
	compiled, err := compiler.Compile(name)
	if err != nil {
		panic(fmt.Sprintf("compile a schema of the document: %v", err))
	}
	return compiled
}

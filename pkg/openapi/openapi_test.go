package openapi_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/fairhook/fairhook/pkg/openapi"
)

func decoded(t *testing.T) map[string]any {
	t.Helper()
	var document map[string]any
	if err := json.Unmarshal(openapi.Document(), &document); err != nil {
		t.Fatal(err)
	}
	return document
}

// walk calls f with every object in a value.
func walk(value any, f func(o map[string]any)) {
	switch value := value.(type) {
	case map[string]any:
		f(value)
		for _, one := range value {
			walk(one, f)
		}
	case []any:
		for _, one := range value {
			walk(one, f)
		}
	}
}

// operations are all operations by method and path.
func operations(t *testing.T) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for path, methods := range decoded(t)["paths"].(map[string]any) {
		for method, operation := range methods.(map[string]any) {
			all[strings.ToUpper(method)+" "+path] = operation.(map[string]any)
		}
	}
	if len(all) < 20 {
		t.Fatalf("only %d operations", len(all))
	}
	return all
}

func TestTheDocumentHasWhatItRefersToAndNothingElse(t *testing.T) {
	t.Parallel()
	document := decoded(t)
	referred := map[string]bool{}
	walk(document, func(o map[string]any) {
		if ref, ok := o["$ref"].(string); ok {
			referred[ref] = true
		}
	})
	for kind, components := range document["components"].(map[string]any) {
		for name := range components.(map[string]any) {
			ref := "#/components/" + kind + "/" + name
			// The one answer that belongs to no operation.
			if !referred[ref] && kind != "securitySchemes" && ref != "#/components/responses/MethodNotAllowed" {
				t.Errorf("nothing refers to %s", ref)
			}
			delete(referred, ref)
		}
	}
	for ref := range referred {
		t.Errorf("%s is not there", ref)
	}
}

func TestEveryOperationHasAnIDOfItsOwnAndThePathsParameters(t *testing.T) {
	t.Parallel()
	ids := map[string]string{}
	for name, operation := range operations(t) {
		id, _ := operation["operationId"].(string)
		if id == "" || ids[id] != "" {
			t.Errorf("%s has the id %q, which %q has", name, id, ids[id])
		}
		ids[id] = name
		declared := []string{}
		for _, value := range operation["parameters"].([]any) {
			if p := value.(map[string]any); p["in"] == "path" {
				declared = append(declared, "{"+p["name"].(string)+"}")
			}
		}
		if used := regexp.MustCompile(`{[^}]*}`).FindAllString(name, -1); !slices.Equal(used, declared) && len(used)+len(declared) > 0 {
			t.Errorf("%s has the parameters %v", name, declared)
		}
		if operation["summary"] == nil || operation["security"] == nil {
			t.Errorf("%s has no summary, or does not say what it asks of a key", name)
		}
	}
}

func TestExamplesSatisfyTheirSchemas(t *testing.T) {
	t.Parallel()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi.Document()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource("mem:openapi.json", document); err != nil {
		t.Fatal(err)
	}
	checked := 0
	schemas := document.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any)
	for name, value := range schemas {
		schema, err := compiler.Compile("mem:openapi.json#/components/schemas/" + name)
		if err != nil {
			t.Fatal(err)
		}
		examples, _ := value.(map[string]any)["examples"].([]any)
		for _, example := range examples {
			checked++
			if err := schema.Validate(example); err != nil {
				t.Errorf("example of %s: %v", name, err)
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d examples", checked)
	}
}

func TestAllProblemsAreProblemDocuments(t *testing.T) {
	t.Parallel()
	for name, value := range decoded(t)["components"].(map[string]any)["responses"].(map[string]any) {
		response := value.(map[string]any)
		content := response["content"].(map[string]any)
		if len(content) != 1 || content["application/problem+json"] == nil {
			t.Errorf("%s has the content %v", name, slices.Collect(maps.Keys(content)))
		}
		if response["headers"].(map[string]any)["X-Request-Id"] == nil {
			t.Errorf("%s has no X-Request-Id", name)
		}
	}
}

func TestJSONServesTheDocument(t *testing.T) {
	t.Parallel()
	recorder := httptest.NewRecorder()
	openapi.JSON().ServeHTTP(recorder, httptest.NewRequest("GET", "/openapi.json", nil))
	if got := recorder.Header().Get("Content-Type"); got != "application/json" || !bytes.Equal(recorder.Body.Bytes(), openapi.Document()) {
		t.Errorf("it is %q, %d bytes", got, recorder.Body.Len())
	}
}

func TestDocumentIsACopy(t *testing.T) {
	t.Parallel()
	openapi.Document()[0] = 'x'
	if !json.Valid(openapi.Document()) {
		t.Error("a caller has changed the document")
	}
}

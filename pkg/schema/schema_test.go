package schema

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func lines(faults []webhook.FieldError) []string {
	all := []string{}
	for _, f := range faults {
		all = append(all, f.Pointer+": "+f.Detail)
	}
	return all
}

func mustCompile(t testing.TB, text string) *Schema {
	t.Helper()
	s, faults := Compile([]byte(text))
	if faults != nil {
		t.Fatalf("Compile(%.200s): %q", text, lines(faults))
	}
	return s
}

func validate(t testing.TB, s *Schema, payload string) []string {
	t.Helper()
	faults, err := s.Validate(t.Context(), []byte(payload))
	if err != nil {
		t.Fatalf("Validate(%.200s): %v", payload, err)
	}
	return lines(faults)
}

const order = `{
	"type": "object",
	"required": ["id", "lines"],
	"additionalProperties": false,
	"properties": {
		"id": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
		"state": {"enum": ["open", "paid", 3, null]},
		"currency": {"const": "EUR"},
		"total": {"type": "number", "minimum": 0},
		"lines": {"type": "array", "minItems": 1, "uniqueItems": true, "items": {"$ref": "#/$defs/line"}}
	},
	"$defs": {"line": {"type": "object", "required": ["sku"], "properties": {
		"sku": {"type": "string"}, "n": {"type": "integer"}, "a/b~c": {"type": ["boolean", "null"]}
	}}}
}`

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		schema, payload string
		want            []string
	}{
		"AGoodPayload": {order, `{"id":"AB1","state":3.0,"currency":"EUR","total":0,"lines":[{"sku":"x","n":1e2,"a/b~c":null}]}`, nil},
		"EverythingWrong": {order, `{"id":"1","state":"lost","currency":"USD","total":-1,"extra":1,"lines":[{"n":1.5},{"sku":1,"a/b~c":0}]}`, []string{
			`/currency: must be "EUR"`,
			"/extra: is not a member that the schema allows",
			`/id: must match the pattern "^[A-Z]{2}[0-9]+$"`,
			"/lines/0/n: must be an integer, not a number",
			"/lines/0/sku: is required",
			"/lines/1/a~1b~0c: must be null or a boolean, not a number",
			"/lines/1/sku: must be a string, not a number",
			`/state: must be one of "open", "paid", 3, null`,
			"/total: minimum: got -1, want 0",
		}},
		"TheWholeOfTheWrongType":     {order, `[]`, []string{": must be an object, not an array"}},
		"ElementsThatAreEqual":       {order, `{"id":"AB1","lines":[{"sku":"a","n":1},{"n":1.0,"sku":"a"}]}`, []string{"/lines: must have no equal elements: 0 and 1 are"}},
		"ANameGivenTwice":            {`true`, `{"a":{"b":1,"b":2}}`, []string{"/a/b: is given more than once"}},
		"ANameGivenTwiceByAnEscape":  {`true`, `{"a":1,"\u0061":2}`, []string{"/a: is given more than once"}},
		"NotUTF8":                    {`true`, "\"\xff\"", []string{": must be valid UTF-8"}},
		"NotJSON":                    {`true`, `{"a":}`, []string{": is not JSON"}},
		"Nothing":                    {`true`, ``, []string{": is not JSON"}},
		"ANumberWithAHugeExponent":   {`{"items":{"minimum":1}}`, `[1,1e999999999999999999999]`, []string{"/1: is a number with an exponent beyond 1000"}},
		"ANumberWithATinyExponent":   {`true`, `1e-1001`, []string{": is a number with an exponent beyond 1000"}},
		"AnEndlessNumber":            {`true`, strings.Repeat("1", 513), []string{": is a number of more than 512 characters"}},
		"TheLargestDouble":           {`{"type":"integer","maximum":1.7976931348623157e308}`, `1.7976931348623157e308`, nil},
		"NoSchemaOfAnyOf":            {`{"anyOf":[{"type":"string"},{"type":"null"}]}`, `1`, []string{": matches no schema of anyOf", ": must be a string, not a number", ": must be null, not a number"}},
		"TwoSchemasOfOneOf":          {`{"oneOf":[{"type":"string"},true]}`, `"a"`, []string{": matches more than one schema of oneOf"}},
		"NoSchemaOfOneOf":            {`{"oneOf":[false]}`, `"a"`, []string{": is not allowed by the schema", ": matches no schema of oneOf"}},
		"TheSchemaOfNot":             {`{"properties":{"a":{"not":{"type":"string"}}}}`, `{"a":""}`, []string{"/a: matches the schema of not"}},
		"NamesThatAreNotAllowed":     {`{"properties":{"a":{"propertyNames":{"maxLength":1}}}}`, `{"a":{"x":1,"yy":1,"zz":1},"b":1}`, []string{"/a/yy: has a name that the schema does not allow", "/a/zz: has a name that the schema does not allow"}},
		"WhatANeighbourRequires":     {`{"dependentRequired":{"a":["b"]}}`, `{"a":1}`, []string{`/b: is required beside "a"`}},
		"AConstantOutsideItsEnum":    {`{"const":1,"enum":[2]}`, `1`, []string{": can have no value: const is not in enum"}},
		"AConstantInsideItsEnum":     {`{"const":1,"enum":[2,1.0]}`, `10e-1`, nil},
		"ANullConstant":              {`{"const":null}`, `0`, []string{": must be null"}},
		"MinusZero":                  {`{"enum":[0]}`, `-0.0e5`, nil},
		"UnevaluatedMembers":         {`{"properties":{"a":true},"unevaluatedProperties":false}`, `{"a":1,"b":2}`, []string{"/b: is not allowed by the schema"}},
		"ADynamicReference":          {`{"$dynamicAnchor":"n","properties":{"next":{"$dynamicRef":"#n"},"v":{"type":"string"}}}`, `{"next":{"next":{"v":1}}}`, []string{"/next/next/v: must be a string, not a number"}},
		"AFormatOnlyDescribes":       {`{"format":"email"}`, `"no"`, nil},
		"AReferenceIntoAnIdentified": {`{"$id":"https://example.com/root","$ref":"part","$defs":{"p":{"$id":"part","type":"null"}}}`, `1`, []string{": must be null, not a number"}},
		"AReferenceThatGoesRound":    {`{"$ref":"#"}`, `1`, []string{": cannot be checked: references of the schema go round in a circle"}},
		"AnEndlessName":              {`{"additionalProperties":false}`, `{"` + strings.Repeat("é", 100) + `":1}`, []string{"/" + strings.Repeat("é", 64) + "…: is not a member that the schema allows"}},
		"NestedDeep":                 {`{"items":{"$ref":"#"},"type":"array"}`, strings.Repeat("[", 200) + "1" + strings.Repeat("]", 200), []string{strings.Repeat("/0", 200) + ": must be an array, not a number"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := validate(t, mustCompile(t, tt.schema), tt.payload); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}

	t.Run("ReportsAtMost50Faults", func(t *testing.T) {
		t.Parallel()
		s := mustCompile(t, `{"items":{"type":"string"}}`)
		if got := validate(t, s, "[0"+strings.Repeat(",1", 1000)+"]"); len(got) != MaxFaults {
			t.Errorf("%d faults", len(got))
		}
	})
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ schema, want string }{
		"WhatIsNoSchema":           {`"string"`, ": must be a JSON Schema: an object or a boolean"},
		"WhatIsNotJSON":            {`{`, ": is not JSON"},
		"AWrongKeyword":            {`{"properties":{"a":{"minimum":"x"}}}`, "/properties/a/minimum: must be a number, not a string"},
		"AWordTwice":               {`{"properties":{"a":{"required":["b","b"]}}}`, "/properties/a/required: "},
		"ARemoteReference":         {`{"properties":{"a/b":{"$ref":"https://example.com/a.json#/x"}}}`, `/properties/a~1b/$ref: refers to "https://example.com/a.json": only what is in the schema itself can be referred to`},
		"ALocalFile":               {`{"$ref":"file:///etc/passwd"}`, `/$ref: refers to "file:///etc/passwd": `},
		"ARelativeReference":       {`{"$id":"https://example.com/x/","$ref":"a.json"}`, `/$ref: refers to "https://example.com/x/a.json": `},
		"AReferenceToNowhere":      {`{"$ref":"#/$defs/a"}`, ": cannot be compiled: "},
		"AnotherDialect":           {`{"$schema":"http://json-schema.org/draft-07/schema#"}`, "/$schema: must be https://json-schema.org/draft/2020-12/schema, or absent"},
		"AMetaSchemaOfOnesOwn":     {`{"$schema":"https://example.com/meta"}`, "/$schema: must be "},
		"AMetaSchemaOfAPart":       {`{"$defs":{"a":{"$id":"https://example.com/b","$schema":"https://example.com/meta"}}}`, `/$defs/a/$schema: refers to "https://example.com/meta": `},
		"ALookAhead":               {`{"properties":{"a":{"pattern":"(?=a)"}}}`, "/properties/a/pattern: is not a pattern: error parsing regexp: invalid or unsupported Perl syntax: `(?=`"},
		"ALongPattern":             {`{"pattern":"` + strings.Repeat("a", 1025) + `"}`, "/pattern: is not a pattern: it is longer than 1024 bytes"},
		"APatternForNames":         {`{"patternProperties":{"(":true}}`, `/patternProperties: has the name "(", which is not allowed`},
		"PatternsThatAreHuge":      {`{"pattern":"` + strings.Repeat("a{1000}", 100) + `"}`, "/pattern: "},
		"ANameGivenTwice":          {`{"type":"string","type":"null"}`, "/type: is given more than once"},
		"NumbersThatAreHuge":       {`{"multipleOf":1e-99999999}`, "/multipleOf: is a number with an exponent beyond 1000"},
		"AMultipleOfZero":          {`{"multipleOf":0}`, "/multipleOf: "},
		"TooLongAText":             {`{"title":"` + strings.Repeat("a", MaxBytes) + `"}`, ": must be at most 65536 bytes long"},
		"TooDeepANesting":          {strings.Repeat(`{"not":`, 200) + "true" + strings.Repeat("}", 200), ": is nested deeper than 128 levels"},
		"TooManyValues":            {`{"enum":[0` + strings.Repeat(",1", 5000) + `]}`, ": has more than 5000 values"},
		"IdentifiersThatAreDouble": {`{"$defs":{"a":{"$id":"urn:x:a"},"b":{"$id":"urn:x:a"}}}`, ": cannot be compiled: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, faults := Compile([]byte(tt.schema))
			got := lines(faults)
			if s != nil || len(got) != 1 || !strings.Contains(got[0], tt.want) || strings.Contains(got[0], base) {
				t.Errorf("Compile() = %v, %q, want %q", s, got, tt.want)
			}
		})
	}
}

// ladder is a schema whose steps each refer twice to the next one: without
// limits, a hundred steps would take longer than the universe has.
func ladder(step string, last string) string {
	var text strings.Builder
	text.WriteString(`{"$defs":{`)
	for i := range 100 {
		next := fmt.Sprintf(`{"$ref":"#/$defs/s%d"}`, i+1)
		fmt.Fprintf(&text, `"s%d":%s,`, i, strings.ReplaceAll(step, "NEXT", next))
	}
	fmt.Fprintf(&text, `"s100":%s},"not":{"$ref":"#/$defs/s0"}}`, last)
	return text.String()
}

func TestCheckingEnds(t *testing.T) {
	t.Parallel()
	const tooMuch = ": is too much work to check against the schema of its type"
	many := "[0" + strings.Repeat(",0.5", 50_000) + "]"
	for name, tt := range map[string]struct{ schema, payload string }{
		"AllOf":            {ladder(`{"allOf":[NEXT,NEXT]}`, `true`), `{}`},
		"AnyOfNothing":     {ladder(`{"anyOf":[NEXT,NEXT]}`, `{"type":"string"}`), `{}`},
		"DependentSchemas": {ladder(`{"dependentSchemas":{"a":NEXT,"b":NEXT}}`, `{"type":"string"}`), `{"a":1,"b":2}`},
		"Contains":         {`{"contains":{"$ref":"#"},"items":{"$ref":"#"}}`, strings.Repeat("[", 60) + strings.Repeat("]", 60)},
		"NestedMembers":    {`{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}`, strings.Repeat(`{"a":`, 60) + "1" + strings.Repeat("}", 60)},
		"ManyAlternatives": {`{"items":{"anyOf":[` + strings.Repeat(`{"type":"string"},`, 1000) + `{"type":"null"}]}}`, many},
		"LongReferences":   {strings.ReplaceAll(ladder("NEXT", "true"), `"not"`, `"items"`), many},
		"SlowPatterns":     {`{"items":{"pattern":"(a{100}){0,9}b"}}`, `["` + strings.Repeat(strings.Repeat("a", 1000)+`","`, 500) + `"]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustCompile(t, tt.schema)
			s.maxWork /= 20 // the race detector is slow
			if got := validate(t, s, tt.payload); !slices.Equal(got, []string{tooMuch}) {
				t.Errorf("got %.300q", got)
			}
		})
	}

	t.Run("WithoutTheFaultsWhenTheyAreCountless", func(t *testing.T) {
		t.Parallel()
		s := mustCompile(t, `{"items":{"anyOf":[`+strings.Repeat(`{"type":"string"},`, 20)+`{"type":"null"}]}}`)
		got := validate(t, s, "[0"+strings.Repeat(",1", 10_000)+"]")
		if !slices.Equal(got, []string{": does not satisfy the schema of its type, in too many places to list"}) {
			t.Errorf("got %.300q", got)
		}
	})

	t.Run("WhenThereAreTooManyValues", func(t *testing.T) {
		t.Parallel()
		got := validate(t, mustCompile(t, `true`), "[0"+strings.Repeat(",1", 100_000)+"]")
		if !slices.Equal(got, []string{": has more than 100000 values"}) {
			t.Errorf("got %q", got)
		}
	})
	t.Run("QuicklyForKeywordsThatCompareALot", func(t *testing.T) {
		t.Parallel()
		choices := "0"
		for i := range 4000 {
			choices += fmt.Sprintf(",%d", i+1)
		}
		s := mustCompile(t, `{"uniqueItems":true,"items":{"enum":[`+choices+`]}}`)
		payload := "[0"
		for i := range 3000 {
			payload += fmt.Sprintf(",%d.0", i+1)
		}
		if got := validate(t, s, payload+"]"); len(got) > 0 {
			t.Errorf("got %q", got)
		}
	})
	t.Run("WithItsRequest", func(t *testing.T) {
		t.Parallel()
		s := mustCompile(t, ladder(`{"allOf":[NEXT,NEXT]}`, `true`))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		faults, err := s.Validate(ctx, []byte(`{}`))
		if faults != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("Validate() = %q, %v", lines(faults), err)
		}
		// What was lent to it is back.
		if got := validate(t, s, `{}`); len(got) != 1 {
			t.Errorf("got %q", got)
		}
	})
}

func TestChecksOfOneSchemaAtTheSameTime(t *testing.T) {
	t.Parallel()
	s := mustCompile(t, order)
	var all sync.WaitGroup
	for i := range 4 * maxCheckers {
		all.Go(func() {
			for range 20 {
				payload, want := `{"id":"AB1","lines":[{"sku":"x"}]}`, 0
				if i%2 == 0 {
					payload, want = `{"id":"ab","lines":[]}`, 2
				}
				if faults, err := s.Validate(t.Context(), []byte(payload)); err != nil || len(faults) != want {
					t.Errorf("got %q, %v", lines(faults), err)
				}
			}
		})
	}
	all.Wait()
	if n := len(s.idle) + len(s.spare); n != cap(s.idle) {
		t.Errorf("%d of %d checkers are left", n, cap(s.idle))
	}
}

func TestWaitingForACheckerEndsWithTheRequest(t *testing.T) {
	t.Parallel()
	s := mustCompile(t, `true`)
	for range cap(s.idle) {
		if _, err := s.borrow(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Validate(ctx, []byte(`1`)); !errors.Is(err, context.Canceled) {
		t.Errorf("Validate() = %v", err)
	}
}

// values draws JSON values with few names and numbers, so that they are often
// alike.
func values(depth int) *rapid.Generator[any] {
	leaf := rapid.SampledFrom([]any{
		nil, true, false, "", "a", "bb", json.Number("0"), json.Number("-0.0"), json.Number("1"), json.Number("1.0"),
		json.Number("10e-1"), json.Number("1.5"), json.Number("100"), json.Number("1E2"),
	})
	if depth == 0 {
		return leaf
	}
	below := rapid.Deferred(func() *rapid.Generator[any] { return values(depth - 1) })
	return rapid.OneOf(
		leaf,
		rapid.Map(rapid.SliceOfN(below, 0, 4), func(all []any) any { return all }),
		rapid.Map(rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "cc"}), below, 0, 3), func(all map[string]any) any { return all }),
	)
}

func schemas(depth int) *rapid.Generator[any] {
	if depth == 0 {
		return rapid.SampledFrom([]any{true, false, map[string]any{}, map[string]any{"type": "integer"}})
	}
	return rapid.Custom(func(t *rapid.T) any {
		below := rapid.Deferred(func() *rapid.Generator[any] { return schemas(depth - 1) })
		list := rapid.SliceOfN(below, 1, 3)
		s := map[string]any{}
		for range rapid.IntRange(0, 3).Draw(t, "keywords") {
			switch keyword := rapid.SampledFrom([]string{
				"type", "enum", "const", "uniqueItems", "propertyNames", "items", "contains", "properties", "allOf", "anyOf",
				"oneOf", "not", "minimum", "required", "unevaluatedProperties", "unevaluatedItems", "if", "patternProperties", "$ref",
			}).Draw(t, "keyword"); keyword {
			case "type":
				s[keyword] = rapid.SampledFrom([]any{"null", "boolean", "number", "integer", "string", "array", "object", []any{"integer", "string"}}).Draw(t, keyword)
			case "enum":
				s[keyword] = rapid.SliceOfN(values(2), 1, 4).Draw(t, keyword)
			case "const":
				s[keyword] = values(2).Draw(t, keyword)
			case "uniqueItems":
				s[keyword] = rapid.Bool().Draw(t, keyword)
			case "properties":
				s[keyword] = rapid.MapOfN(rapid.SampledFrom([]string{"a", "b"}), below, 0, 2).Draw(t, keyword)
			case "patternProperties":
				s[keyword] = map[string]any{"^[ac]": below.Draw(t, keyword)}
			case "allOf", "anyOf", "oneOf":
				s[keyword] = list.Draw(t, keyword)
			case "minimum":
				s[keyword] = 1
			case "required":
				s[keyword] = []any{"a"}
			case "$ref":
				s[keyword] = "#/$defs/d"
			case "if":
				s["if"], s["then"], s["else"] = below.Draw(t, "if"), below.Draw(t, "then"), below.Draw(t, "else")
			default:
				s[keyword] = below.Draw(t, keyword)
			}
		}
		return s
	})
}

// Some keywords are checked here and not by the library. Its verdict must be the
// same without that.
func TestTheVerdictIsTheLibrarys(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		root := map[string]any{"$ref": "#/$defs/root", "$defs": map[string]any{
			"root": schemas(2).Draw(t, "schema"), "d": schemas(0).Draw(t, "definition"),
		}}
		text, err := json.Marshal(root)
		if err != nil {
			t.Fatal(err)
		}
		s, faults := Compile(text)
		if faults != nil {
			t.Fatalf("Compile(%s): %q", text, lines(faults))
		}
		payload, err := json.Marshal(values(3).Draw(t, "payload"))
		if err != nil {
			t.Fatal(err)
		}
		sent := bytes.Clone(payload)
		got, err := s.Validate(t.Context(), payload)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(payload, sent) {
			t.Fatalf("the payload was %s and is %s", sent, payload)
		}

		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource("urn:plain", document); err != nil {
			t.Fatal(err)
		}
		plain, err := compiler.Compile("urn:plain")
		if err != nil {
			t.Fatal(err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(payload))
		if err != nil {
			t.Fatal(err)
		}
		if want := plain.Validate(value); (want == nil) != (len(got) == 0) {
			t.Fatalf("schema %s\npayload %s\ngot %q\nthe library says %v", text, payload, lines(got), want)
		}
	})
}

// FuzzValidate: whatever the schema and the payload are, there is an answer, the
// same one each time, in order and within bounds; and the payload stays as it is.
func FuzzValidate(f *testing.F) {
	f.Add([]byte(order), []byte(`{"id":"AB1","lines":[{"sku":"x"}]}`))
	f.Add([]byte(`{"$ref":"#","$id":"x","$anchor":"a","$dynamicRef":"#a"}`), []byte(`[1e5,"\ud800",{"":{}}]`))
	f.Add([]byte(`{"$id":"#","$defs":{"":{"$id":"//"}},"$ref":"%"}`), []byte(`-0`))
	f.Add([]byte(`{"properties":{"a":{"$schema":"http://json-schema.org/draft-04/schema","id":"x","$ref":"y"}}}`), []byte("\xff"))
	f.Add([]byte(`{"$vocabulary":{"x":true},"contentMediaType":"application/json","contentSchema":false,"minItems":1e3}`), []byte(`"{"`))
	f.Fuzz(func(t *testing.T, schema, payload []byte) {
		s, faults := Compile(schema)
		if (s == nil) != (len(faults) > 0) || len(faults) > MaxFaults {
			t.Fatalf("Compile() = %v, %q", s, lines(faults))
		}
		if s == nil {
			return
		}
		sent := bytes.Clone(payload)
		first, err := s.Validate(t.Context(), payload)
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.Validate(t.Context(), payload)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case !bytes.Equal(payload, sent):
			t.Fatalf("the payload was %q and is %q", sent, payload)
		case len(first) > MaxFaults:
			t.Fatalf("%d faults", len(first))
		case len(first) < MaxFaults && !slices.Equal(first, second):
			t.Fatalf("first %q, then %q", lines(first), lines(second))
		case len(first) == 0 && !json.Valid(payload):
			t.Fatalf("approved of %q", payload)
		}
		for _, f := range first {
			if f.Detail == "" || f.Pointer != "" && f.Pointer[0] != '/' {
				t.Fatalf("fault %+v", f)
			}
		}
	})
}

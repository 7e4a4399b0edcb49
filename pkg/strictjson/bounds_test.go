package strictjson_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestBounds(t *testing.T) {
	t.Parallel()
	bounds := strictjson.Bounds{MaxDepth: 3, MaxKeys: 4}
	const deep, many = "is nested deeper than the limit of 3 levels", "has more object keys than the limit of 4"
	for name, tt := range map[string]struct{ text, pointer, detail string }{
		"AScalar":                    {`1`, "", ""},
		"AsDeepAsAllowed":            {`{"a":[{}],"b":{"c":[]}}`, "", ""},
		"OneDeeper":                  {`{"a":[1,[2],{"x":[]}]}`, "/a/2/x", deep},
		"ArraysOnly":                 {`[[[1],[[]]]]`, "/0/1/0", deep},
		"EndlesslyDeep":              {strings.Repeat("[", 1_000_000), "/0/0/0", deep},
		"AsManyKeysAsAllowed":        {`[{"a":1,"b":{"c":":"}},{"d":"{["}]`, "", ""},
		"OneMore":                    {`[{"a":1,"b":{"c":1}},{"d":1,"e/~":1}]`, "/1/e~1~0", many},
		"BracketsAndColonsInStrings": {`{"[[[[{{{{::::\"::::":"\\\"[[[[::::\\"}`, "", ""},
		"AStringThatDoesNotEnd":      {`{"a":"[[[[[`, "", ""},
		"AnEscapedQuoteAtTheEnd":     {`{"a":"\`, "", ""},
		"ClosingWhatIsNotOpen":       {`]]]][[[[`, "", ""},
		"ANameByAnEscape":            {`{"\u0061\n":[[[`, "/a\n/0/0", deep},
		"ANameThatIsNoString":        {`{"\q":[[[`, "//0/0", deep},
		"AnEndlessName":              {`{"` + strings.Repeat("n", 1000) + `":[[[`, "/" + strings.Repeat("n", 128) + "…/0/0", deep},
		"NoNameAtAll":                {`{:[[[`, "/0/0", deep},
		"AColonWithoutAnObject":      {`:::::`, "", many},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := bounds.Check([]byte(tt.text))
			var e *webhook.Error
			switch {
			case tt.detail == "":
				if err != nil {
					t.Errorf("Check() = %v", err)
				}
			case !errors.As(err, &e) || e.Code != webhook.CodeInvalid || len(e.Fields) != 1:
				t.Errorf("Check() = %v, want %s", err, webhook.CodeInvalid)
			case e.Fields[0].Pointer != tt.pointer || e.Fields[0].Detail != tt.detail || e.Message != "The JSON "+tt.detail+".":
				t.Errorf("Check() = %q %+v, want %q at %q", e.Message, e.Fields[0], tt.detail, tt.pointer)
			}
		})
	}
	t.Run("ThatAreZeroAllowEverything", func(t *testing.T) {
		t.Parallel()
		if err := (strictjson.Bounds{}).Check([]byte(strings.Repeat(`{"a":`, 100_000))); err != nil {
			t.Errorf("Check() = %v", err)
		}
	})
}

// FuzzBounds: any bytes are judged, and JSON is judged as its tokens say.
func FuzzBounds(f *testing.F) {
	f.Add([]byte(`{"a":[{"b":"\\\"","c":{}}],"d":":{["}`))
	f.Add([]byte(`{"a":"\`))
	f.Add([]byte(`]}:,"`))
	f.Fuzz(func(t *testing.T, text []byte) {
		bounds := strictjson.Bounds{MaxDepth: 3, MaxKeys: 5}
		err := bounds.Check(text)
		if !json.Valid(text) {
			return
		}
		depth, deepest, keys := 0, 0, 0
		var inObject, nameNext []bool
		decoder := json.NewDecoder(strings.NewReader(string(text)))
		for {
			token, end := decoder.Token()
			if end != nil {
				break
			}
			top := len(inObject) - 1
			delim, isDelim := token.(json.Delim)
			if top >= 0 && inObject[top] && (!isDelim || delim == '{' || delim == '[') {
				if nameNext[top] {
					keys++
				}
				nameNext[top] = !nameNext[top]
			}
			switch {
			case isDelim && (delim == '{' || delim == '['):
				depth++
				deepest = max(deepest, depth)
				inObject, nameNext = append(inObject, delim == '{'), append(nameNext, true)
			case isDelim:
				depth--
				inObject, nameNext = inObject[:top], nameNext[:top]
			}
		}
		if over := deepest > bounds.MaxDepth || keys > bounds.MaxKeys; over != (err != nil) {
			t.Fatalf("%q is %d deep with %d keys: %v", text, deepest, keys, err)
		}
	})
}

package strictjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

var names = []string{"text", "count", "when", "list", "waits", "labels", "payload"}

func parse(t *testing.T, body string) *strictjson.Object {
	t.Helper()
	o, err := strictjson.Parse([]byte(body), "payload", names...)
	if err != nil {
		t.Fatalf("Parse(%s): %v", body, err)
	}
	return o
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", 100_000)
	tests := []struct {
		name string
		body string
		want []webhook.FieldError
	}{
		{"AnEmptyBody", ``, []webhook.FieldError{{Detail: "ends too early, at byte offset 0"}}},
		{"ABodyThatBreaksOff", `{"text": "a"`, []webhook.FieldError{{Detail: "ends too early, at byte offset 12"}}},
		{"ABodyThatIsNotJSON", `{"text": nope}`, []webhook.FieldError{{Detail: "invalid character 'o' in literal null (expecting 'u') at byte offset 10"}}},
		{"SingleQuotes", `{'text': 1}`, []webhook.FieldError{{Detail: "invalid character '\\'' looking for beginning of object key string at byte offset 1"}}},
		{"AByteOrderMark", "\uFEFF{}", []webhook.FieldError{{Detail: "invalid character 'ï' looking for beginning of value at byte offset 0"}}},
		{"TrailingData", `{} {}`, []webhook.FieldError{{Detail: "invalid character '{' after top-level value at byte offset 3"}}},
		{"AnArray", ` []`, []webhook.FieldError{{Detail: "must be an object, not an array"}}},
		{"Null", `null`, []webhook.FieldError{{Detail: "must be an object, not null"}}},
		{"AnUnknownField", `{"text":"a","foo":1}`, []webhook.FieldError{{Pointer: "/foo", Detail: "is not a known field"}}},
		{"AnUnknownFieldThatNeedsEscaping", `{"a/b~c":1}`, []webhook.FieldError{{Pointer: "/a~1b~0c", Detail: "is not a known field"}}},
		{"AnUnknownFieldWithoutEndCutShort", `{"` + long + `":1}`, []webhook.FieldError{{Pointer: "/" + long[:128] + "…", Detail: "is not a known field"}}},
		{"AFieldInAnotherCase", `{"Text":"a"}`, []webhook.FieldError{{Pointer: "/Text", Detail: "is not a known field"}}},
		{"AFieldGivenTwice", `{"text":"a","\u0074ext":"b"}`, []webhook.FieldError{{Pointer: "/text", Detail: "is given more than once"}}},
		{"AVerbatimFieldGivenTwice", `{"payload":1,"payload":1}`, []webhook.FieldError{{Pointer: "/payload", Detail: "is given more than once"}}},
		{"AllBadFieldsAtOnce", `{"a":1,"text":"","b":2,"text":""}`, []webhook.FieldError{
			{Pointer: "/a", Detail: "is not a known field"},
			{Pointer: "/b", Detail: "is not a known field"},
			{Pointer: "/text", Detail: "is given more than once"},
		}},
		{"InvalidUTF8InAValue", "{\"text\":\"\xff\"}", []webhook.FieldError{{Pointer: "/text", Detail: "must be valid UTF-8"}}},
		{"InvalidUTF8InAName", "{\"\xff\":1}", []webhook.FieldError{{Pointer: "/\uFFFD", Detail: "its name must be valid UTF-8"}}},
		{"HalfASurrogatePairInAName", `{"\ud800":1}`, []webhook.FieldError{{Pointer: "/\uFFFD", Detail: "its name must not contain half of a surrogate pair"}}},
		{"EndlessNesting", strings.Repeat(`{"payload":[`, 6000), []webhook.FieldError{{Detail: "invalid character '{' exceeded max depth at byte offset 60000"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := strictjson.Parse([]byte(tt.body), "payload", names...)
			var e *webhook.Error
			if !errors.As(err, &e) || e.Code != webhook.CodeMalformed {
				t.Fatalf("Parse() = %v, want an error with code %s", err, webhook.CodeMalformed)
			}
			if !reflect.DeepEqual(e.Fields, tt.want) {
				t.Errorf("fields are %q\nwant %q", e.Fields, tt.want)
			}
		})
	}
	t.Run("ListsAtMostFiftyFaults", func(t *testing.T) {
		t.Parallel()
		_, err := strictjson.Parse([]byte("{"+strings.Repeat(`"x":1,`, 1000)+`"x":1}`), "")
		var e *webhook.Error
		if !errors.As(err, &e) || len(e.Fields) != 50 {
			t.Errorf("Parse() = %v, want 50 fields", err)
		}
	})
}

func TestValues(t *testing.T) {
	t.Parallel()
	t.Run("ReadsEachType", func(t *testing.T) {
		t.Parallel()
		o := parse(t, ` { "text" : "a\u00e9\ud83d\ude00\n" , "count":-7,
			"when":"2026-01-31T12:00:00.25+02:00","list":["a" , ""],"waits":[1,20],"labels":{"k\/":"v"} } `)
		when := o.Time("when")
		if o.String("text") != "aé😀\n" || o.Int("count") != -7 ||
			when == nil || !when.Equal(time.Date(2026, 1, 31, 10, 0, 0, 250e6, time.UTC)) ||
			!slices.Equal(o.Strings("list"), []string{"a", ""}) || !slices.Equal(o.Ints("waits"), []int{1, 20}) ||
			!reflect.DeepEqual(o.StringMap("labels"), map[string]string{"k/": "v"}) {
			t.Errorf("read %q %d %v %q %d %q", o.String("text"), o.Int("count"), when, o.Strings("list"), o.Ints("waits"), o.StringMap("labels"))
		}
		if len(o.Faults()) != 0 {
			t.Errorf("faults are %v, want none", o.Faults())
		}
	})
	t.Run("ReadsAbsentAndNullAsNothing", func(t *testing.T) {
		t.Parallel()
		for _, body := range []string{
			`{}`,
			`{"text":null,"count":null,"when":null,"list":null,"waits":null,"labels":null}`,
		} {
			o := parse(t, body)
			if o.String("text") != "" || o.Int("count") != 0 || o.Time("when") != nil || o.Strings("list") != nil ||
				o.Ints("waits") != nil || o.StringMap("labels") != nil || len(o.Faults()) != 0 || o.Has("text") {
				t.Errorf("%s reads as something", body)
			}
			if given := o.Given("text"); given != (body != `{}`) {
				t.Errorf("Given() of %s = %v", body, given)
			}
		}
	})
	t.Run("ReadsEmptyOnesAsEmptyAndNotNil", func(t *testing.T) {
		t.Parallel()
		o := parse(t, `{"list":[ ],"waits":[],"labels":{ }}`)
		if o.Strings("list") == nil || o.Ints("waits") == nil || o.StringMap("labels") == nil {
			t.Error("an empty array or object reads as nil")
		}
	})
	t.Run("CollectsWrongTypes", func(t *testing.T) {
		t.Parallel()
		o := parse(t, `{"text":{},"count":"7","when":1,"list":["a",2,null],"waits":[1.5,99999999999,true],
			"labels":{"a":1,"b":"x","b":"y","\udc00":"z"}}`)
		o.String("text")
		o.Int("count")
		o.Time("when")
		o.Strings("list")
		o.Ints("waits")
		o.StringMap("labels")
		want := []webhook.FieldError{
			{Pointer: "/text", Detail: "must be a string, not an object"},
			{Pointer: "/count", Detail: "must be a whole number, not a string"},
			{Pointer: "/when", Detail: "must be a string, not a number"},
			{Pointer: "/list/1", Detail: "must be a string, not a number"},
			{Pointer: "/list/2", Detail: "must be a string, not null"},
			{Pointer: "/waits/0", Detail: "must be a whole number, without fraction or exponent"},
			{Pointer: "/waits/1", Detail: "is out of range"},
			{Pointer: "/waits/2", Detail: "must be a whole number, not a boolean"},
			{Pointer: "/labels/a", Detail: "must be a string, not a number"},
			{Pointer: "/labels/b", Detail: "is given more than once"},
			{Pointer: "/labels/\uFFFD", Detail: "its name must not contain half of a surrogate pair"},
		}
		if !reflect.DeepEqual(o.Faults(), want) {
			t.Errorf("faults are %q\nwant %q", o.Faults(), want)
		}
	})
	t.Run("RefusesTextThatWouldChange", func(t *testing.T) {
		t.Parallel()
		for _, value := range []string{`\ud800`, `\udc00`, `\ud800\ud800`, `\ud800x`, `\ud83d\\ude00`, `\udbff\u0041`} {
			o := parse(t, `{"text":"`+value+`"}`)
			o.String("text")
			if len(o.Faults()) != 1 {
				t.Errorf("%s is accepted", value)
			}
		}
		for _, value := range []string{`\\ud800`, `\ud83d\ude00`, `\uFFFD`, `\u0000`, `\\\\`} {
			o := parse(t, `{"text":"`+value+`"}`)
			o.String("text")
			if len(o.Faults()) != 0 {
				t.Errorf("%s is refused", value)
			}
		}
	})
	t.Run("RefusesTimesThatPostgresOrJSONCannotHold", func(t *testing.T) {
		t.Parallel()
		for _, value := range []string{
			"", "now", "2026-01-31", "2026-01-31T12:00:00", "2026-02-30T12:00:00Z", "2026-01-31T23:59:60Z",
			"0000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-01:00", "2026-01-31 12:00:00Z",
			"2026-01-31T12:00:00,5Z",
		} {
			o := parse(t, `{"when":"`+value+`"}`)
			if o.Time("when") != nil || len(o.Faults()) != 1 {
				t.Errorf("%q is accepted", value)
			}
		}
	})
}

// nasty are values that a decoder is tempted to change.
var nasty = []string{
	`{"b":1,"a":2}`, `{"a":1,"a":2}`, "{ \"a\" :\t[ 1 ,\n2 ] }", `1e400`, `-0`, `1.0`, `1E+2`, `9007199254740993`,
	`"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\/"`, `"é"`, `"\u00e9"`, `"<>&\u2028"`, "\"\u2028\"", "\"\xff\xfe\"",
	`null`, `true`, `""`, `[]`, `{}`, `{"payload":{"payload":"}"}}`, `"\\"`, `"\\\""`, `["\"]",{"}":"{"}]`,
	"\"\x7f\"", strings.Repeat("[", 500) + strings.Repeat("]", 500),
}

func TestAVerbatimMemberIsKeptByteForByte(t *testing.T) {
	t.Parallel()
	for _, value := range nasty {
		for _, space := range []string{"", " ", "\r\n\t"} {
			body := `{"text":"x",` + space + `"payload"` + space + `:` + space + value + space + `,"count":1` + space + `}`
			if got := parse(t, body).Raw("payload"); string(got) != value {
				t.Errorf("payload of %q is %q, want %q", body, got, value)
			}
		}
	}
}

func TestMembersAreFoundAsEncodingJSONFindsThem(t *testing.T) {
	t.Parallel()
	text := rapid.SampledFrom([]string{"", "a", `\`, `"`, `\"`, "é", "{", "}", "[", "]", ",", ":", " ", "\n", "😀"})
	words := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOf(text).Draw(t, "words"), "") })
	rapid.Check(t, func(t *rapid.T) {
		in := struct {
			Text    string            `json:"text"`
			Count   int32             `json:"count"`
			List    []string          `json:"list"`
			Waits   []int32           `json:"waits"`
			Labels  map[string]string `json:"labels"`
			Payload map[string]any    `json:"payload"`
		}{
			words.Draw(t, "text"), rapid.Int32().Draw(t, "count"),
			rapid.SliceOfN(words, 0, 4).Draw(t, "list"), rapid.SliceOfN(rapid.Int32(), 0, 4).Draw(t, "waits"),
			rapid.MapOfN(words, words, 0, 4).Draw(t, "labels"),
			map[string]any{words.Draw(t, "k"): words.Draw(t, "v"), "n": []any{rapid.Float64().Draw(t, "f"), nil}},
		}
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "indented") {
			var indented bytes.Buffer
			if err := json.Indent(&indented, body, "\t", "  "); err != nil {
				t.Fatal(err)
			}
			body = indented.Bytes()
		}
		o, err := strictjson.Parse(body, "payload", names...)
		if err != nil {
			t.Fatal(err)
		}
		var waits []int32
		for _, n := range o.Ints("waits") {
			waits = append(waits, int32(n))
		}
		if o.String("text") != in.Text || o.Int("count") != int(in.Count) || !slices.Equal(o.Strings("list"), in.List) ||
			!slices.Equal(waits, in.Waits) || len(o.StringMap("labels")) != len(in.Labels) {
			t.Fatalf("%s reads differently", body)
		}
		for key, value := range in.Labels {
			if o.StringMap("labels")[key] != value {
				t.Fatalf("label %q is %q, want %q", key, o.StringMap("labels")[key], value)
			}
		}
		if len(o.Faults()) != 0 {
			t.Fatalf("faults are %v", o.Faults())
		}
		var whole map[string]json.RawMessage
		if err := json.Unmarshal(body, &whole); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(whole["payload"], o.Raw("payload")) {
			t.Fatalf("payload is %s, want %s", o.Raw("payload"), whole["payload"])
		}
	})
}

// FuzzParse holds Parse against encoding/json: they agree on what an object is,
// and a verbatim member is a part of the body that is JSON by itself.
func FuzzParse(f *testing.F) {
	for _, value := range nasty {
		f.Add([]byte(`{"text":"a","payload":` + value + `}`))
		f.Add([]byte(value))
	}
	f.Add([]byte(`{"labels":{"a":"b"},"list":["a"],"waits":[1],"count":1e3,"when":"2026-01-31T12:00:00Z"}`))
	f.Add([]byte("{\"te\\u0078t\":\"\\ud83d\\ude00\xff\"}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		sent := bytes.Clone(body)
		o, err := strictjson.Parse(body, "payload", names...)
		var whole map[string]json.RawMessage
		stdErr := json.Unmarshal(body, &whole)
		if err != nil {
			var e *webhook.Error
			if !errors.As(err, &e) || e.Code != webhook.CodeMalformed || len(e.Fields) == 0 {
				t.Fatalf("Parse() = %v, want a malformed request with fields", err)
			}
			for _, fault := range e.Fields {
				if !utf8.ValidString(fault.Pointer) || !utf8.ValidString(fault.Detail) {
					t.Fatalf("fault %q is not UTF-8", fault)
				}
			}
			return
		}
		if stdErr != nil {
			t.Fatalf("Parse accepts what encoding/json refuses: %v", stdErr)
		}
		o.String("text")
		o.Int("count")
		o.Time("when")
		o.Strings("list")
		o.Ints("waits")
		o.StringMap("labels")
		if raw := o.Raw("payload"); raw != nil {
			if !bytes.Contains(body, raw) || !json.Valid(raw) || !bytes.Equal(raw, whole["payload"]) {
				t.Fatalf("payload %q is not what encoding/json finds: %q", raw, whole["payload"])
			}
		}
		if !bytes.Equal(body, sent) {
			t.Fatal("Parse changed the body")
		}
	})
}

func BenchmarkParse(b *testing.B) {
	body := []byte(`{"webhook_id":"0190c0de-0000-7000-8000-000000000000","type":"order.paid","payload":{"data":"` +
		strings.Repeat("x", 1024) + `"}}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := strictjson.Parse(body, "payload", "webhook_id", "tenant", "type", "payload", "timestamp", "metadata"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestBool(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]bool{`{"count":true}`: true, `{"count": false }`: false, `{"count":null}`: false, `{}`: false} {
		if o := parse(t, body); o.Bool("count") != want || len(o.Faults()) != 0 {
			t.Errorf("%s reads as %v, %v", body, o.Bool("count"), o.Faults())
		}
	}
	for _, value := range []string{`"true"`, `1`, `[]`, `{}`} {
		o := parse(t, `{"count":`+value+`}`)
		if o.Bool("count") || len(o.Faults()) != 1 || o.Faults()[0].Pointer != "/count" || !strings.HasPrefix(o.Faults()[0].Detail, "must be true or false, not ") {
			t.Errorf("%s reads as %v, %v", value, o.Bool("count"), o.Faults())
		}
	}
}

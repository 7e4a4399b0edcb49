package strictjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestParseElements(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][]string{
		"[]":                                     nil,
		" [ ] ":                                  nil,
		"[1]":                                    {"1"},
		" [ 1 , \"a,]\\\"\" ,\n{\"a\": [ ]} ]\t": {"1", `"a,]\""`, `{"a": [ ]}`},
		"[[],{},null,true,-1e5]":                 {"[]", "{}", "null", "true", "-1e5"},
		"[\"\xff\"]":                             {"\"\xff\""},
	} {
		values, err := strictjson.ParseElements([]byte(body), 100)
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		var got []string
		for _, v := range values {
			got = append(got, string(v.Bytes()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
	if values, err := strictjson.ParseElements([]byte("[1,2,3]"), 2); err != nil || len(values) != 2 {
		t.Errorf("%d values with a limit of 2, %v", len(values), err)
	}
	for body, detail := range map[string]string{
		"{}":    "must be an array, not an object",
		"1":     "must be an array, not a number",
		"[1,]":  "invalid character ']' looking for beginning of value at byte offset 3",
		"[1] 2": "invalid character '2' after top-level value at byte offset 4",
		"[1":    "ends too early, at byte offset 2",
		"":      "ends too early, at byte offset 0",
	} {
		_, err := strictjson.ParseElements([]byte(body), 100)
		var e *webhook.Error
		if !errors.As(err, &e) || e.Code != webhook.CodeMalformed || e.Fields[0].Detail != detail {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestParseValue(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{" {\"a\" : 1} ": `{"a" : 1}`, "12\n": "12", "\"a \" ": `"a "`, "null": "null"} {
		if v, err := strictjson.ParseValue([]byte(text)); err != nil || string(v.Bytes()) != want {
			t.Errorf("%q: %q, %v", text, v.Bytes(), err)
		}
	}
	for _, text := range []string{"", "{", "1 2", "a"} {
		if _, err := strictjson.ParseValue([]byte(text)); webhook.ErrorCode(err) != webhook.CodeMalformed {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestValueObject(t *testing.T) {
	t.Parallel()
	values, err := strictjson.ParseElements([]byte(`[{"a":"x","raw": {"b":1 }},{"c":1},2]`), 3)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := values[0].Object("raw", "a", "raw"); err != nil || o.String("a") != "x" || string(o.Raw("raw")) != `{"b":1 }` {
		t.Errorf("%+v, %v", o, err)
	}
	for _, v := range values[1:] {
		if _, err := v.Object("raw", "a", "raw"); webhook.ErrorCode(err) != webhook.CodeMalformed {
			t.Errorf("%s: %v", v.Bytes(), err)
		}
	}
}

// FuzzParseElements: an array is what encoding/json takes for one, and its
// elements are the same.
func FuzzParseElements(f *testing.F) {
	for _, body := range []string{`[]`, `[1, "a]", {"b":[1,2]}, [], null]`, ` [ "\\" , "\"" ] `, `[`, `{}`, `[1]x`, "[\"\xff\",0]"} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var want []json.RawMessage
		isArray := json.Unmarshal(body, &want) == nil && bytes.TrimLeft(body, " \t\r\n")[0] == '['
		got, err := strictjson.ParseElements(body, len(body)+1)
		if (err == nil) != isArray || len(got) != len(want) {
			t.Fatalf("%d elements, %v; want %d, array %t", len(got), err, len(want), isArray)
		}
		for i := range got {
			if !bytes.Equal(got[i].Bytes(), want[i]) {
				t.Fatalf("element %d is %q, want %q", i, got[i].Bytes(), want[i])
			}
		}
	})
}

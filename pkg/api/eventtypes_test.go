package api_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

type eventTypeAnswer struct {
	Name        string    `json:"name"`
	Description string    `json:"description"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
}

func TestEventTypes(t *testing.T) {
	t.Parallel()

	t.Run("AreCreatedAndReplaced", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		created, header := must[eventTypeAnswer](t, b, http.StatusCreated, "PUT", "/v1/event-types/order.paid", `{"description":"Somebody paid.","schema":{}}`)
		if created.Name != "order.paid" || created.Description != "Somebody paid." || created.CreatedAt.IsZero() ||
			header.Get("Location") != "/v1/event-types/order.paid" {
			t.Errorf("created %+v, %v", created, header)
		}
		again, header := must[eventTypeAnswer](t, b, http.StatusOK, "PUT", "/v1/event-types/order.paid",
			`{"name":"order.paid","description":null,"schema":null}`)
		if again.Description != "" || !again.CreatedAt.Equal(created.CreatedAt) || !again.UpdatedAt.After(created.UpdatedAt) || header.Get("Location") != "" {
			t.Errorf("replaced by %+v, %v", again, header)
		}
		got, _ := must[eventTypeAnswer](t, b, http.StatusOK, "GET", "/v1/event-types/order%2Epaid", "")
		if got != again {
			t.Errorf("read %+v, want %+v", got, again)
		}
	})

	t.Run("ShowTheirSchemaByteForByte", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		const text = "{ \"title\" :\t\"\\u00e9é<&>\",\n \"x\": 1.0e0, \"schema\":null, \"const\":\"\\\"schema\\\":null\" }"
		for name, body := range map[string]string{
			"a": `{"schema":  ` + text + "  }",
			"b": `{"description":"\"schema\":null"}`,
			"c": `{"schema":true}`,
		} {
			must[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/"+name, body)
		}
		again, err := b.call(t, "PUT", "/v1/event-types/a", `{"schema":`+text+`}`)
		if err != nil || !strings.Contains(again.Body.String(), `"schema":`+text+`,"created_at"`) {
			t.Errorf("PUT answers %s, %v", again.Body, err)
		}
		one, err := b.call(t, "GET", "/v1/event-types/a", "")
		if err != nil || !strings.Contains(one.Body.String(), `"schema":`+text+`,"created_at"`) {
			t.Errorf("GET answers %s, %v", one.Body, err)
		}
		all, err := b.call(t, "GET", "/v1/event-types", "")
		if err != nil {
			t.Fatal(err)
		}
		rest := all.Body.String()
		for _, want := range []string{
			`{"data":[{"name":"a","description":"","schema":` + text + `,"created_at":`,
			`{"name":"b","description":"\"schema\":null","schema":null,"created_at":`,
			`{"name":"c","description":"","schema":true,"created_at":`,
			`"next_cursor":null}`,
		} {
			_, after, found := strings.Cut(rest, want)
			if !found {
				t.Fatalf("the list %s does not go on with %s", all.Body, want)
			}
			rest = after
		}
	})

	t.Run("AreListedByNameInPages", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for _, name := range []string{"c", "a.b", "e", "a", "d"} {
			must[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/"+name, `{"schema":true}`)
		}
		var got []string
		for target := "/v1/event-types?limit=2"; target != ""; {
			type list struct {
				Data []eventTypeAnswer `json:"data"`
				Next *string           `json:"next_cursor"`
			}
			page, header := must[list](t, b, http.StatusOK, "GET", target, "")
			for _, e := range page.Data {
				got = append(got, e.Name)
			}
			target = ""
			if page.Next != nil {
				target = "/v1/event-types?limit=2&cursor=" + url.QueryEscape(*page.Next)
				if link := header.Get("Link"); !strings.Contains(link, `rel="next"`) || !strings.Contains(link, *page.Next) {
					t.Errorf("Link is %s", link)
				}
			}
		}
		if want := []string{"a", "a.b", "c", "d", "e"}; !slices.Equal(got, want) {
			t.Errorf("listed %q, want %q", got, want)
		}
		for _, cursor := range []string{"x", "bg", "d2E", "biE", url.QueryEscape("bmE=")} {
			refused(t, b, webhook.CodeMalformed, "GET", "/v1/event-types?cursor="+cursor, "")
		}
	})

	t.Run("AreGoneWhenDeleted", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		must[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/a", `{}`)
		must[any](t, b, http.StatusNoContent, "DELETE", "/v1/event-types/a", "")
		for _, name := range []string{"a", "a..b", "%00", "a%2Fb", "*", strings.Repeat("a", 300)} {
			refused(t, b, webhook.CodeNotFound, "GET", "/v1/event-types/"+name, "")
			refused(t, b, webhook.CodeNotFound, "DELETE", "/v1/event-types/"+name, "")
		}
	})

	t.Run("AreRefusedWithAllThatIsWrong", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for name, tt := range map[string]struct {
			target, body string
			want         []string
		}{
			"ASchemaThatDoesNotCompile": {"a", `{"schema":{"properties":{"a/b":{"minimum":"1","required":true}}}}`, []string{
				"/schema/properties/a~1b/minimum: must be a number, not a string",
				"/schema/properties/a~1b/required: must be an array, not a boolean",
			}},
			"ARemoteReference": {"a", `{"schema":{"items":{"$ref":"https://example.com/s.json"}}}`, []string{
				`/schema/items/$ref: refers to "https://example.com/s.json": only what is in the schema itself can be referred to`,
			}},
			"ASchemaThatIsNone": {"a", `{"schema":"x"}`, []string{"/schema: must be a JSON Schema: an object or a boolean"}},
			"Everything": {"a.*", `{"name":"b","description":1,"schema":[],"created_at":null,"updated_at":"x"}`, []string{
				"/description: must be a string, not a number",
				"name: must be dot-delimited segments of letters, digits, '_' and '-'",
				"/name: must be the name in the path, or absent",
				"/created_at: is set by Fairhook and cannot be chosen", "/updated_at: is set by Fairhook and cannot be chosen",
				"/schema: must be a JSON Schema: an object or a boolean",
			}},
		} {
			if got := refused(t, b, webhook.CodeInvalid, "PUT", "/v1/event-types/"+tt.target, tt.body); !slices.Equal(got, tt.want) {
				t.Errorf("%s: %q, want %q", name, got, tt.want)
			}
		}
		if got := refused(t, b, webhook.CodeMalformed, "PUT", "/v1/event-types/a", `{"examples":[]}`); !slices.Equal(got, []string{"/examples: is not a known field"}) {
			t.Errorf("an unknown field: %q", got)
		}
		type list struct{ Data []any }
		if all, _ := must[list](t, b, http.StatusOK, "GET", "/v1/event-types", ""); len(all.Data) > 0 {
			t.Errorf("there are %v", all.Data)
		}
	})

	t.Run("AreNotChangedByThoseWhoActForOneTenant", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		must[any](t, b, http.StatusCreated, "PUT", "/v1/event-types/a", `{}`)
		tenant := "acme"
		bound := webhook.Principal{Tenant: &tenant, Scopes: []webhook.Scope{webhook.ScopeAdmin}}
		for method, status := range map[string]webhook.Code{"PUT": webhook.CodeForbidden, "DELETE": webhook.CodeForbidden, "GET": ""} {
			var failed error
			ctx := context.WithValue(context.WithValue(t.Context(), errorKey{}, &failed), principalKey{}, bound)
			b.echo.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, "/v1/event-types/a", strings.NewReader(`{}`)).WithContext(ctx))
			if code := webhook.ErrorCode(failed); code != status {
				t.Errorf("%s: %v, want code %q", method, failed, status)
			}
		}
	})
}

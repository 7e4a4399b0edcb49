package openapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func page(t *testing.T) (body, policy string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	Docs().ServeHTTP(recorder, httptest.NewRequest("GET", "/docs", nil))
	if got := recorder.Header().Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("the page is %q", got)
	}
	return recorder.Body.String(), recorder.Header().Get("Content-Security-Policy")
}

func TestThePageShowsEveryOperationAndEverySchema(t *testing.T) {
	t.Parallel()
	body, _ := page(t)
	ids := regexp.MustCompile(`"operationId": "(\w+)"`).FindAllStringSubmatch(string(document), -1)
	if len(ids) < 20 {
		t.Fatalf("only %d operations", len(ids))
	}
	for _, id := range ids {
		if strings.Count(body, `<section id="`+id[1]+`">`) != 1 || !strings.Contains(body, `href="#`+id[1]+`"`) {
			t.Errorf("%s is not there once, with a link to it", id[1])
		}
	}
	for _, text := range []string{
		"<code>Idempotency-Key</code>", `<code>/v1/event-types/{name}</code>`, "scope <code>manage</code>", "It needs no API key.",
		`<a href="#Webhook">Webhook</a>`, "max_backlog", "default 1000000", "order.paid", "It is gone.",
	} {
		if !strings.Contains(body, text) {
			t.Errorf("the page does not have %q", text)
		}
	}
}

func TestEveryLinkOfThePageLeadsSomewhere(t *testing.T) {
	t.Parallel()
	body, _ := page(t)
	links := regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(body, -1)
	if len(links) < 50 {
		t.Fatalf("only %d links", len(links))
	}
	for _, link := range links {
		if name, inside := strings.CutPrefix(link[1], "#"); inside {
			if strings.Count(body, `id="`+name+`"`) != 1 {
				t.Errorf("%s leads nowhere, or to several places", link[1])
			}
		} else if link[1] != "openapi.json" {
			t.Errorf("%s leads outside", link[1])
		}
	}
}

func TestThePageLoadsNothingAndRunsNothing(t *testing.T) {
	t.Parallel()
	body, policy := page(t)
	decoder := xml.NewDecoder(strings.NewReader(body))
	decoder.Strict, decoder.AutoClose, decoder.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	elements := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well formed: %v", err)
		}
		start, isStart := token.(xml.StartElement)
		if !isStart {
			continue
		}
		elements++
		if slices.Contains([]string{"script", "img", "link", "iframe", "object", "embed", "form", "base"}, start.Name.Local) {
			t.Errorf("the page has the element %s", start.Name.Local)
		}
		for _, attribute := range start.Attr {
			if name := attribute.Name.Local; name == "src" || name == "style" || strings.HasPrefix(name, "on") {
				t.Errorf("the page has the attribute %s", name)
			}
		}
	}
	if elements < 100 {
		t.Errorf("only %d elements", elements)
	}
	_, rest, _ := strings.Cut(body, "<style>")
	css, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(css))
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"';") ||
		strings.Contains(css, "url(") || strings.Contains(css, "@import") {
		t.Errorf("the policy is %q, which is not for the style that is there", policy)
	}
}

func TestTextOfTheDocumentIsNoMarkup(t *testing.T) {
	t.Parallel()
	hostile := `{"info":{"title":"<script>"},"tags":[{"name":"a","description":"<b onclick=x>"}],
		"paths":{"/<i>":{"get":{"operationId":"\"><x","tags":["a"],"summary":"<u>","parameters":[],"responses":{}}}},
		"components":{"schemas":{"<s>":{"description":"<p>x","examples":["</pre><q>"]}}}}`
	body, err := render([]byte(hostile))
	if err != nil {
		t.Fatal(err)
	}
	for _, markup := range []string{"<script>", "<b ", "<i>", "<u>", "<x", "<s>", "<p>x", "<q>"} {
		if strings.Contains(string(body), markup) {
			t.Errorf("%s is markup", markup)
		}
	}
}

func TestADocumentThatIsNotSoundIsNotRendered(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		``, `[]`, `{"paths":[]}`, `{"paths":{"/":{"get":{"tags":"a"}}}}`,
		`{"tags":[{"name":"a"}],"paths":{"/":{"get":{"tags":["a"],"parameters":[{"$ref":"#/components/parameters/x"}]}}}}`,
		`{"tags":[{"name":"a"}],"paths":{"/":{"get":{"tags":["a"],"responses":{"200":{"$ref":"#/components/responses/x"}}}}}}`,
	} {
		if _, err := render([]byte(text)); err == nil {
			t.Errorf("%s is rendered", text)
		}
	}
}

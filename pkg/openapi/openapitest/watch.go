package openapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// maxReports is how many kinds of faults one test reports.
const maxReports = 20

// Watch returns next, with every exchange checked against the contract. What is
// wrong becomes errors of t when it ends, by which time the server must have
// stopped: so Watch is called before whatever stops it is given to t.Cleanup. A
// benchmark gets next as it is.
func (c *Contract) Watch(t testing.TB, next http.Handler) http.Handler {
	t.Helper()
	if _, measures := t.(*testing.B); measures {
		return next
	}
	var (
		mu     sync.Mutex
		faults []string
	)
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, fault := range faults[:min(len(faults), maxReports)] {
			t.Error("against the OpenAPI document: " + fault)
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		if r.Body != nil {
			r.Body = readCloser{io.TeeReader(r.Body, &body), r.Body}
		}
		request := r.Clone(r.Context()) // next may change its own
		recorder := &recorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(recorder, r)
		found := c.Check(request, body.Bytes(), recorder.status, w.Header(), recorder.body.Bytes())
		mu.Lock()
		defer mu.Unlock()
		for _, fault := range found {
			if !slices.Contains(faults, fault) {
				faults = append(faults, fault)
			}
		}
	})
}

type readCloser struct {
	io.Reader
	io.Closer
}

// recorder keeps what it passes on.
type recorder struct {
	http.ResponseWriter
	status  int
	written bool
	body    bytes.Buffer
}

func (r *recorder) WriteHeader(status int) {
	if !r.written && status >= 200 {
		r.status, r.written = status, true
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.written = true
	r.body.Write(p)
	return r.ResponseWriter.Write(p)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Check returns what is wrong with one exchange. body is as much of the request's
// as the server has read.
func (c *Contract) Check(r *http.Request, body []byte, status int, header http.Header, answer []byte) []string {
	op, values, _ := c.find(r.Method, r.URL.EscapedPath())
	what := r.Method + " " + r.URL.Path + ": "
	if op != nil {
		what = op.Method + " " + op.Path + ": "
	}
	var faults []string
	fault := func(format string, args ...any) {
		faults = append(faults, what+fmt.Sprintf(format, args...))
	}
	var expected *response
	switch {
	case op != nil:
		expected = op.responses[status]
	case r.Method == http.MethodOptions && status == http.StatusNoContent:
		return nil // says in Allow what there is, as net/http servers do
	default:
		expected = c.misses[status]
	}
	if expected == nil {
		fault("answers %d %.500s", status, answer)
		return faults
	}
	faults = append(faults, expected.check(what+fmt.Sprintf("its answer %d", status), r.Method, header, answer)...)
	if op != nil && status < 300 {
		faults = append(faults, c.checkRequest(op, what, r, values, body, answer)...)
	}
	return faults
}

// ordinary are headers of answers that need no documentation.
var ordinary = []string{
	"Cache-Control", "Content-Length", "Content-Security-Policy", "Content-Type", "Date", "Referrer-Policy", "Vary",
	"X-Content-Type-Options",
}

func (r *response) check(what, method string, header http.Header, body []byte) (faults []string) {
	fault := func(format string, args ...any) {
		faults = append(faults, what+" "+fmt.Sprintf(format, args...))
	}
	for _, h := range r.headers {
		values := header.Values(h.name)
		switch {
		case len(values) == 0 && h.required:
			fault("has no %s", h.name)
		case len(values) > 1:
			fault("has %s more than once", h.name)
		case len(values) == 1:
			if err := validText(h.schema, values[0]); err != nil {
				fault("has %s: %s: %s", h.name, values[0], faultText(err))
			}
		}
	}
	for name := range header {
		documented := func(p parameter) bool { return strings.EqualFold(p.name, name) }
		if !slices.Contains(ordinary, name) && !slices.ContainsFunc(r.headers, documented) {
			fault("has %s, which is not documented", name)
		}
	}
	if method == http.MethodHead {
		return faults
	}
	if len(r.content) == 0 {
		if len(body) > 0 {
			fault("has a body: %.200s", body)
		}
		return faults
	}
	mediaType, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	schema, documented := r.content[mediaType]
	switch {
	case err != nil || !documented:
		fault("has the media type %q", header.Get("Content-Type"))
	case isJSON(mediaType):
		if err := validJSON(schema, body); err != nil {
			fault("has the body %.500s: %s", body, faultText(err))
		}
	}
	return faults
}

// checkRequest checks a request that was accepted.
func (c *Contract) checkRequest(op *Operation, what string, r *http.Request, values map[string]string, body, answer []byte) (faults []string) {
	fault := func(format string, args ...any) {
		faults = append(faults, what+"it accepts "+fmt.Sprintf(format, args...))
	}
	query := r.URL.Query()
	for _, p := range op.parameters {
		var given []string
		switch p.in {
		case "path":
			given = []string{values[p.name]}
		case "query":
			given = query[p.name]
			query.Del(p.name)
		case "header":
			given = r.Header.Values(p.name)
		}
		// An id that is not sane is not taken over, which is no error.
		if p.name == "X-Request-Id" {
			continue
		}
		if len(given) == 0 && p.required {
			fault("a request without the parameter %s", p.name)
		}
		for _, text := range given {
			if err := validText(p.schema, text); err != nil {
				fault("the parameter %s with %q: %s", p.name, text, faultText(err))
			}
		}
	}
	if strings.HasPrefix(op.Path, "/v1/") {
		for name := range query {
			fault("the parameter %s, which is not documented", name)
		}
	}
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case len(op.bodies) == 0:
		if len(body) > 0 {
			fault("a body: %.200s", body)
		}
	case op.ID == batchID:
		for _, text := range c.checkBatch(mediaType, body, answer) {
			fault("%s", text)
		}
	case op.bodies["application/json"] != nil: // whatever it calls itself
		if err := validJSON(op.bodies["application/json"], body); err != nil {
			fault("the body %.500s: %s", body, faultText(err))
		}
	}
	return faults
}

// batchID is the operation whose items are judged one by one.
const batchID = "submitEvents"

// checkBatch checks the items of a batch that were accepted.
func (c *Contract) checkBatch(mediaType string, body, answer []byte) (faults []string) {
	var items []json.RawMessage
	if mediaType == "application/x-ndjson" || mediaType == "application/ndjson" {
		for line := range bytes.Lines(body) {
			if line = bytes.TrimSpace(line); len(line) > 0 {
				items = append(items, line)
			}
		}
	} else if err := json.Unmarshal(body, &items); err != nil {
		return []string{fmt.Sprintf("the body %.500s: %v", body, err)}
	}
	var results struct{ Results []struct{ Status int } }
	if err := json.Unmarshal(answer, &results); err != nil || len(results.Results) != len(items) {
		return []string{fmt.Sprintf("%d items and answers with %d results", len(items), len(results.Results))}
	}
	for i, item := range items {
		if results.Results[i].Status >= 300 {
			continue
		}
		if err := validJSON(c.item, item); err != nil {
			faults = append(faults, fmt.Sprintf("the item %.500s: %s", item, faultText(err)))
		}
	}
	return faults
}

func isJSON(mediaType string) bool {
	return mediaType == "application/json" || strings.HasSuffix(mediaType, "+json")
}

func validJSON(schema *jsonschema.Schema, text []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// validText checks the text of a parameter or header: as a text or, where that is
// not right, as the number that it may stand for.
func validText(schema *jsonschema.Schema, text string) error {
	err := schema.Validate(text)
	if _, notNumber := strconv.ParseInt(text, 10, 64); err != nil && notNumber == nil {
		return schema.Validate(json.Number(text))
	}
	return err
}

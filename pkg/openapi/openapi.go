// Package openapi is the REST API's contract: an OpenAPI 3.1 document, written by
// hand in openapi.json, and the handlers that serve it to programs and to people.
// Package openapitest checks what a server does against it.
package openapi

import (
	_ "embed"
	"net/http"
	"slices"
)

//go:embed openapi.json
var document []byte

// Document is a copy of the OpenAPI 3.1 document (JSON in UTF-8).
func Document() []byte { return slices.Clone(document) }

// JSON serves the document.
func JSON() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		serve(w, "application/json", document)
	})
}

// Docs serves the document as one page for people, which has no scripts and
// loads nothing. It panics if the document is not one that it can render.
func Docs() http.Handler {
	page, err := render(document)
	if err != nil {
		panic(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", contentSecurityPolicy)
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Content-Type-Options", "nosniff")
		serve(w, "text/html; charset=utf-8", page)
	})
}

// serve answers with something that changes only with the program.
func serve(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(body) // the client may have left; there is nobody to tell
}

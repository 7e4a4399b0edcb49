package api

import (
	"errors"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/strictjson"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// applySignatures writes how a webhook is to be signed into w, as apply does. It
// returns what is wrong with the form of the template; w.Check knows the rest.
func applySignatures(o *strictjson.Object, w *webhook.Webhook) []webhook.FieldError {
	set(o, "signatures", &w.Signatures, []webhook.Scheme{webhook.SchemeStandard}, func(name string) (schemes []webhook.Scheme) {
		for _, scheme := range o.Strings(name) {
			schemes = append(schemes, webhook.Scheme(scheme))
		}
		return schemes
	})
	const name = "signature_template"
	var faults []webhook.FieldError
	set(o, name, &w.SignatureTemplate, nil, func(string) *webhook.SignatureTemplate {
		t := webhook.DefaultSignatureTemplate()
		if faults = parseTemplate(o.Raw(name), &t); len(faults) > 0 && faults[0].Pointer == "" {
			return nil // no object, so that there is nothing of it to check
		}
		return &t
	})
	for i := range faults {
		faults[i].Pointer = "/" + name + faults[i].Pointer
	}
	return faults
}

// parseTemplate reads a template's object. What is left out, or null, stays as it
// is in t.
func parseTemplate(raw []byte, t *webhook.SignatureTemplate) []webhook.FieldError {
	o, err := strictjson.Parse(raw, "", "header", "signed", "algorithm", "encoding", "value", "separator")
	if err != nil {
		var e *webhook.Error
		if errors.As(err, &e) && len(e.Fields) > 0 && e.Fields[0].Pointer != "" {
			return e.Fields
		}
		return []webhook.FieldError{{Detail: "must be an object, or null"}}
	}
	for name, field := range map[string]func(text string){
		"header":    func(text string) { t.Header = text },
		"signed":    func(text string) { t.Signed = text },
		"algorithm": func(text string) { t.Algorithm = webhook.Algorithm(text) },
		"encoding":  func(text string) { t.Encoding = webhook.Encoding(text) },
		"value":     func(text string) { t.Value = text },
		"separator": func(text string) { t.Separator = &text },
	} {
		if o.Has(name) {
			field(o.String(name))
		}
	}
	return o.Faults()
}

// keysCacheControl lets receivers, and caches on the way, keep public keys for 5
// minutes. While keys change both the old and the new one sign, for longer than
// that unless the owner says otherwise, so an old set is good enough.
const keysCacheControl = "public, max-age=300"

// publicKeys answers anyone with a webhook's public keys: they are public, and its
// id is not guessed. It comes from memory, in which whatever was asked for is
// remembered, and how many look-ups there may be at once is bounded.
func (a *API) publicKeys(c echo.Context) error {
	id, err := pathID(c, postgres.NoPublicKeys)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	keys, err := a.catalog.PublicKeys(c.Request().Context(), id)
	if err != nil {
		return err
	}
	header := c.Response().Header()
	header.Set("ETag", keys.ETag)
	header.Set(echo.HeaderCacheControl, keysCacheControl)
	if matchesETag(c.Request().Header.Values("If-None-Match"), keys.ETag) {
		return c.NoContent(http.StatusNotModified)
	}
	writeBody(c, http.StatusOK, keys.Document)
	return nil
}

// matchesETag reports whether If-None-Match names an entity tag (RFC 9110,
// section 13.1.2), in the weak comparison. Ours have no comma.
func matchesETag(headers []string, etag string) bool {
	for _, header := range headers {
		for tag := range strings.SplitSeq(header, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}

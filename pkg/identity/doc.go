// Package identity is what a webhook's requests show of who sends them: headers of
// its owner's, an Authorization header, and a client certificate.
//
// It guarantees that a webhook's credentials are sealed as one document, bound to
// the webhook (Seal, Open); that tokens are asked for by one request at a time, kept
// while they are good, and renewed ahead of their end (Tokens); and that a connection
// made for a webhook with a TLS configuration of its own carries no other webhook's
// requests, nor those of another configuration (Clients).
//
// What it says of trouble is fit for the webhook's owner: no error has anything of a
// credential or a token in it. It leaves to callers what follows from that.
package identity

import (
	"fmt"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Box seals and opens, as package seal does.
type Box interface {
	Seal(plaintext []byte, context string) []byte
	Open(sealed []byte, context string) ([]byte, error)
}

// Context binds a webhook's credentials to it: moved to another webhook's row, or
// taken for one of its signing secrets, they do not open.
func Context(id webhook.ID) string { return "credentials " + id.String() }

// Seal sets w.Sealed to w's credentials, or to nil where it has none. Without headers
// its Headers are left out, to be stored in the open.
func Seal(box Box, w *webhook.Webhook, headers bool) error {
	w.Sealed, w.HeadersSealed = nil, headers
	if w.Auth == nil && w.TLS == nil && (!headers || len(w.Headers) == 0) {
		return nil
	}
	text, err := w.EncodeCredentials(headers)
	if err != nil {
		return err
	}
	w.Sealed = box.Seal(text, Context(w.ID))
	return nil
}

// Open sets w's credentials to what is in w.Sealed. Headers that are stored in the
// open are newer than sealed ones: a release before this one wrote them.
func Open(box Box, w *webhook.Webhook) error {
	if w.Sealed == nil {
		return nil
	}
	text, err := box.Open(w.Sealed, Context(w.ID))
	if err != nil {
		return fmt.Errorf("open the credentials of webhook %s: %w", w.ID, err)
	}
	written := w.Headers
	w.Headers = map[string]webhook.Secret{}
	if err := w.DecodeCredentials(text); err != nil {
		return err
	}
	w.HeadersSealed = len(written) == 0
	if !w.HeadersSealed {
		w.Headers = written
	}
	return nil
}

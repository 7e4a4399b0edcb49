package identity

import (
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func newBox(t *testing.T) *seal.Box {
	t.Helper()
	key, err := seal.ParseKey(base64.StdEncoding.EncodeToString(make([]byte, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	return seal.New(key)
}

func secretHook() *webhook.Webhook {
	return &webhook.Webhook{
		ID:      webhook.NewID(time.Now()),
		Headers: map[string]webhook.Secret{"X-A": webhook.NewSecret("hidden header")},
		Auth:    &webhook.Auth{Type: webhook.AuthBearer, Token: webhook.NewSecret("hidden-token")},
		TLS:     &webhook.TLS{ServerName: "hidden.name"},
	}
}

func TestSeal(t *testing.T) {
	t.Parallel()
	box := newBox(t)

	t.Run("OpensForItsWebhookAlone", func(t *testing.T) {
		t.Parallel()
		w := secretHook()
		if err := Seal(box, w, true); err != nil || strings.Contains(string(w.Sealed), "hidden") {
			t.Fatalf("sealed as %q, %v", w.Sealed, err)
		}
		read := &webhook.Webhook{ID: w.ID, Headers: map[string]webhook.Secret{}, Sealed: w.Sealed}
		if err := Open(box, read); err != nil || !reflect.DeepEqual(read, w) {
			t.Errorf("opened %+v, %v", read, err)
		}
		read.ID = webhook.NewID(time.Now())
		if err := Open(box, read); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("for another webhook: %v", err)
		}
		if _, err := box.Open(w.Sealed, w.ID.String()); !errors.Is(err, seal.ErrCorrupt) {
			t.Errorf("as a signing secret: %v", err)
		}
	})

	t.Run("OfNothingIsNothing", func(t *testing.T) {
		t.Parallel()
		w := &webhook.Webhook{Sealed: []byte("old")}
		if err := Seal(box, w, true); err != nil || w.Sealed != nil {
			t.Errorf("sealed %q, %v", w.Sealed, err)
		}
		if err := Open(box, w); err != nil || w.Auth != nil || w.TLS != nil {
			t.Errorf("opened %+v, %v", w, err)
		}
	})

	t.Run("LeavesHeadersOutThatMustBeInTheOpen", func(t *testing.T) {
		t.Parallel()
		w := secretHook()
		if err := Seal(box, w, false); err != nil || w.HeadersSealed {
			t.Fatal(err)
		}
		read := &webhook.Webhook{ID: w.ID, Sealed: w.Sealed}
		if err := Open(box, read); err != nil || len(read.Headers) != 0 || read.Auth == nil {
			t.Errorf("opened %+v, %v", read, err)
		}
		w.Auth, w.TLS = nil, nil
		if err := Seal(box, w, false); err != nil || w.Sealed != nil {
			t.Errorf("with headers alone: %q, %v", w.Sealed, err)
		}
	})

	t.Run("GivesWayToHeadersThatAnOlderReleaseWrote", func(t *testing.T) {
		t.Parallel()
		w := secretHook()
		if err := Seal(box, w, true); err != nil {
			t.Fatal(err)
		}
		read := &webhook.Webhook{ID: w.ID, Sealed: w.Sealed, Headers: map[string]webhook.Secret{"X-B": webhook.NewSecret("newer")}}
		if err := Open(box, read); err != nil || read.HeadersSealed || len(read.Headers) != 1 || read.Headers["X-B"].Reveal() != "newer" {
			t.Errorf("opened %+v, %v", read, err)
		}
	})
}

package client_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
)

func TestCredentials(t *testing.T) {
	t.Parallel()

	t.Run("AreSentAsTheAPIWantsThem", func(t *testing.T) {
		t.Parallel()
		for want, auth := range map[string]*client.Auth{
			`{"type":"basic","username":"u","password":""}`: {Type: client.AuthBasic, Username: "u"},
			`{"type":"bearer","token":"t"}`:                 {Type: client.AuthBearer, Token: "t"},
			`{"type":"oauth2","token_url":"https://t/","client_id":"c","client_secret":"s","scopes":["a"],"audience":"x","auth_style":"body"}`: {
				Type: client.AuthOAuth2, TokenURL: "https://t/", ClientID: "c", ClientSecret: "s", Scopes: []string{"a"}, Audience: "x",
				AuthStyle: client.AuthStyleBody,
			},
		} {
			got, err := json.Marshal(client.WebhookUpdate{Auth: auth})
			var sent, wanted any
			if err == nil {
				err = json.Unmarshal(got, &sent)
			}
			if json.Unmarshal([]byte(`{"auth":`+want+`}`), &wanted) != nil || err != nil || !reflect.DeepEqual(sent, wanted) {
				t.Errorf("sent %s, %v; want %s", got, err, want)
			}
		}
		got, err := json.Marshal(client.NewWebhook{TLS: &client.TLS{CACertificates: "pem", ServerName: "s"}})
		if want := `{"tenant":"","url":"","tls":{"ca_certificates":"pem","server_name":"s"}}`; err != nil || string(got) != want {
			t.Errorf("sent %s, %v; want %s", got, err, want)
		}
	})

	t.Run("AreReadWithWhatMayBeToldOfThem", func(t *testing.T) {
		t.Parallel()
		fake := newFake(t, answer(http.StatusOK, `{"id":"`+webhookID+`","headers":{"X-A":"***"},
			"auth":{"type":"oauth2","token_url":"https://t/","client_id":"c","client_secret":"***","scopes":[],"auth_style":"basic"},
			"tls":{"client_certificate":"***","client_key":"***","certificate":{"subject":"CN=a","issuer":"CN=b",
			"not_before":"2026-01-01T00:00:00Z","not_after":"2027-01-01T00:00:00Z","sha256":"ab"}}}`))
		w, err := dial(t, fake).Webhooks().Get(t.Context(), webhookID)
		if err != nil {
			t.Fatal(err)
		}
		if w.Headers["X-A"] != client.Masked || w.Auth.ClientSecret != client.Masked || w.Auth.ClientID != "c" ||
			w.TLS.ClientKey != client.Masked || w.TLS.Certificate.Subject != "CN=a" ||
			!w.TLS.Certificate.NotAfter.Equal(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("read %+v, %+v, %+v", w, w.Auth, w.TLS)
		}
	})

	t.Run("DoNotPrint", func(t *testing.T) {
		t.Parallel()
		auth := client.Auth{Type: client.AuthBasic, Password: "hidden"}
		tls := client.ShownTLS{TLS: client.TLS{ClientKey: "hidden", ServerName: "s"}}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
			text := fmt.Sprintf(verb+verb+verb+verb, auth, &auth, tls, []client.TLS{tls.TLS})
			if strings.Contains(text, "hidden") || strings.Contains(text, "68696464656e") {
				t.Errorf("%s prints %s", verb, text)
			}
		}
	})
}

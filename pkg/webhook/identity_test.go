package webhook_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func oauth2() *webhook.Auth {
	return &webhook.Auth{
		Type: webhook.AuthOAuth2, TokenURL: "https://login.example.com/token", ClientID: "me", ClientSecret: webhook.NewSecret("hidden"),
		Scopes: []string{"a", "b:c"}, AuthStyle: webhook.AuthStyleBasic,
	}
}

// usable is a webhook without faults.
func usable(change func(w *webhook.Webhook)) *webhook.Webhook {
	w := &webhook.Webhook{
		Signatures: []webhook.Scheme{webhook.SchemeStandard}, Ordering: webhook.OrderingNone,
		Tenant: "acme", URL: "https://example.com", EventTypes: []string{"*"}, TimeoutSeconds: 1, MaxInFlight: 1, Weight: 1,
		MaxAgeSeconds: 1, MaxBacklog: 1,
	}
	change(w)
	return w
}

func TestAuthCheck(t *testing.T) {
	t.Parallel()
	secret := webhook.NewSecret
	changed := func(change func(a *webhook.Auth)) *webhook.Auth {
		a := oauth2()
		change(a)
		return a
	}
	for name, tc := range map[string]struct {
		auth *webhook.Auth
		want []string
	}{
		"Basic":              {&webhook.Auth{Type: webhook.AuthBasic, Username: "ü", Password: secret("a:b")}, nil},
		"AnEmptyPassword":    {&webhook.Auth{Type: webhook.AuthBasic, Username: "key", Password: secret("")}, nil},
		"NoPassword":         {&webhook.Auth{Type: webhook.AuthBasic, Username: "key"}, []string{"/auth/password"}},
		"AColon":             {&webhook.Auth{Type: webhook.AuthBasic, Username: "a:b", Password: secret("p")}, []string{"/auth/username"}},
		"ALineBreak":         {&webhook.Auth{Type: webhook.AuthBasic, Username: "a", Password: secret("p\r\nX: y")}, []string{"/auth/password"}},
		"Bearer":             {&webhook.Auth{Type: webhook.AuthBearer, Token: secret("abc.def-_~+/=")}, nil},
		"NoToken":            {&webhook.Auth{Type: webhook.AuthBearer}, []string{"/auth/token"}},
		"ATokenOfTwoWords":   {&webhook.Auth{Type: webhook.AuthBearer, Token: secret("a b")}, []string{"/auth/token"}},
		"OAuth2":             {oauth2(), nil},
		"NoTokenURL":         {changed(func(a *webhook.Auth) { a.TokenURL = "" }), []string{"/auth/token_url"}},
		"NoClientID":         {changed(func(a *webhook.Auth) { a.ClientID = "" }), []string{"/auth/client_id"}},
		"NoClientSecret":     {changed(func(a *webhook.Auth) { a.ClientSecret = secret("") }), []string{"/auth/client_secret"}},
		"AScopeOfTwoWords":   {changed(func(a *webhook.Auth) { a.Scopes[1] = "b c" }), []string{"/auth/scopes/1"}},
		"AQuotedScope":       {changed(func(a *webhook.Auth) { a.Scopes[0] = `"a"` }), []string{"/auth/scopes/0"}},
		"AnotherStyle":       {changed(func(a *webhook.Auth) { a.AuthStyle = "query" }), []string{"/auth/auth_style"}},
		"TooManyScopes":      {changed(func(a *webhook.Auth) { a.Scopes = slices.Repeat([]string{"a"}, webhook.MaxScopes+1) }), []string{"/auth/scopes"}},
		"AnotherType":        {&webhook.Auth{Type: "digest"}, []string{"/auth/type"}},
		"AudienceInTwoLines": {changed(func(a *webhook.Auth) { a.Audience = "a\nb" }), []string{"/auth/audience"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := usable(func(w *webhook.Webhook) { w.Auth = tc.auth }).Check()
			if got := pointers(faults); !slices.Equal(got, tc.want) && len(got)+len(tc.want) > 0 {
				t.Errorf("faults %v, want at %q", faults, tc.want)
			}
		})
	}
}

func TestCredentialsFitTheWebhook(t *testing.T) {
	t.Parallel()
	own := map[string]webhook.Secret{"AUTHORIZATION": webhook.NewSecret("Bearer x")}
	if faults := usable(func(w *webhook.Webhook) { w.Headers = own }).Check(); len(faults) != 0 {
		t.Errorf("a header of its own beside no auth: %v", faults)
	}
	faults := usable(func(w *webhook.Webhook) { w.Headers, w.Auth = own, oauth2() }).Check()
	if got := pointers(faults); !slices.Equal(got, []string{"/headers/AUTHORIZATION"}) {
		t.Errorf("faults %v, want one at the header that auth sets", faults)
	}
	faults = usable(func(w *webhook.Webhook) { w.URL, w.TLS = "http://example.com", &webhook.TLS{ServerName: "a"} }).Check()
	if got := pointers(faults); !slices.Equal(got, []string{"/tls"}) {
		t.Errorf("faults %v, want one at tls, which http does without", faults)
	}
}

func TestThreeAsterisksKeepWhatIsStored(t *testing.T) {
	t.Parallel()
	masked := webhook.NewSecret(webhook.Masked)

	t.Run("InHeadersWhateverTheirSpelling", func(t *testing.T) {
		t.Parallel()
		stored := map[string]webhook.Secret{"X-Api-Key": webhook.NewSecret("old")}
		headers := map[string]webhook.Secret{"x-api-KEY": masked, "X-New": webhook.NewSecret("new"), "X-None/": masked}
		faults := webhook.KeepHeaders(headers, stored)
		if headers["x-api-KEY"].Reveal() != "old" || headers["X-New"].Reveal() != "new" {
			t.Errorf("headers are %v", webhook.RevealAll(headers))
		}
		if got := pointers(faults); !slices.Equal(got, []string{"/X-None~1"}) {
			t.Errorf("faults %v, want one at what is not stored", faults)
		}
	})

	t.Run("InAuthOfTheSameTypeAlone", func(t *testing.T) {
		t.Parallel()
		a := oauth2()
		a.ClientSecret, a.Scopes = masked, nil
		if faults := a.Keep(oauth2()); len(faults) != 0 || a.ClientSecret.Reveal() != "hidden" {
			t.Errorf("kept %q, faults %v", a.ClientSecret.Reveal(), faults)
		}
		for name, stored := range map[string]*webhook.Auth{"another type": oauth2(), "none": nil} {
			basic := &webhook.Auth{Type: webhook.AuthBasic, Username: "u", Password: masked}
			if got := pointers(basic.Keep(stored)); !slices.Equal(got, []string{"/password"}) {
				t.Errorf("of %s: faults at %q", name, got)
			}
		}
	})

	t.Run("ButNoClientSecretForAnotherTokenEndpoint", func(t *testing.T) {
		t.Parallel()
		a := oauth2()
		a.ClientSecret, a.TokenURL = masked, "https://evil.example/token"
		if got := pointers(a.Keep(oauth2())); !slices.Equal(got, []string{"/client_secret"}) {
			t.Errorf("faults at %q", got)
		}
	})

	t.Run("InTLSPieceByPiece", func(t *testing.T) {
		t.Parallel()
		stored := &webhook.TLS{ClientCertificate: webhook.NewSecret("c"), ClientKey: webhook.NewSecret("k")}
		got := &webhook.TLS{ClientCertificate: masked, ClientKey: webhook.NewSecret("new"), CACertificates: masked}
		faults := got.Keep(stored)
		if got.ClientCertificate.Reveal() != "c" || got.ClientKey.Reveal() != "new" || !slices.Equal(pointers(faults), []string{"/ca_certificates"}) {
			t.Errorf("faults %v", faults)
		}
	})
}

func TestCredentialsAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	secret := webhook.NewSecret
	for name, w := range map[string]*webhook.Webhook{
		"Headers":   {Headers: map[string]webhook.Secret{"X-A": secret(""), "x-b": secret("é\"<>&")}},
		"Basic":     {Auth: &webhook.Auth{Type: webhook.AuthBasic, Username: "u", Password: secret("")}},
		"Bearer":    {Auth: &webhook.Auth{Type: webhook.AuthBearer, Token: secret("t")}},
		"OAuth2":    {Auth: oauth2()},
		"TLS":       {TLS: &webhook.TLS{ClientCertificate: secret("c"), ClientKey: secret("k"), CACertificates: secret("a"), ServerName: "s"}},
		"ALittle":   {TLS: &webhook.TLS{ServerName: "s"}},
		"NoneAtAll": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := w.EncodeCredentials(true)
			if err != nil {
				t.Fatal(err)
			}
			got := &webhook.Webhook{}
			if err := got.DecodeCredentials(text); err != nil || !reflect.DeepEqual(got, w) {
				t.Errorf("read %+v, %v from %s", got, err, text)
			}
		})
	}
	err := new(webhook.Webhook).DecodeCredentials([]byte(`{"auth":"hidden"}`))
	if err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("of what nobody wrote: %v", err)
	}
}

func TestAWebhookNeverPrintsItsCredentials(t *testing.T) {
	t.Parallel()
	w := usable(func(w *webhook.Webhook) {
		w.Headers = map[string]webhook.Secret{"X-A": webhook.NewSecret("hidden")}
		w.Auth = &webhook.Auth{
			Type: webhook.AuthOAuth2, Password: webhook.NewSecret("hidden"), Token: webhook.NewSecret("hidden"), ClientSecret: webhook.NewSecret("hidden"),
		}
		w.TLS = &webhook.TLS{ClientCertificate: webhook.NewSecret("hidden"), ClientKey: webhook.NewSecret("hidden"), CACertificates: webhook.NewSecret("hidden")}
	})
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	all := string(text)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X"} {
		all += fmt.Sprintf(verb+verb+verb+verb, w, *w, *w.Auth, *w.TLS)
	}
	for _, leak := range []string{"hidden", "68696464656e", "68696464656E"} {
		if strings.Contains(all, leak) {
			t.Errorf("prints %s", all)
		}
	}
	if !strings.Contains(string(text), `"X-A":"***"`) || !strings.Contains(string(text), `"client_secret":"***"`) {
		t.Errorf("shown as %s", text)
	}
}

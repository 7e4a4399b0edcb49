package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/signature"
	"github.com/fairhook/fairhook/pkg/webhook"
)

type signedAnswer struct {
	webhook.Webhook
	Secret    string `json:"secret"`
	PublicKey string `json:"public_key"`
}

type secretFull struct {
	ID        webhook.ID         `json:"id"`
	Kind      webhook.SecretKind `json:"kind"`
	Secret    *string            `json:"secret"`
	PublicKey *string            `json:"public_key"`
	ExpiresAt *time.Time         `json:"expires_at"`
}

func (s secretFull) text() string {
	if s.Secret == nil {
		return ""
	}
	return *s.Secret
}

func createSigned(t *testing.T, b *testBundle, more string) (signedAnswer, string) {
	t.Helper()
	w, _ := must[signedAnswer](t, b, http.StatusCreated, "POST", "/v1/webhooks", `{"tenant":"acme","url":"https://example.com"`+more+`}`)
	return w, "/v1/webhooks/" + w.ID.String()
}

func secretsOf(t *testing.T, b *testBundle, path string) []secretFull {
	t.Helper()
	list, _ := must[listAnswer[secretFull]](t, b, http.StatusOK, "GET", path+"/secrets", "")
	return list.Data
}

func rotate(t *testing.T, b *testBundle, status int, path, body string) secretFull {
	t.Helper()
	s, header := must[secretFull](t, b, status, "POST", path+"/secrets", body)
	if header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers of a rotation are %v", header)
	}
	return s
}

func TestSignaturesOfWebhooks(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("AreStandardUnlessAskedFor", func(t *testing.T) {
		t.Parallel()
		for _, more := range []string{"", `,"signatures":null,"signature_template":null`} {
			w, _ := createSigned(t, b, more)
			if !slices.Equal(w.Signatures, []webhook.Scheme{webhook.SchemeStandard}) || w.SignatureTemplate != nil || w.PublicKey != "" {
				t.Errorf("webhook is %+v", w)
			}
		}
	})

	t.Run("FillInATemplatesDefaults", func(t *testing.T) {
		t.Parallel()
		w, path := createSigned(t, b, `,"signatures":["standard","template"],"signature_template":{"header":"X-Acme","separator":",","value":null}`)
		got, _ := must[signedAnswer](t, b, http.StatusOK, "GET", path, "")
		want := webhook.DefaultSignatureTemplate()
		want.Header = "X-Acme"
		for _, w := range []signedAnswer{w, got} {
			tpl := w.SignatureTemplate
			if tpl == nil || tpl.Separator == nil || *tpl.Separator != "," {
				t.Fatalf("template is %+v", tpl)
			}
			bare := *tpl
			bare.Separator = nil
			if bare != want {
				t.Errorf("template is %+v, want %+v", bare, want)
			}
		}
		// Away from it, and both at once.
		if got := refused(t, b, webhook.CodeInvalid, "PATCH", path, `{"signatures":["standard"]}`); !slices.Equal(got, []string{`/signature_template: is used only with the signature "template"`}) {
			t.Errorf("faults are %q", got)
		}
		changed, _ := must[signedAnswer](t, b, http.StatusOK, "PATCH", path, `{"signatures":null,"signature_template":null}`)
		if changed.SignatureTemplate != nil || len(changed.Signatures) != 1 {
			t.Errorf("changed to %+v", changed)
		}
	})

	t.Run("AreCheckedWithAllElse", func(t *testing.T) {
		t.Parallel()
		for more, want := range map[string][]string{
			`,"signatures":[]`: {"/signatures"}, `,"signatures":"standard"`: {"/signatures"}, `,"signatures":["v1"]`: {"/signatures/0"},
			`,"signatures":["template"]`:                                 {"/signature_template"},
			`,"signatures":["template"],"signature_template":5`:          {"/signature_template"},
			`,"signatures":["template"],"signature_template":[]`:         {"/signature_template"},
			`,"signatures":["template"],"signature_template":{}`:         {"/signature_template/header"},
			`,"signatures":["template"],"signature_template":{"no":"x"}`: {"/signature_template/header", "/signature_template/no"},
			`,"signatures":["template"],"signature_template":{"header":"X-A","value":5,"signed":"x"}`: {
				"/signature_template/signed", "/signature_template/value",
			},
			`,"signatures":["github"],"headers":{"X-Hub-Signature-256":"x"}`: {"/headers/X-Hub-Signature-256"},
			`,"private_key":"whsk_x"`:                                   {"/private_key"},
			`,"signatures":["standard_ed25519"],"private_key":"whsk_x"`: {"/private_key"},
			`,"secret":"too short"`:                                     {"/secret"},
			`,"secret":"` + signature.NewPrivateKey().Reveal() + `"`:    {"/secret"},
		} {
			var pointers []string
			for _, fault := range refused(t, b, webhook.CodeInvalid, "POST", "/v1/webhooks", `{"tenant":"acme","url":"https://example.com"`+more+`}`) {
				pointer, _, _ := strings.Cut(fault, ": ")
				pointers = append(pointers, pointer)
			}
			if !slices.Equal(pointers, want) {
				t.Errorf("%s: faults at %q, want %q", more, pointers, want)
			}
		}
	})

	t.Run("KeepTheTextOfASecretWhereItIsTheKey", func(t *testing.T) {
		t.Parallel()
		const hexadecimal = "757107ea0eb2509fc211221cce984b8a37570b6d"
		for _, c := range []struct {
			more, secret, want string
			kind               webhook.SecretKind
		}{
			{`,"signatures":["github"]`, "It's a Secret to Everybody", "It's a Secret to Everybody", webhook.SecretText},
			{``, "It's a Secret to Everybody", "It's a Secret to Everybody", webhook.SecretText},
			{`,"signatures":["standard","github"]`, hexadecimal, hexadecimal, webhook.SecretSymmetric},
			{`,"signatures":["standard"]`, hexadecimal, "whsec_" + hexadecimal, webhook.SecretSymmetric},
		} {
			w, path := createSigned(t, b, c.more+`,"secret":"`+c.secret+`"`)
			got := secretsOf(t, b, path)
			if w.Secret != c.want || len(got) != 1 || got[0].text() != c.want || got[0].Kind != c.kind || got[0].PublicKey != nil {
				t.Errorf("%s with %q: %q, %+v", c.more, c.secret, w.Secret, got)
			}
		}
	})
}

func TestRotateSecret(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("LeavesTheOldOneValidForADay", func(t *testing.T) {
		t.Parallel()
		w, path := createSigned(t, b, "")
		made := rotate(t, b, http.StatusCreated, path, `{}`)
		if made.text() == w.Secret || !strings.HasPrefix(made.text(), "whsec_") || made.ExpiresAt != nil || made.Kind != webhook.SecretSymmetric {
			t.Errorf("made %+v", made)
		}
		all := secretsOf(t, b, path)
		if len(all) != 2 || all[0].ID != made.ID || all[1].text() != w.Secret || all[1].ExpiresAt == nil {
			t.Fatalf("secrets are %+v", all)
		}
		if left := time.Until(*all[1].ExpiresAt); left < 23*time.Hour || left > 25*time.Hour {
			t.Errorf("the old one is valid for %s", left)
		}
		// A second rotation leaves an earlier end alone.
		rotate(t, b, http.StatusCreated, path, `{"expire_previous_after_seconds":2592000}`)
		if again := secretsOf(t, b, path); len(again) != 3 || !again[2].ExpiresAt.Equal(*all[1].ExpiresAt) || again[1].ExpiresAt == nil {
			t.Errorf("secrets are %+v", again)
		}
	})

	t.Run("EndsTheOldOneAtOnceIfAsked", func(t *testing.T) {
		t.Parallel()
		_, path := createSigned(t, b, "")
		made := rotate(t, b, http.StatusCreated, path, `{"expire_previous_after_seconds":0}`)
		if all := secretsOf(t, b, path); len(all) != 1 || all[0].ID != made.ID {
			t.Errorf("secrets are %+v", all)
		}
	})

	t.Run("ChangesNothingWhenTheSameOneComesAgain", func(t *testing.T) {
		t.Parallel()
		w, path := createSigned(t, b, "")
		text := signature.NewSecret().Reveal()
		body := `{"secret":"` + text + `","expire_previous_after_seconds":600}`
		first := rotate(t, b, http.StatusCreated, path, body)
		before := secretsOf(t, b, path)
		again := rotate(t, b, http.StatusOK, path, `{"secret":"`+strings.TrimPrefix(text, "whsec_")+`","expire_previous_after_seconds":0}`)
		if after := secretsOf(t, b, path); again.ID != first.ID || again.text() != text || fmt.Sprint(texts(after)) != fmt.Sprint(texts(before)) {
			t.Errorf("again: %+v, secrets %+v", again, after)
		}
		// Back to the one before: it is the current one then, and there once.
		back := rotate(t, b, http.StatusCreated, path, `{"secret":"`+w.Secret+`"}`)
		all := secretsOf(t, b, path)
		if len(all) != 2 || all[0].ID != back.ID || all[0].text() != w.Secret || all[0].ExpiresAt != nil || all[1].text() != text || all[1].ExpiresAt == nil {
			t.Errorf("secrets are %+v", all)
		}
	})

	t.Run("RefusesMoreThanFit", func(t *testing.T) {
		t.Parallel()
		_, path := createSigned(t, b, "")
		for range 4 {
			rotate(t, b, http.StatusCreated, path, `{}`)
		}
		refused(t, b, webhook.CodeConflict, "POST", path+"/secrets", `{}`)
		oldest := secretsOf(t, b, path)[4]
		must[any](t, b, http.StatusNoContent, "DELETE", path+"/secrets/"+oldest.ID.String(), "")
		rotate(t, b, http.StatusCreated, path, `{}`)
		refused(t, b, webhook.CodeConflict, "POST", path+"/secrets", `{}`)
		rotate(t, b, http.StatusCreated, path, `{"expire_previous_after_seconds":0}`) // makes room itself
	})

	t.Run("KeepsTheFamiliesApart", func(t *testing.T) {
		t.Parallel()
		w, path := createSigned(t, b, `,"signatures":["standard","standard_ed25519"]`)
		made := rotate(t, b, http.StatusCreated, path, `{"kind":"ed25519"}`)
		if made.Secret != nil || made.PublicKey == nil || *made.PublicKey == w.PublicKey || made.Kind != webhook.SecretEd25519 {
			t.Errorf("made %+v", made)
		}
		brought := signature.NewPrivateKey().Reveal()
		rotate(t, b, http.StatusCreated, path, `{"secret":"`+brought+`"}`)
		rotate(t, b, http.StatusOK, path, `{"secret":"`+brought+`","kind":"ed25519"}`)
		symmetric := 0
		for _, s := range secretsOf(t, b, path) {
			if s.Kind == webhook.SecretSymmetric {
				symmetric++
				if s.ExpiresAt != nil {
					t.Error("the symmetric secret ends too")
				}
			}
		}
		if symmetric != 1 || len(secretsOf(t, b, path)) != 4 {
			t.Errorf("secrets are %+v", secretsOf(t, b, path))
		}
	})

	t.Run("RefusesWhatMakesNoSense", func(t *testing.T) {
		t.Parallel()
		w, path := createSigned(t, b, "")
		private := signature.NewPrivateKey().Reveal()
		refused(t, b, webhook.CodeConflict, "POST", path+"/secrets", `{"kind":"ed25519"}`)
		refused(t, b, webhook.CodeConflict, "POST", path+"/secrets", `{"secret":"`+private+`"}`)
		for body, want := range map[string][]string{
			`{"kind":"text"}`: {"/kind"}, `{"kind":5}`: {"/kind"}, `{"secret":"short"}`: {"/secret"}, `{"secret":5}`: {"/secret"},
			`{"kind":"symmetric","secret":"` + private + `"}`:   {"/secret"},
			`{"kind":"ed25519","secret":"` + w.Secret + `"}`:    {"/secret"},
			`{"expire_previous_after_seconds":-1,"secret":"x"}`: {"/expire_previous_after_seconds", "/secret"},
			`{"expire_previous_after_seconds":2592001}`:         {"/expire_previous_after_seconds"},
		} {
			var pointers []string
			for _, fault := range refused(t, b, webhook.CodeInvalid, "POST", path+"/secrets", body) {
				pointer, _, _ := strings.Cut(fault, ": ")
				pointers = append(pointers, pointer)
			}
			if !slices.Equal(pointers, want) {
				t.Errorf("%s: faults at %q, want %q", body, pointers, want)
			}
		}
		if all := secretsOf(t, b, path); len(all) != 1 || all[0].ExpiresAt != nil {
			t.Errorf("secrets are %+v", all)
		}
		none := "/v1/webhooks/" + webhook.NewID(time.Now()).String()
		refused(t, b, webhook.CodeNotFound, "POST", none+"/secrets", `{}`)
		refused(t, b, webhook.CodeNotFound, "DELETE", none+"/secrets/"+webhook.NewID(time.Now()).String(), "")
	})
}

// A release after this one may store kinds of secrets that this one does not know:
// their text is shown to nobody, and they are left alone.
func TestSecretsOfAnUnknownKind(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w, path := createSigned(t, b, "")
	unknown := &postgres.Secret{ID: webhook.NewID(time.Now()), Kind: "rsa", Sealed: b.box.Seal([]byte("a private key"), w.ID.String())}
	if err := postgres.InsertSecret(t.Context(), b.db, w.ID, unknown); err != nil {
		t.Fatal(err)
	}
	rotate(t, b, http.StatusCreated, path, `{"expire_previous_after_seconds":0}`)
	all := secretsOf(t, b, path)
	i := slices.IndexFunc(all, func(s secretFull) bool { return s.ID == unknown.ID })
	if len(all) != 2 || i < 0 || all[i].Secret != nil || all[i].PublicKey != nil || all[i].Kind != "rsa" || all[i].ExpiresAt != nil {
		t.Errorf("secrets are %+v", all)
	}
}

func texts(all []secretFull) (out []string) {
	for _, s := range all {
		out = append(out, s.text(), fmt.Sprint(s.ExpiresAt))
	}
	return out
}

func TestDeleteSecret(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("EndsAnOldOneAtOnce", func(t *testing.T) {
		t.Parallel()
		_, path := createSigned(t, b, "")
		made := rotate(t, b, http.StatusCreated, path, `{}`)
		old := secretsOf(t, b, path)[1]
		must[any](t, b, http.StatusNoContent, "DELETE", path+"/secrets/"+old.ID.String(), "")
		if all := secretsOf(t, b, path); len(all) != 1 || all[0].ID != made.ID {
			t.Errorf("secrets are %+v", all)
		}
		refused(t, b, webhook.CodeNotFound, "DELETE", path+"/secrets/"+old.ID.String(), "")
		refused(t, b, webhook.CodeNotFound, "DELETE", path+"/secrets/nonsense", "")
	})

	t.Run("KeepsTheOneThatTheWebhookSignsWith", func(t *testing.T) {
		t.Parallel()
		_, path := createSigned(t, b, `,"signatures":["standard","standard_ed25519"]`)
		for _, s := range secretsOf(t, b, path) {
			refused(t, b, webhook.CodeConflict, "DELETE", path+"/secrets/"+s.ID.String(), "")
		}
		must[any](t, b, http.StatusOK, "PATCH", path, `{"signatures":["standard"]}`)
		for _, s := range secretsOf(t, b, path) {
			if s.Kind == webhook.SecretEd25519 { // of no use now
				must[any](t, b, http.StatusNoContent, "DELETE", path+"/secrets/"+s.ID.String(), "")
			}
		}
	})

	t.Run("TouchesNoOtherWebhooks", func(t *testing.T) {
		t.Parallel()
		_, mine := createSigned(t, b, "")
		_, other := createSigned(t, b, "")
		rotate(t, b, http.StatusCreated, other, `{}`)
		old := secretsOf(t, b, other)[1]
		refused(t, b, webhook.CodeNotFound, "DELETE", mine+"/secrets/"+old.ID.String(), "")
		if all := secretsOf(t, b, other); len(all) != 2 {
			t.Errorf("secrets are %+v", all)
		}
	})
}

// The key pair of RFC 8037, appendix A.
const (
	rfcSeed = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
	rfcX    = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
)

type keySet struct {
	Keys []struct{ Kty, Crv, X, Kid, Alg, Use, Whpk string }
}

func TestPublicKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)

	t.Run("AreAJWKSetOfWhatSignsNow", func(t *testing.T) {
		t.Parallel()
		seed, err := base64.RawURLEncoding.DecodeString(rfcSeed)
		if err != nil {
			t.Fatal(err)
		}
		w, path := createSigned(t, b, `,"signatures":["standard_ed25519"],"private_key":"whsk_`+base64.StdEncoding.EncodeToString(seed)+`"`)
		set, header := must[keySet](t, b, http.StatusOK, "GET", path+"/public-keys", "")
		if len(set.Keys) != 1 || set.Keys[0].Kty != "OKP" || set.Keys[0].Crv != "Ed25519" || set.Keys[0].X != rfcX ||
			set.Keys[0].Alg != "EdDSA" || set.Keys[0].Use != "sig" || set.Keys[0].Whpk != w.PublicKey {
			t.Errorf("the set is %+v", set)
		}
		if header.Get("Cache-Control") != "public, max-age=300" || len(header.Get("ETag")) < 10 || strings.HasPrefix(header.Get("ETag"), "W/") {
			t.Errorf("headers are %v", header)
		}
		secrets := secretsOf(t, b, path)
		i := slices.IndexFunc(secrets, func(s secretFull) bool { return s.Kind == webhook.SecretEd25519 })
		if secrets[i].ID.String() != set.Keys[0].Kid || secrets[i].Secret != nil || *secrets[i].PublicKey != w.PublicKey {
			t.Errorf("its secret is %+v", secrets[i])
		}

		made := rotate(t, b, http.StatusCreated, path, `{"kind":"ed25519"}`)
		both, after := must[keySet](t, b, http.StatusOK, "GET", path+"/public-keys", "")
		if len(both.Keys) != 2 || both.Keys[0].Kid != made.ID.String() || both.Keys[0].Whpk != *made.PublicKey || both.Keys[1].X != rfcX ||
			after.Get("ETag") == header.Get("ETag") {
			t.Errorf("after a rotation the set is %+v with %v", both, after)
		}
		must[any](t, b, http.StatusNoContent, "DELETE", path+"/secrets/"+secrets[i].ID.String(), "")
		if left, _ := must[keySet](t, b, http.StatusOK, "GET", path+"/public-keys", ""); len(left.Keys) != 1 {
			t.Errorf("after the end of the old one the set is %+v", left)
		}
	})

	t.Run("AreNotSentAgainToWhoHasThem", func(t *testing.T) {
		t.Parallel()
		_, path := createSigned(t, b, `,"signatures":["standard_ed25519"]`)
		_, header := must[keySet](t, b, http.StatusOK, "GET", path+"/public-keys", "")
		etag := header.Get("ETag")
		for sent, want := range map[string]int{
			etag: http.StatusNotModified, "W/" + etag: http.StatusNotModified, `"other", ` + etag: http.StatusNotModified, "*": http.StatusNotModified,
			`"other"`: http.StatusOK, "": http.StatusOK, strings.Trim(etag, `"`): http.StatusOK,
		} {
			r := httptest.NewRequest("GET", path+"/public-keys", nil)
			r.Header.Set("If-None-Match", sent)
			recorder := httptest.NewRecorder()
			b.echo.ServeHTTP(recorder, r)
			if recorder.Code != want || want == http.StatusNotModified && recorder.Body.Len() > 0 || recorder.Header().Get("ETag") != etag {
				t.Errorf("If-None-Match: %s answers %d with %d bytes", sent, recorder.Code, recorder.Body.Len())
			}
		}
	})

	t.Run("TellNothingAboutWebhooksWithoutAny", func(t *testing.T) {
		t.Parallel()
		plain, _ := createSigned(t, b, "")
		was, path := createSigned(t, b, `,"signatures":["standard_ed25519"]`)
		must[any](t, b, http.StatusOK, "PATCH", path, `{"signatures":["standard"]}`)
		answers := map[string]bool{}
		for _, id := range []webhook.ID{plain.ID, was.ID, webhook.NewID(time.Now())} {
			_, err := b.call(t, "GET", "/v1/webhooks/"+id.String()+"/public-keys", "")
			if webhook.ErrorCode(err) != webhook.CodeNotFound {
				t.Fatalf("%s: %v", id, err)
			}
			answers[strings.ReplaceAll(err.Error(), id.String(), "$")] = true
		}
		if len(answers) != 1 {
			t.Errorf("answers are told apart: %v", answers)
		}
		refused(t, b, webhook.CodeNotFound, "GET", "/v1/webhooks/nonsense/public-keys", "")
		refused(t, b, webhook.CodeMalformed, "GET", path+"/public-keys?x=1", "")
	})
}

func TestSwitchingEd25519On(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, path := createSigned(t, b, "")
	if all := secretsOf(t, b, path); len(all) != 1 {
		t.Fatalf("secrets are %+v", all)
	}
	body := `{"signatures":["standard","standard_ed25519"]}`
	must[any](t, b, http.StatusOK, "PATCH", path, body)
	first, _ := must[keySet](t, b, http.StatusOK, "GET", path+"/public-keys", "")
	must[any](t, b, http.StatusOK, "PATCH", path, body)
	must[any](t, b, http.StatusOK, "PATCH", path, `{"signatures":null}`)
	must[any](t, b, http.StatusOK, "PATCH", path, body) // off and on again
	again, _ := must[keySet](t, b, http.StatusOK, "GET", path+"/public-keys", "")
	if len(first.Keys) != 1 || fmt.Sprint(first) != fmt.Sprint(again) {
		t.Errorf("keys were %+v, and are %+v", first, again)
	}
}

// What is stored of a key pair is sealed, but for its public half.
func TestAPrivateKeyIsSealed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	private := signature.NewPrivateKey().Reveal()
	w, path := createSigned(t, b, `,"signatures":["standard_ed25519"],"private_key":"`+private+`"`)
	recorder, err := b.call(t, "GET", path+"/secrets", "")
	if err != nil || strings.Contains(recorder.Body.String(), "whsk_") || !json.Valid(recorder.Body.Bytes()) {
		t.Errorf("secrets are shown as %s, %v", recorder.Body, err)
	}
	secrets, err := postgres.Secrets(t.Context(), b.db, w.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		if s.Kind != webhook.SecretEd25519 {
			continue
		}
		text, err := b.box.Open(s.Sealed, w.ID.String())
		if err != nil || string(text) != private || signature.PublicKeyText(s.PublicKey) != w.PublicKey {
			t.Errorf("it opens as %q, %v", text, err)
		}
		return
	}
	t.Error("there is none")
}

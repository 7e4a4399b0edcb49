//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/fairhook/fairhook/pkg/client"
)

// svixFile is a file for import with one endpoint, whose parts are as given.
func svixFile(endpoint, rest string) string {
	return `{"source":"svix","applications":[{"application":{"id":"app_1","uid":"acme","name":"Acme"},"endpoints":[
		{"endpoint":{"id":"ep_1","url":"https://example.com/in/s3cret?token=s3cret","description":"Orders","metadata":{}` + endpoint + `},
		"secret":{"key":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"},"headers":{"headers":{},"sensitive":[]}` + rest + `}]}]}`
}

// convoyFile is the same for Convoy. Members of rest come after the defaults of the
// same name, and win.
func convoyFile(project, endpoint, subscription string) string {
	return `{"source":"convoy","projects":[{"project":{"uid":"p1","type":"outgoing","config":{
			"strategy":{"type":"linear","duration":100,"retry_count":3},
			"signature":{"header":"X-Convoy-Signature","versions":[{"hash":"SHA256","encoding":"hex"}]}` + project + `}},
		"endpoints":[{"uid":"e1","project_id":"p1","name":"Orders","url":"https://example.com/in","status":"active",
			"secrets":[{"uid":"s1","value":"a text of Convoy's","expires_at":null,"deleted_at":null}]` + endpoint + `}],
		"subscriptions":[{"uid":"sub1","endpoint_metadata":{"uid":"e1"},"filter_config":{"event_types":["order.paid"],"filter":{"headers":{},"body":{}}}` + subscription + `}]}]}`
}

// What each thing of the source becomes.
func TestImportMaps(t *testing.T) {
	t.Parallel()
	const marker = `"description":"Orders [imported from svix ep_1]"`
	for name, c := range map[string]struct {
		file  string
		wants []string // parts of the request that makes it
		loss  string   // part of what is lost; empty: nothing is
		never bool     // not even --lossy makes it
	}{
		"SvixEndpoint": {svixFile("", ""), []string{
			`"tenant":"acme"`, `"url":"https://example.com/in/s3cret?token=s3cret"`, marker, `"secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"`,
		}, "", false},
		"SvixApplicationWithoutUID": {strings.Replace(svixFile("", ""), `"uid":"acme",`, "", 1), []string{`"tenant":"app_1"`}, "", false},
		"SvixEventTypes":            {svixFile(`,"eventTypes":["order.paid","order.lost"]`, ""), []string{`"event_types":["order.paid","order.lost"]`}, "", false},
		"SvixEventTypesOfNoForm":    {svixFile(`,"eventTypes":["order.paid",".x"]`, ""), []string{`"event_types":["order.paid"]`}, `".x"`, false},
		"SvixNoEventTypeLeft":       {svixFile(`,"eventTypes":[".x"]`, ""), nil, `".x"`, true},
		"SvixRate":                  {svixFile(`,"throttleRate":7`, ""), []string{`"rate_per_second":7`}, "", false},
		"SvixDisabled":              {svixFile(`,"disabled":true`, ""), []string{`"status":"paused"`}, "", false},
		"SvixChannels":              {svixFile(`,"channels":["a","b"]`, ""), []string{marker}, "channels (a, b)", false},
		"SvixTransformation":        {svixFile("", `,"transformation":{"enabled":true,"code":"x"}`), []string{marker}, "transformation", false},
		"SvixTransformationOff":     {svixFile("", `,"transformation":{"enabled":false,"code":"x"}`), []string{marker}, "", false},
		"SvixOAuth":                 {svixFile("", `,"oauth":{"enabled":true}`), []string{marker}, "OAuth", false},
		"SvixClientCertificate":     {svixFile("", `,"mtls":{"enabled":true}`), []string{marker}, "client certificate", false},
		"SvixHeaders":               {svixFile("", `,"headers":{"headers":{"X-Env":"live"},"sensitive":[]}`), []string{`"headers":{"X-Env":"live"}`}, "", false},
		"SvixSensitiveHeader":       {svixFile("", `,"headers":{"headers":{"X-Env":"live"},"sensitive":["authorization"]}`), []string{`"headers":{"X-Env":"live"}`}, `"authorization"`, false},
		"SvixSensitiveHeaderFilledIn": {
			svixFile("", `,"headers":{"headers":{"Authorization":"Bearer x"},"sensitive":["authorization"]}`),
			[]string{`"headers":{"Authorization":"Bearer x"}`},
			"", false,
		},
		"SvixReservedHeader": {svixFile("", `,"headers":{"headers":{"User-Agent":"x","X-Env":"live"}}`), []string{`"headers":{"X-Env":"live"}`}, `"User-Agent"`, false},
		"SvixKeyPair":        {svixFile("", `,"secret":{"key":"whsk_6Xb"}`), []string{`"signatures":["standard_ed25519"]`, `"private_key":"whsk_6Xb"`}, "", false},
		"SvixNoSecret":       {svixFile("", `,"secret":{"key":""}`), []string{marker}, "secret", false},
		"SvixLongDescription": {
			svixFile(`,"description":"`+strings.Repeat("é", 600)+`"`, ""),
			[]string{`"description":"` + strings.Repeat("é", 499) + ` [imported from svix ep_1]"`},
			"", false,
		},

		"ConvoyEndpoint": {convoyFile("", `,"description":"all of them"`, ""), []string{
			`"tenant":"p1"`, `"url":"https://example.com/in"`, `"description":"Orders: all of them [imported from convoy e1]"`, `"event_types":["order.paid"]`,
			`"secret":"a text of Convoy's"`, `"retry_schedule_seconds":[100,100]`, `"signatures":["standard","template"]`,
			`"signature_template":{"header":"X-Convoy-Signature","signed":"{body}","algorithm":"hmac-sha256","encoding":"hex","value":"{signature}"}`,
		}, "", false},
		"ConvoyOwner": {convoyFile("", `,"owner_id":"acme"`, ""), []string{`"tenant":"acme"`}, "", false},
		"ConvoyAdvancedSignatures": {convoyFile("", `,"advanced_signatures":true`, ""), []string{
			`"signature_template":{"header":"X-Convoy-Signature","signed":"{timestamp},{body}","algorithm":"hmac-sha256","encoding":"hex","value":"t={timestamp},v1={signature}","separator":",v1="}`,
		}, "", false},
		"ConvoySignatureVersions": {
			convoyFile(`,"signature":{"header":"X-Sig","versions":[{"hash":"SHA256","encoding":"hex"},{"hash":"SHA512","encoding":"base64"}]}`, `,"advanced_signatures":true`, ""),
			[]string{`{"header":"X-Sig","signed":"{timestamp},{body}","algorithm":"hmac-sha512","encoding":"base64","value":"t={timestamp},v2={signature}","separator":",v2="}`},
			"", false,
		},
		"ConvoyNoSignature":         {convoyFile(`,"signature":{"header":"","versions":[]}`, "", ""), []string{`"tenant":"p1"`}, "how it is signed", false},
		"ConvoyRate":                {convoyFile("", `,"rate_limit":30,"rate_limit_duration":60`, ""), []string{`"rate_per_second":0.5`}, "", false},
		"ConvoyRateOfAnOlderAPI":    {convoyFile("", `,"rate_limit":30,"rate_limit_duration":"1m0s","http_timeout":"15s"`, ""), []string{`"rate_per_second":0.5`, `"timeout_seconds":15`}, "", false},
		"ConvoyTimeout":             {convoyFile("", `,"http_timeout":10`, ""), []string{`"timeout_seconds":10`}, "", false},
		"ConvoyLongTimeout":         {convoyFile("", `,"http_timeout":500`, ""), []string{`"timeout_seconds":120`}, "", false},
		"ConvoyExponentialRetries":  {convoyFile(`,"strategy":{"type":"exponential","duration":1000,"retry_count":6}`, "", ""), []string{`"retry_schedule_seconds":[1000,2000,4000,7200,7200]`}, "", false},
		"ConvoyManyRetries":         {convoyFile(`,"strategy":{"type":"linear","duration":86400,"retry_count":80}`, "", ""), []string{`"max_age_seconds":2592000`}, "", false},
		"ConvoySingleAttempt":       {convoyFile(`,"strategy":{"type":"linear","duration":10,"retry_count":1}`, "", ""), []string{`"retry_schedule_seconds":[]`}, "", false},
		"ConvoyNoStrategy":          {convoyFile(`,"strategy":null`, "", ""), []string{`"tenant":"p1"`}, "", false},
		"ConvoyPaused":              {convoyFile("", `,"status":"paused"`, ""), []string{`"status":"paused"`}, "", false},
		"ConvoyInactive":            {convoyFile("", `,"status":"inactive"`, ""), []string{`"status":"paused"`}, "", false},
		"ConvoyAPIKey":              {convoyFile("", `,"authentication":{"type":"api_key","api_key":{"header_name":"X-Key","header_value":"k"}}`, ""), []string{`"headers":{"X-Key":"k"}`}, "", false},
		"ConvoyBasicAuthentication": {convoyFile("", `,"authentication":{"type":"basic_auth","basic_auth":{"username":"u","password":"p"}}`, ""), []string{`"headers":{"Authorization":"Basic dTpw"}`}, "", false},
		"ConvoyOAuth2": {
			convoyFile("", `,"authentication":{"type":"oauth2","oauth2":{"url":"https://id.example.com","client_id":"c","client_secret":"s","scope":"a b","authentication_type":"shared_secret"}}`, ""),
			[]string{`"auth":{"type":"oauth2","token_url":"https://id.example.com","client_id":"c","client_secret":"s","scopes":["a","b"]}`},
			"", false,
		},
		"ConvoyOAuth2WithAnAudience": {
			convoyFile("", `,"authentication":{"type":"oauth2","oauth2":{"url":"https://id.example.com","client_id":"c","client_secret":"s","audience":"hooks","authentication_type":"shared_secret"}}`, ""),
			[]string{`"auth":{"type":"oauth2","token_url":"https://id.example.com","client_id":"c","client_secret":"s","audience":"hooks"}`},
			"", false,
		},
		"ConvoyClientAssertion":     {convoyFile("", `,"authentication":{"type":"oauth2","oauth2":{"url":"https://id.example.com","authentication_type":"client_assertion"}}`, ""), []string{`"tenant":"p1"`}, "OAuth 2", false},
		"ConvoyOtherAuthentication": {convoyFile("", `,"authentication":{"type":"newer"}`, ""), []string{`"tenant":"p1"`}, `"newer"`, false},
		"ConvoyClientCertificate":   {convoyFile("", `,"mtls_client_cert":{"client_cert":"C","client_key":"K"}`, ""), []string{`"tls":{"client_certificate":"C","client_key":"K"}`}, "", false},
		"ConvoySecrets": {
			convoyFile("", `,"secrets":[{"value":"deleted","deleted_at":"2026-01-02T03:04:05Z"},{"value":"current"},{"value":"expiring","expires_at":"2026-01-02T03:04:05Z"}]`, ""),
			[]string{`"secret":"current"`},
			"", false,
		},
		"ConvoyNoSecret":        {convoyFile("", `,"secrets":[]`, ""), []string{`"tenant":"p1"`}, "secret", false},
		"ConvoyForm":            {convoyFile("", `,"content_type":"application/x-www-form-urlencoded"`, ""), []string{`"tenant":"p1"`}, "content type", false},
		"ConvoyAllEvents":       {convoyFile("", "", `,"filter_config":{"event_types":["order.paid","*"]}`), []string{`"event_types":["*"]`}, "", false},
		"ConvoyFilter":          {convoyFile("", "", `,"filter_config":{"event_types":["order.paid"],"filter":{"body":{"total":{"$gt":5}}}}`), []string{`"event_types":["order.paid"]`}, "filter", false},
		"ConvoyFilterOfAType":   {convoyFile("", "", `,"filters":[{"event_type":"order.paid","headers":{"x":"y"}}]`), []string{`"tenant":"p1"`}, "filter", false},
		"ConvoyEmptyFilter":     {convoyFile("", "", `,"filters":[{"event_type":"order.paid","headers":{},"body":null}]`), []string{`"tenant":"p1"`}, "", false},
		"ConvoyFunction":        {convoyFile("", "", `,"function":"function transform(x) { return x }"`), []string{`"tenant":"p1"`}, "function", false},
		"ConvoyNoSubscription":  {strings.Replace(convoyFile("", "", ""), `"endpoint_metadata":{"uid":"e1"}`, `"endpoint_metadata":{"uid":"e2"}`, 1), nil, "which events it gets", true},
		"ConvoyIncomingProject": {strings.Replace(convoyFile("", "", ""), `"outgoing"`, `"incoming"`, 1), nil, "webhooks in", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := strings.ToLower(name[:4])
			if source == "conv" {
				source = sourceConvoy
			}
			refused := c.loss != ""
			for _, lossy := range []bool{false, true} {
				f := newFakeAPI(t)
				out, err := f.run(importOptions{lossy: lossy}, source, c.file)
				made := !refused || lossy && !c.never
				if (err == nil) != made || (len(f.sent()) > 0) != made {
					t.Fatalf("lossy %t: %v, %d requests, and prints\n%s", lossy, err, len(f.sent()), out)
				}
				if !strings.Contains(out, c.loss) || strings.Contains(out, "cannot be carried over") != refused {
					t.Errorf("lossy %t: it prints\n%s", lossy, out)
				}
				if !made {
					continue
				}
				for _, want := range c.wants {
					if got := f.sent()[0]; !strings.Contains(got, want) {
						t.Errorf("lossy %t: it sends\n%s\nwithout %s", lossy, got, want)
					}
				}
			}
		})
	}
}

// fakeAPI keeps webhooks as Fairhook does, of all that it knows only how to list them.
type fakeAPI struct {
	t   *testing.T
	url string

	mu       sync.Mutex
	requests []string // that make a webhook; guarded by mu
	hooks    []string // answers; guarded by mu
	status   int      // to answer to those; guarded by mu
}

func newFakeAPI(t *testing.T) *fakeAPI {
	f := &fakeAPI{t: t, status: http.StatusCreated}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/webhooks", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		var data []string
		for _, hook := range f.hooks {
			if strings.Contains(hook, `"tenant":"`+r.URL.Query().Get("tenant")+`"`) {
				data = append(data, hook)
			}
		}
		fmt.Fprintf(w, `{"data":[%s],"next_cursor":null}`, strings.Join(data, ","))
	})
	mux.HandleFunc("POST /v1/webhooks", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer the-key" {
			t.Errorf("the request has the authorization %q", r.Header.Get("Authorization"))
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		f.requests = append(f.requests, string(body))
		if f.status != http.StatusCreated {
			w.WriteHeader(f.status)
			return
		}
		var webhook map[string]any
		if err := json.Unmarshal(body, &webhook); err != nil {
			t.Error(err)
		}
		hook, err := json.Marshal(map[string]any{
			"id": fmt.Sprintf("01890a5d-ac96-774b-bcce-b302099a80%02d", len(f.hooks)), "tenant": webhook["tenant"], "description": webhook["description"],
		})
		if err != nil {
			t.Error(err)
		}
		f.hooks = append(f.hooks, string(hook))
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(hook)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	f.url = server.URL
	return f
}

func (f *fakeAPI) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests
}

func (f *fakeAPI) run(options importOptions, source, file string) (string, error) {
	return f.runAs(options, false, source, file)
}

func (f *fakeAPI) runAs(options importOptions, asJSON bool, source, file string) (string, error) {
	c, err := client.New(f.url, "the-key", client.WithRetryMax(0))
	if err != nil {
		f.t.Fatal(err)
	}
	var out strings.Builder
	err = runImport(f.t.Context(), &call{Client: c, out: &printer{w: &out, json: asJSON}}, options, source, strings.NewReader(file))
	for _, secret := range []string{"s3cret", "MfKQ9r8G", "the-key", "a text of Convoy's", "Bearer x", "dTpw"} {
		if strings.Contains(out.String(), secret) || err != nil && strings.Contains(err.Error(), secret) {
			f.t.Errorf("it prints %q:\n%s%v", secret, out.String(), err)
		}
	}
	return out.String(), err
}

func TestImport(t *testing.T) {
	t.Parallel()

	t.Run("DoesNothingASecondTime", func(t *testing.T) {
		t.Parallel()
		f := newFakeAPI(t)
		for run, want := range []string{"made  ", "exists  ", "exists  "} {
			out, err := f.run(importOptions{}, sourceSvix, svixFile("", ""))
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("run %d: %v, and prints\n%s", run, err, out)
			}
		}
		if n := len(f.sent()); n != 1 {
			t.Errorf("it made %d webhooks", n)
		}
	})

	t.Run("MakesOneOfTwoWithTheSameID", func(t *testing.T) {
		t.Parallel()
		file := strings.Replace(svixFile("", ""), `"endpoints":[`, `"endpoints":[{"endpoint":{"id":"ep_1","url":"https://example.com"},"secret":{"key":"whsec_x"}},`, 1)
		for _, dry := range []bool{true, false} {
			f := newFakeAPI(t)
			out, err := f.run(importOptions{dryRun: dry}, sourceSvix, file)
			if err != nil || strings.Count(out, "exists") != 1 || len(f.sent()) > 1 {
				t.Errorf("dry %t: %v, %d requests, and prints\n%s", dry, err, len(f.sent()), out)
			}
		}
	})

	t.Run("MakesNothingInADryRun", func(t *testing.T) {
		t.Parallel()
		f := newFakeAPI(t)
		out, err := f.run(importOptions{dryRun: true}, sourceSvix, svixFile("", ""))
		if err != nil || !strings.Contains(out, "would make") || !strings.Contains(out, "https://example.com\n") || len(f.sent()) != 0 {
			t.Errorf("%v, %d requests, and prints\n%s", err, len(f.sent()), out)
		}
	})

	t.Run("GoesOnAfterAFailure", func(t *testing.T) {
		t.Parallel()
		f := newFakeAPI(t)
		f.status = http.StatusUnprocessableEntity
		file := strings.Replace(svixFile("", ""), `"endpoints":[`, `"endpoints":[{"endpoint":{"id":"ep_2","url":"https://example.com"},"secret":{"key":"whsec_x"}},`, 1)
		out, err := f.run(importOptions{}, sourceSvix, file)
		if err == nil || !strings.Contains(err.Error(), "2 of 2") || strings.Count(out, "failed") != 2 || !strings.Contains(out, "422") {
			t.Errorf("%v, and prints\n%s", err, out)
		}
	})

	for name, status := range map[string]int{"StopsWhereTheKeyIsNotAccepted": 401, "StopsWhereFairhookIsAway": 503} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeAPI(t)
			f.status = status
			file := strings.Replace(svixFile("", ""), `"endpoints":[`, `"endpoints":[{"endpoint":{"id":"ep_2"},"secret":{"key":"whsec_x"}},`, 1)
			_, err := f.run(importOptions{}, sourceSvix, file)
			if refused, ok := errors.AsType[*client.Error](err); !ok || refused.Status != status || len(f.sent()) != 1 {
				t.Errorf("%v after %d requests", err, len(f.sent()))
			}
		})
	}

	t.Run("PrintsJSON", func(t *testing.T) {
		t.Parallel()
		out, err := newFakeAPI(t).runAs(importOptions{}, true, sourceSvix, svixFile(`,"uid":"mine"`, ""))
		want := `{"origin":"svix ep_1","tenant":"acme","destination":"https://example.com","result":"made",` +
			`"webhook_id":"01890a5d-ac96-774b-bcce-b302099a8000","notes":["its uid, \"mine\", has no place"]}` + "\n"
		if err != nil || out != want {
			t.Errorf("%v, and prints\n%s", err, out)
		}
	})

	for name, c := range map[string]struct{ source, file, want string }{
		"RefusesTheFileOfAnotherSource": {sourceConvoy, svixFile("", ""), `its source is "svix"`},
		"RefusesAFileOfNoSource":        {sourceSvix, `{"data":[]}`, `its source is ""`},
		"RefusesWhatIsNotJSON":          {sourceSvix, `{`, "read the file"},
		"RefusesMembersOfOtherTypes":    {sourceSvix, `{"source":"svix","applications":{}}`, "read the file"},
		"RefusesAFileWithoutWebhooks":   {sourceSvix, `{"source":"svix","applications":[]}`, "no webhook"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := newFakeAPI(t).run(importOptions{}, c.source, c.file); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

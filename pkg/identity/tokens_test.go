package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/egress/dnstest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func newGuard(t *testing.T, cfg egress.Config) *egress.Guard {
	t.Helper()
	cfg.AllowPrivate = append(cfg.AllowPrivate, netip.MustParsePrefix("127.0.0.1/32"))
	guard, err := egress.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

// bundle is Tokens on a clock of the test's, and a token endpoint.
type bundle struct {
	*Tokens
	endpoint *httptest.Server
	requests atomic.Int64
	ahead    atomic.Int64 // how far the clock has been moved
}

// setup makes a token endpoint with this answer. Without one it issues "token-1",
// "token-2" and so on, each for an hour.
func setup(t *testing.T, answer func(w http.ResponseWriter, r *http.Request)) *bundle {
	t.Helper()
	b := &bundle{}
	b.endpoint = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := b.requests.Add(1)
		if answer != nil {
			answer(w, r)
			return
		}
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"bearer","expires_in":3600}`, n)
	}))
	t.Cleanup(b.endpoint.Close)
	b.Tokens = NewTokens(newGuard(t, egress.Config{}).Client(), "Fairhook/test", prometheus.NewRegistry())
	b.now = func() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) }
	return b
}

func (b *bundle) pass(d time.Duration) { b.ahead.Add(int64(d)) }

func (b *bundle) auth() *webhook.Auth {
	return &webhook.Auth{
		Type: webhook.AuthOAuth2, TokenURL: b.endpoint.URL, ClientID: "me", ClientSecret: webhook.NewSecret("hidden-secret"),
		AuthStyle: webhook.AuthStyleBasic,
	}
}

// get asks for a token as an attempt does.
func (b *bundle) get(t *testing.T, id webhook.ID, auth *webhook.Auth) string {
	t.Helper()
	token, err := b.Token(t.Context(), id, auth)
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

func newID() webhook.ID { return webhook.NewID(time.Now()) }

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !is() {
		select {
		case <-deadline:
			t.Fatal("waited in vain: " + what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()

	t.Run("AreAskedForAsTheStandardSays", func(t *testing.T) {
		t.Parallel()
		var form url.Values
		var user, password, agent, kind string
		b := setup(t, func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			form, agent, kind = r.PostForm, r.UserAgent(), r.Header.Get("Content-Type")
			user, password, _ = r.BasicAuth()
			_, _ = io.WriteString(w, `{"access_token":"t","token_type":"Bearer"}`)
		})
		auth := b.auth()
		auth.ClientID, auth.ClientSecret, auth.Scopes, auth.Audience = "a:b c", webhook.NewSecret("ü/+"), []string{"x", "y"}, "https://api"
		b.get(t, newID(), auth)
		if want := (url.Values{"grant_type": {"client_credentials"}, "scope": {"x y"}, "audience": {"https://api"}}); form.Encode() != want.Encode() {
			t.Errorf("asked with %v, want %v", form, want)
		}
		if user != "a%3Ab+c" || password != "%C3%BC%2F%2B" || agent != "Fairhook/test" || kind != "application/x-www-form-urlencoded" {
			t.Errorf("asked as %q, %q by %q in %q", user, password, agent, kind)
		}
		auth = b.auth()
		auth.AuthStyle = webhook.AuthStyleBody
		b.get(t, newID(), auth)
		if user != "" || form.Get("client_id") != "me" || form.Get("client_secret") != "hidden-secret" {
			t.Errorf("in the body: %v, %q", form, user)
		}
	})

	t.Run("AreAskedForOnceByHowManyEverNeedOne", func(t *testing.T) {
		t.Parallel()
		release := make(chan struct{})
		b := setup(t, func(w http.ResponseWriter, _ *http.Request) {
			<-release
			_, _ = io.WriteString(w, `{"access_token":"one","token_type":"bearer","expires_in":60}`)
		})
		id, auth := newID(), b.auth()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if token, err := b.Token(t.Context(), id, auth); err != nil || token.Reveal() != "one" {
					t.Errorf("got %q, %v", token.Reveal(), err)
				}
			})
		}
		eventually(t, "somebody asks", func() bool { return b.requests.Load() > 0 })
		close(release)
		all.Wait()
		copied := *auth // as another catalog entry of the same webhook has it
		b.get(t, id, &copied)
		if n := b.requests.Load(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
		if n := testutil.ToFloat64(b.Tokens.requests.WithLabelValues(issued)); n != 1 {
			t.Errorf("the metric counts %v", n)
		}
	})

	t.Run("AreRenewedAheadOfTheirEndWithoutAnyoneWaiting", func(t *testing.T) {
		t.Parallel()
		b := setup(t, nil)
		id, auth := newID(), b.auth()
		b.get(t, id, auth)
		b.pass(time.Hour - maxAhead - time.Minute)
		if got := b.get(t, id, auth); got != "token-1" || b.requests.Load() != 1 {
			t.Errorf("while it has time: %s after %d requests", got, b.requests.Load())
		}
		b.pass(2 * time.Minute)
		if got := b.get(t, id, auth); got != "token-1" {
			t.Errorf("while the next one is asked for: %s", got)
		}
		eventually(t, "the next one is there", func() bool { return b.get(t, id, auth) == "token-2" })
		b.pass(2 * time.Hour)
		if got := b.get(t, id, auth); got != "token-3" {
			t.Errorf("after its end: %s", got)
		}
	})

	t.Run("AreUsedForAWhileIfTheyNameNoLifeOrAnEmptyOne", func(t *testing.T) {
		t.Parallel()
		for text, want := range map[string]time.Duration{
			``: unnamedLife, `,"expires_in":"never"`: unnamedLife, `,"expires_in":"90"`: 90 * time.Second, `,"expires_in":0`: minLife,
			`,"expires_in":-5`: minLife, `,"expires_in":1e30`: maxLife, `,"expires_in":1`: minLife, `,"expires_in":null`: unnamedLife,
		} {
			b := setup(t, func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"access_token":"t","token_type":"bearer"%s}`, text)
			})
			id, auth := newID(), b.auth()
			b.get(t, id, auth)
			b.pass(want/2 - time.Second)
			b.get(t, id, auth)
			if n := b.requests.Load(); n != 1 {
				t.Errorf("%s: %d requests in half of %s", text, n, want)
			}
			b.pass(want)
			b.get(t, id, auth)
			if n := b.requests.Load(); n != 2 {
				t.Errorf("%s: %d requests after %s", text, n, want)
			}
		}
	})

	t.Run("AreNewOnesAtOnceWhenTheCredentialsChange", func(t *testing.T) {
		t.Parallel()
		b := setup(t, nil)
		id := newID()
		b.get(t, id, b.auth())
		rotated := b.auth()
		rotated.ClientSecret = webhook.NewSecret("another")
		if got := b.get(t, id, rotated); got != "token-2" {
			t.Errorf("got %s", got)
		}
	})

	t.Run("OfOneWebhookAreNotAnothers", func(t *testing.T) {
		t.Parallel()
		b := setup(t, nil)
		if one, two := b.get(t, newID(), b.auth()), b.get(t, newID(), b.auth()); one == two {
			t.Errorf("both have %s", one)
		}
	})

	t.Run("AreGivenUpWhenTheReceiverRefusesThemButNotAgainAndAgain", func(t *testing.T) {
		t.Parallel()
		b := setup(t, nil)
		id, auth := newID(), b.auth()
		first := b.get(t, id, auth)
		for range 5 { // those under way with it
			b.Refused(id, webhook.NewSecret(first))
		}
		second := b.get(t, id, auth)
		b.Refused(id, webhook.NewSecret(first)) // a late one
		b.Refused(id, webhook.NewSecret(second))
		if got := b.get(t, id, auth); got != second || second != "token-2" {
			t.Errorf("uses %s after %s", got, second)
		}
		b.pass(refusalPause)
		b.Refused(id, webhook.NewSecret(second))
		if got := b.get(t, id, auth); got != "token-3" {
			t.Errorf("after a while: %s", got)
		}
		b.Refused(newID(), webhook.NewSecret("x")) // of a webhook that never asked
	})
}

func TestTokenFailures(t *testing.T) {
	t.Parallel()
	answering := func(status int, body string, header ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	rejected, away := webhook.ReasonAuthRejected, webhook.ReasonAuthUnavailable
	for name, tc := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		change func(a *webhook.Auth)
		reason webhook.Reason
		detail string
	}{
		"WrongCredentials":    {answering(401, `{"error":"invalid_client"}`), nil, rejected, "the token endpoint answered 401: invalid_client"},
		"AScopeThatIsNot":     {answering(400, `{"error":"invalid_scope","error_description":"hidden-secret"}`), nil, rejected, "answered 400: invalid_scope"},
		"AWordOfItsOwn":       {answering(403, `{"error":"hidden-secret"}`), nil, rejected, "answered 403"},
		"APage":               {answering(404, `<p>hidden-secret`), nil, rejected, "answered 404"},
		"TooMany":             {answering(429, ``, "Retry-After", "7"), nil, away, "answered 429"},
		"AnErrorOfItsOwn":     {answering(500, `hidden-secret`), nil, away, "answered 500"},
		"ARedirect":           {answering(302, ``, "Location", "https://example.com"), nil, away, "redirects are not followed"},
		"NoJSON":              {answering(200, `hidden-secret`), nil, away, "no JSON object"},
		"AnArray":             {answering(200, `["hidden-secret"]`), nil, away, "no JSON object"},
		"NoToken":             {answering(200, `{"token_type":"bearer"}`), nil, away, "without a token"},
		"ATokenOfTwoLines":    {answering(200, `{"access_token":"a\r\nX: hidden-secret"}`), nil, away, "without a token"},
		"ATokenOfAnotherType": {answering(200, `{"access_token":"hidden-secret","token_type":"mac"}`), nil, away, "no bearer token"},
		"AnAnswerWithoutEnd":  {answering(200, `{"a":"`+strings.Repeat("hidden-secret", maxTokenAnswer/8)+`"}`), nil, away, "too long"},
		"AnAnswerThatBreaksOff": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"access_token":"hidden-secret"`)
		}, nil, away, "broke off"},
		"NobodyThere":     {nil, func(a *webhook.Auth) { a.TokenURL = "http://127.0.0.1:1/" }, away, "no connection"},
		"APrivateAddress": {nil, func(a *webhook.Auth) { a.TokenURL = "http://10.0.0.1/" }, webhook.ReasonBlocked, "token_url must not point to a private"},
		"AFileURL":        {nil, func(a *webhook.Auth) { a.TokenURL = "file:///etc/passwd" }, webhook.ReasonBadURL, "token_url must"},
		"AURLThatIsNone":  {nil, func(a *webhook.Auth) { a.TokenURL = "http://[" }, webhook.ReasonBadURL, "token_url cannot be parsed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, tc.answer)
			auth := b.auth()
			if tc.change != nil {
				tc.change(auth)
			}
			id := newID()
			_, err := b.Token(t.Context(), id, auth)
			var failure *TokenError
			if !errors.As(err, &failure) || failure.Reason != tc.reason || !strings.Contains(failure.Detail, tc.detail) {
				t.Fatalf("got %#v, want %s, %q", err, tc.reason, tc.detail)
			}
			if text := fmt.Sprintf("%v %+v %#v", err, err, failure); strings.Contains(text, "hidden") {
				t.Errorf("says %s", text)
			}
			if want := map[bool]string{true: "7"}[name == "TooMany"]; failure.RetryAfter != want {
				t.Errorf("asks for %q, want %q", failure.RetryAfter, want)
			}
			if n := testutil.ToFloat64(b.Tokens.requests.WithLabelValues(string(tc.reason))); n != 1 {
				t.Errorf("the metric counts %v", n)
			}
			// A backlog does not run against it, and it is asked again soon.
			before := b.requests.Load()
			if _, again := b.Token(t.Context(), id, auth); !errors.As(again, &failure) || b.requests.Load() != before {
				t.Errorf("at once again: %v after %d more requests", again, b.requests.Load()-before)
			}
			b.pass(failureMemory)
			_, _ = b.Token(t.Context(), id, auth)
			if n := b.requests.Load(); before > 0 && n != before+1 {
				t.Errorf("later %d more requests", n-before)
			}
		})
	}
}

// A name is judged by what it resolves to, when it is dialled.
func TestATokenEndpointInsideIsNotAsked(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	_, port, _ := net.SplitHostPort(b.endpoint.Listener.Addr().String())
	guard := newGuard(t, egress.Config{Resolver: dnstest.Resolver(func(string) []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("169.254.169.254")}
	})})
	tokens := NewTokens(guard.Client(), "Fairhook/test", prometheus.NewRegistry())
	auth := b.auth()
	auth.TokenURL = "http://login.example:" + port
	_, err := tokens.Token(t.Context(), newID(), auth)
	var failure *TokenError
	if !errors.As(err, &failure) || failure.Reason != webhook.ReasonBlocked || !strings.HasPrefix(failure.Detail, "the token endpoint: ") ||
		strings.Contains(failure.Detail, "169.254") {
		t.Errorf("got %v", err)
	}
}

// The proxy's failure is ours, and not the token endpoint's.
func TestATokenIsAskedForThroughTheProxy(t *testing.T) {
	t.Parallel()
	proxy, err := egress.ParseProxy("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	b := setup(t, nil)
	tokens := NewTokens(newGuard(t, egress.Config{Proxy: proxy}).Client(), "Fairhook/test", prometheus.NewRegistry())
	_, err = tokens.Token(t.Context(), newID(), b.auth())
	var failure *TokenError
	if !errors.As(err, &failure) || failure.Reason != webhook.ReasonProxy || b.requests.Load() != 0 {
		t.Errorf("got %v", err)
	}
}

// A token endpoint that hangs takes no longer of an attempt than that has, and
// nothing of another webhook.
func TestATokenEndpointThatHangs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hanging := setup(t, func(w http.ResponseWriter, _ *http.Request) {
		<-release
		_, _ = io.WriteString(w, `{"access_token":"late"}`)
	})
	defer close(release)
	good := setup(t, nil)
	id, auth := newID(), hanging.auth()

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := hanging.Token(ctx, id, auth)
	var failure *TokenError
	if !errors.As(err, &failure) || failure.Reason != webhook.ReasonAuthUnavailable || !strings.Contains(failure.Detail, "within the attempt's timeout") {
		t.Errorf("got %v", err)
	}
	if got, err := hanging.Token(t.Context(), newID(), good.auth()); err != nil || got.Reveal() != "token-1" {
		t.Errorf("meanwhile another webhook gets %v, %v", got.Reveal(), err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _ = hanging.Token(ctx, id, auth)
	if n := hanging.requests.Load(); n != 1 {
		t.Errorf("%d requests hang, want 1", n)
	}
}

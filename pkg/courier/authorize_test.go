package courier_test

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/courier"
	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/webhook"
	"github.com/fairhook/fairhook/pkg/webhook/certtest"
)

func authorizedBy(value string) func(context.Context) (webhook.Secret, error) {
	return func(context.Context) (webhook.Secret, error) { return webhook.NewSecret(value), nil }
}

func TestAuthorization(t *testing.T) {
	t.Parallel()

	t.Run("IsSentInPlaceOfAHeaderOfTheWebhooks", func(t *testing.T) {
		t.Parallel()
		var got []string
		server := receiver(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Values("Authorization") })
		req := newRequest(t, server.URL)
		req.Headers = secretly(map[string]string{"AUTHORIZATION": "Bearer own"})
		req.Authorize = authorizedBy("Bearer given")
		result := courier.Send(t.Context(), newClient(t, server), req)
		check(t, result, want{webhook.ReasonDelivered, 200})
		if !slices.Equal(got, []string{"Bearer given"}) || result.Timings.Auth != nil {
			t.Errorf("sent %q, and waited %v", got, result.Timings.Auth)
		}
	})

	t.Run("ThatCannotBeHadKeepsTheRequestFromBeingSent", func(t *testing.T) {
		t.Parallel()
		server := receiver(t, func(http.ResponseWriter, *http.Request) { t.Error("the receiver was asked") })
		for _, reason := range []webhook.Reason{webhook.ReasonAuthRejected, webhook.ReasonAuthUnavailable, webhook.ReasonProxy, webhook.ReasonBlocked} {
			req := newRequest(t, server.URL)
			req.Authorize = func(context.Context) (webhook.Secret, error) {
				return webhook.Secret{}, &identity.TokenError{Reason: reason, Detail: "why", RetryAfter: "90"}
			}
			result := courier.Send(t.Context(), newClient(t, server), req)
			check(t, result, want{reason, 0})
			if result.Detail != "why" || !result.HasRetryAfter || result.RetryAfter != 90*time.Second || result.Response != "" {
				t.Errorf("got %+v", result)
			}
		}
	})

	t.Run("IsPartOfTheAttemptsTime", func(t *testing.T) {
		t.Parallel()
		server := receiver(t, func(http.ResponseWriter, *http.Request) { t.Error("the receiver was asked") })
		req := newRequest(t, server.URL)
		req.Timeout = 30 * time.Millisecond
		req.Authorize = func(ctx context.Context) (webhook.Secret, error) {
			<-ctx.Done()
			return webhook.Secret{}, &identity.TokenError{Reason: webhook.ReasonAuthUnavailable}
		}
		result := courier.Send(t.Context(), newClient(t, server), req)
		check(t, result, want{webhook.ReasonAuthUnavailable, 0})
		if result.Timings.Auth == nil || *result.Timings.Auth < 25_000 || *result.Timings.Auth > *result.Timings.Total {
			t.Errorf("timings %+v", result.Timings)
		}
	})

	t.Run("WaitedForWhenTheProcessStopsIsNoOutcome", func(t *testing.T) {
		t.Parallel()
		server := receiver(t, func(http.ResponseWriter, *http.Request) {})
		ctx, stop := context.WithCancel(t.Context())
		req := newRequest(t, server.URL)
		req.Authorize = func(ctx context.Context) (webhook.Secret, error) {
			stop()
			<-ctx.Done()
			return webhook.Secret{}, &identity.TokenError{Reason: webhook.ReasonAuthUnavailable}
		}
		if result := courier.Send(ctx, newClient(t, server), req); !result.Interrupted || result.Reason != "" {
			t.Errorf("got %+v", result)
		}
	})
}

// Some receivers repeat what they got when they complain.
func TestWhatAReceiverRepeatsOfSecretsIsNotRecorded(t *testing.T) {
	t.Parallel()
	filler := strings.Repeat("x", webhook.MaxResponseSnippet-5)
	for name, tc := range map[string]struct{ answer, want string }{
		"OfHeaders":          {"bad key header-secret!", "bad key ***!"},
		"OfTheAuthorization": {"got Bearer token-secret", "got Bearer ***"},
		"OfOtherCredentials": {"password-secret", "***"},
		"SeveralTimes":       {"header-secret header-secret", "*** ***"},
		"CutOff":             {filler + "header-secret", filler + "***"},
		"WordsAreLeft":       {"short value, true", "short value, true"},
		"AtItsEndNotCutOff":  {"this is the head", "this is the head"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(400)
				_, _ = io.WriteString(w, tc.answer)
			})
			req := newRequest(t, server.URL)
			req.Headers = secretly(map[string]string{"X-Key": "header-secret", "X-Flag": "true"})
			req.Authorize = authorizedBy("Bearer token-secret")
			req.Secrets = []webhook.Secret{webhook.NewSecret("password-secret")}
			result := courier.Send(t.Context(), newClient(t, server), req)
			check(t, result, want{webhook.ReasonClientError, 400})
			if result.Response != tc.want {
				t.Errorf("recorded %q, want %q", result.Response, tc.want)
			}
		})
	}
	t.Run("InWhatIsNotHTTP", func(t *testing.T) {
		t.Parallel()
		url := rawReceiver(t, func(conn net.Conn, _ string) { _, _ = io.WriteString(conn, "header-secret\r\n\r\n") })
		req := newRequest(t, url)
		req.Headers = secretly(map[string]string{"X-Key": "header-secret"})
		result := courier.Send(t.Context(), newClient(t, nil), req)
		check(t, result, want{webhook.ReasonBadResponse, 0})
		if strings.Contains(result.Detail, "secret") || !strings.Contains(result.Detail, "***") {
			t.Errorf("detail %q", result.Detail)
		}
	})
}

func newGuard(t *testing.T) *egress.Guard {
	t.Helper()
	guard, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		t.Fatal(err)
	}
	return guard
}

// What a receiver has against our certificate, and we against its, is told.
func TestCertificatesThatAreRefused(t *testing.T) {
	t.Parallel()
	ca, other := certtest.New(t, "ca"), certtest.New(t, "other")
	now := time.Now()
	for name, tc := range map[string]struct {
		server, client certtest.Pair
		none           bool
		detail         []string // one of them
	}{
		"NoneWhereOneIsWanted":    {ca.Issue(t, "server"), certtest.Pair{}, true, []string{"tls: certificate required", "tls: handshake failure"}},
		"OfAnAuthorityNotTrusted": {ca.Issue(t, "server"), other.Issue(t, "client"), false, []string{"tls: unknown certificate authority"}},
		"Expired": {
			ca.Issue(t, "server"), ca.IssueFor(t, "client", now.Add(-2*time.Hour), now.Add(-time.Hour)), false,
			[]string{"tls: expired certificate"},
		},
		"TheReceiversAuthorityIsUnknown": {other.Issue(t, "server"), ca.Issue(t, "client"), false, []string{"unknown authority"}},
		"TheReceiversIsForAnotherHost":   {ca.Issue(t, "server", "a.example"), ca.Issue(t, "client"), false, []string{"for another host"}},
		"TheReceiversHasExpired": {
			ca.IssueFor(t, "server", now.Add(-2*time.Hour), now.Add(-time.Hour)), ca.Issue(t, "client"), false, []string{"has expired"},
		},
	} {
		for protocol, version := range map[string]uint16{"TLS12": tls.VersionTLS12, "TLS13": tls.VersionTLS13} {
			for _, http2 := range []bool{false, true} {
				suffix := protocol + map[bool]string{false: "HTTP1", true: "HTTP2"}[http2]
				t.Run(name+suffix, func(t *testing.T) {
					t.Parallel()
					server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the receiver was asked") }))
					server.TLS = &tls.Config{
						ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(), Certificates: []tls.Certificate{tc.server.TLS}, MaxVersion: version,
					}
					server.EnableHTTP2 = http2
					server.Config.ErrorLog = log.New(io.Discard, "", 0)
					server.StartTLS()
					t.Cleanup(server.Close)
					config := &webhook.TLS{CACertificates: webhook.NewSecret(ca.PEM)}
					if !tc.none {
						config.ClientCertificate, config.ClientKey = webhook.NewSecret(tc.client.Certificate), webhook.NewSecret(tc.client.Key)
					}
					client, err := identity.NewClients(newGuard(t), 0).Of(webhook.NewID(now), config)
					if err != nil {
						t.Fatal(err)
					}
					result := courier.Send(t.Context(), client, newRequest(t, server.URL))
					check(t, result, want{webhook.ReasonTLS, 0})
					if !slices.ContainsFunc(tc.detail, func(part string) bool { return strings.Contains(result.Detail, part) }) {
						t.Errorf("detail %q, want one of %q", result.Detail, tc.detail)
					}
				})
			}
		}
	}
}

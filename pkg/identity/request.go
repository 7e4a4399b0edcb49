package identity

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	maxTokenAnswer = 64 << 10 // of the body, in bytes
	maxToken       = 16 << 10
)

// TokenError says why there is no token. Nothing was sent to the receiver.
type TokenError struct {
	// Reason is webhook.ReasonAuthRejected where the token endpoint refused the
	// credentials, webhook.ReasonAuthUnavailable where it could not be asked or its
	// answer made no sense, and webhook.ReasonProxy, ReasonBlocked or ReasonBadURL where
	// the way to it is what is wrong.
	Reason webhook.Reason
	// Detail is for the webhook's owner. It has nothing of the credentials, and of the
	// answer no more than a word that the standard knows.
	Detail string
	// RetryAfter is that header of the token endpoint's answer, if it asked for time.
	RetryAfter string
}

func (e *TokenError) Error() string { return e.Detail }

func unavailable(format string, args ...any) *TokenError {
	return &TokenError{Reason: webhook.ReasonAuthUnavailable, Detail: fmt.Sprintf(format, args...)}
}

// tokenAnswer is what a token endpoint gave.
type tokenAnswer struct {
	token webhook.Secret
	life  time.Duration
}

// requestToken asks for a token, once (RFC 6749, section 4.4).
func requestToken(ctx context.Context, client *http.Client, agent string, auth *webhook.Auth) (tokenAnswer, *TokenError) {
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(auth.Scopes) > 0 {
		form.Set("scope", strings.Join(auth.Scopes, " "))
	}
	if auth.Audience != "" {
		form.Set("audience", auth.Audience)
	}
	if auth.AuthStyle == webhook.AuthStyleBody {
		form.Set("client_id", auth.ClientID)
		form.Set("client_secret", auth.ClientSecret.Reveal())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, auth.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return tokenAnswer{}, &TokenError{Reason: webhook.ReasonBadURL, Detail: "token_url cannot be parsed"}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", agent)
	if auth.AuthStyle != webhook.AuthStyleBody {
		// Both parts are form-encoded first (RFC 6749, section 2.3.1).
		req.SetBasicAuth(url.QueryEscape(auth.ClientID), url.QueryEscape(auth.ClientSecret.Reveal()))
	}
	resp, err := client.Do(req)
	if err != nil {
		return tokenAnswer{}, unreached(err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer+1))
	_ = resp.Body.Close() // nobody to tell
	if err != nil {
		return tokenAnswer{}, unavailable("the token endpoint's answer broke off, or took too long")
	}
	return readAnswer(resp, body)
}

// unreached is why a request for a token got no answer.
func unreached(err error) *TokenError {
	var (
		proxy    *egress.ProxyError
		urlError *egress.URLError
		lookup   *net.DNSError
		untrust  *tls.CertificateVerificationError
		slow     net.Error
	)
	switch {
	case errors.As(err, &proxy):
		return &TokenError{Reason: webhook.ReasonProxy, Detail: proxy.Error()}
	case errors.As(err, &urlError):
		return &TokenError{Reason: urlError.Reason, Detail: "token_url " + urlError.Detail}
	case errors.Is(err, egress.ErrBlocked):
		return &TokenError{Reason: webhook.ReasonBlocked, Detail: "the token endpoint: " + egress.ErrBlocked.Error()}
	case errors.As(err, &lookup):
		return unavailable("the token endpoint's host name could not be resolved")
	case errors.As(err, &untrust):
		return unavailable("the token endpoint's certificate is not trusted")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &slow) && slow.Timeout():
		return unavailable("the token endpoint gave no answer in time")
	}
	return unavailable("no connection to the token endpoint")
}

// The error codes of RFC 6749, section 5.2. Nothing else of an answer is repeated.
var errorCodes = []string{
	"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
}

// readAnswer judges a token endpoint's answer.
func readAnswer(resp *http.Response, body []byte) (tokenAnswer, *TokenError) {
	var answer struct {
		AccessToken string          `json:"access_token"`
		TokenType   string          `json:"token_type"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
		Error       string          `json:"error"`
	}
	broken := len(body) > maxTokenAnswer || json.Unmarshal(body, &answer) != nil
	status := resp.StatusCode
	detail := fmt.Sprintf("the token endpoint answered %d", status)
	if !broken && slices.Contains(errorCodes, answer.Error) {
		detail += ": " + answer.Error
	}
	switch {
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		return tokenAnswer{}, &TokenError{
			Reason: webhook.ReasonAuthUnavailable, Detail: detail, RetryAfter: resp.Header.Get("Retry-After"),
		}
	case status >= 400:
		return tokenAnswer{}, &TokenError{Reason: webhook.ReasonAuthRejected, Detail: detail}
	case status/100 == 3:
		return tokenAnswer{}, unavailable("%s: redirects are not followed", detail)
	case status/100 != 2:
		return tokenAnswer{}, unavailable("%s", detail)
	case broken:
		return tokenAnswer{}, unavailable("%s with something that is no JSON object, or too long", detail)
	case answer.TokenType != "" && !strings.EqualFold(answer.TokenType, "Bearer"):
		return tokenAnswer{}, unavailable("%s with a token that is no bearer token", detail)
	case !isToken(answer.AccessToken):
		return tokenAnswer{}, unavailable("%s without a token that can be sent", detail)
	}
	return tokenAnswer{webhook.NewSecret(answer.AccessToken), life(answer.ExpiresIn)}, nil
}

// isToken reports whether a text can stand in an Authorization header.
func isToken(text string) bool {
	return text != "" && len(text) <= maxToken &&
		!strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// life is the life of a token, in seconds as a number or, as some write it, in quotes.
func life(expiresIn json.RawMessage) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(expiresIn), `"`), 64)
	switch {
	case err != nil || seconds != seconds:
		return unnamedLife
	case seconds > maxLife.Seconds():
		return maxLife
	}
	return time.Duration(max(seconds, 0) * float64(time.Second))
}

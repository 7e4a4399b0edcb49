package courier

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// noticedWait is the shortest wait for authorization that is a phase of the attempt:
// a token that was there already took none.
const noticedWait = time.Millisecond

// authorize sets the Authorization header.
func authorize(ctx context.Context, req *Request, rec *recorder, httpReq *http.Request, secrets *mask) error {
	begun := time.Now()
	value, err := req.Authorize(ctx)
	if time.Since(begun) >= noticedWait {
		rec.waited(begun)
	}
	if err != nil {
		return err
	}
	httpReq.Header["authorization"] = []string{value.Reveal()} // spelled as one of the webhook's own would be
	secrets.add(value)
	return nil
}

// retryAfterOf is what a token endpoint asked for.
func retryAfterOf(err error, started time.Time, timings webhook.Timings) (time.Duration, bool) {
	var token *identity.TokenError
	if !errors.As(err, &token) || token.RetryAfter == "" {
		return 0, false
	}
	return ParseRetryAfter(token.RetryAfter, started.Add(time.Duration(*timings.Total)*time.Microsecond))
}

// shortestMasked is the least length in bytes at which a secret is looked for in an
// answer: a shorter one is likely to be a word like any other. shortestCut is how much
// of one must stand at the end of an answer to be taken for its beginning.
const (
	shortestMasked = 8
	shortestCut    = 4
)

// mask hides the secrets of a request in what is recorded of its answer: some
// receivers repeat what they got when they complain.
type mask struct{ secrets []string }

func newMask(req *Request) *mask {
	m := &mask{}
	for _, value := range req.Headers {
		m.add(value)
	}
	for _, secret := range req.Secrets {
		m.add(secret)
	}
	return m
}

// add takes in a secret; of one with a scheme, as in "Bearer x", what follows it.
func (m *mask) add(secret webhook.Secret) {
	text := secret.Reveal()
	if scheme, rest, found := strings.Cut(text, " "); found && !strings.Contains(rest, " ") && len(rest) > len(scheme) {
		text = rest
	}
	if len(text) >= shortestMasked {
		m.secrets = append(m.secrets, text)
	}
}

// hide masks the secrets in a text, and where that was cut off the beginning of one
// at its end.
func (m *mask) hide(text string, cut bool) string {
	if text == "" || len(m.secrets) == 0 {
		return text
	}
	// One may be a part of another.
	slices.SortFunc(m.secrets, func(a, b string) int { return len(b) - len(a) })
	for _, secret := range m.secrets {
		text = strings.ReplaceAll(text, secret, webhook.Masked)
	}
	if !cut {
		return text
	}
	for _, secret := range m.secrets {
		for n := min(len(secret)-1, len(text)); n >= shortestCut; n-- {
			if strings.HasSuffix(text, secret[:n]) {
				return text[:len(text)-n] + webhook.Masked
			}
		}
	}
	return text
}

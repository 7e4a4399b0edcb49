package identity

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// MaxTokenTime bounds one request for a token, whatever the attempts that wait for
	// it may take.
	MaxTokenTime = 10 * time.Second

	// maxTokenSources bounds how many webhooks' tokens are kept: those used last.
	maxTokenSources = 10_000
	sourceLife      = time.Hour // unused

	// unnamedLife is how long a token is used whose life the token endpoint did not
	// name, and minLife the shortest that is believed: otherwise each delivery would ask
	// for one.
	unnamedLife = 5 * time.Minute
	minLife     = 5 * time.Second
	maxLife     = 24 * time.Hour
	// A token is renewed when a fifth of its life is left, but no more than maxAhead
	// before its end, and not used in its last moments: a request takes a while.
	maxAhead = 5 * time.Minute
	maxSpare = 10 * time.Second

	// failureMemory is how long the next attempts are given the failure of the last
	// request, so that a backlog does not run against the token endpoint. It is less
	// than the shortest gate.
	failureMemory = 2 * time.Second
	// refusalPause is the least time between two tokens that are given up since the
	// receiver refused them: one that refuses everything does not cost a request for a
	// token each time.
	refusalPause = time.Minute
)

// Tokens gets and keeps the access tokens of webhooks whose Auth is oauth2. Each of
// them has at most one request for a token under way. Its methods are safe for
// concurrent use.
type Tokens struct {
	client   *http.Client
	agent    string
	sources  *otter.Cache[webhook.ID, *source]
	requests *prometheus.CounterVec
	now      func() time.Time
}

// NewTokens makes Tokens that ask through a client, which must be one of package
// egress. agent is the User-Agent header of the requests.
func NewTokens(client *http.Client, agent string, reg prometheus.Registerer) *Tokens {
	t := &Tokens{
		client: client,
		agent:  agent,
		sources: otter.Must(&otter.Options[webhook.ID, *source]{
			MaximumSize:      maxTokenSources,
			ExpiryCalculator: otter.ExpiryAccessing[webhook.ID, *source](sourceLife),
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_token_requests_total",
			Help: "Requests for OAuth 2.0 access tokens, by their result: issued, or the reason of the attempts that had no token.",
		}, []string{"result"}),
		now: time.Now,
	}
	reg.MustRegister(t.requests)
	return t
}

// issued is the result of a request that brought a token.
const issued = "issued"

// source is where one webhook's tokens come from.
type source struct {
	auth *webhook.Auth

	mu         sync.Mutex // guards all below
	token      webhook.Secret
	renewAt    time.Time // when the next one is asked for, while this one is good
	expiresAt  time.Time // when it is good no more
	fetch      *fetch    // under way; nil: none
	failure    *TokenError
	failedAt   time.Time
	gaveUpOnAt time.Time // when the last token was given up
}

// fetch is a request for a token that is under way.
type fetch struct {
	done chan struct{} // closed at its end; token and err are fixed then
	// Of a request that failed, err is set, and otherwise token.
	token webhook.Secret
	err   *TokenError
}

// Token returns an access token, and asks for one if it must; then it takes as long
// as that does, but ends with ctx. The error is a *TokenError.
func (t *Tokens) Token(ctx context.Context, id webhook.ID, auth *webhook.Auth) (webhook.Secret, error) {
	token, running, err := t.source(id, auth).get(t)
	if err != nil {
		return webhook.Secret{}, err
	}
	if running == nil {
		return token, nil
	}
	select {
	case <-running.done:
	case <-ctx.Done():
		return webhook.Secret{}, &TokenError{
			Reason: webhook.ReasonAuthUnavailable, Detail: "the token endpoint gave no answer within the attempt's timeout",
		}
	}
	if running.err != nil {
		return webhook.Secret{}, running.err
	}
	return running.token, nil
}

// source is the webhook's, a new one if it has other credentials than before.
func (t *Tokens) source(id webhook.ID, auth *webhook.Auth) *source {
	if s, found := t.sources.GetIfPresent(id); found && s.is(auth) {
		return s
	}
	s, _ := t.sources.Compute(id, func(old *source, found bool) (*source, otter.ComputeOp) {
		if found && old.is(auth) {
			return old, otter.CancelOp
		}
		return &source{auth: auth}, otter.WriteOp
	})
	return s
}

// is reports whether the source is of these credentials. As long as the catalog keeps
// its entry, they are the same ones.
func (s *source) is(auth *webhook.Auth) bool { return s.auth == auth || s.auth.Equal(auth) }

// get returns a token that is good, a request to wait for, or the failure of the last
// one.
func (s *source) get(t *Tokens) (webhook.Secret, *fetch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.now()
	good := !s.token.IsZero() && now.Before(s.expiresAt)
	failed := s.failure != nil && now.Sub(s.failedAt) < failureMemory
	if s.fetch == nil && !failed && (!good || now.After(s.renewAt)) {
		s.fetch = &fetch{done: make(chan struct{})}
		go s.run(t, s.fetch, now)
	}
	switch {
	case good:
		return s.token, nil, nil
	case s.fetch == nil:
		return webhook.Secret{}, nil, s.failure
	}
	return webhook.Secret{}, s.fetch, nil
}

// run asks for a token. Attempts come and go while it is under way, so it is bound to
// none of them: it ends after MaxTokenTime at the latest.
func (s *source) run(t *Tokens, f *fetch, asked time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), MaxTokenTime)
	defer cancel()
	answer, err := requestToken(ctx, t.client, t.agent, s.auth)
	result := issued
	if err != nil {
		result = string(err.Reason)
	}
	t.requests.WithLabelValues(result).Inc()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetch = nil
	s.failure = err
	if err == nil {
		f.token, s.token = answer.token, answer.token
		life := min(max(answer.life, minLife), maxLife)
		s.renewAt = asked.Add(life - min(life/5, maxAhead))
		s.expiresAt = asked.Add(life - min(life/10, maxSpare))
	} else {
		f.err, s.failedAt = err, t.now()
	}
	close(f.done)
}

// Refused says that the receiver answered 401 to a token. If that is still the one in
// use it is given up, and the next attempt asks for another, but not more often than
// once in a minute.
func (t *Tokens) Refused(id webhook.ID, token webhook.Secret) {
	s, found := t.sources.GetIfPresent(id)
	if !found {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.now()
	if s.token.Reveal() != token.Reveal() || !s.gaveUpOnAt.IsZero() && now.Sub(s.gaveUpOnAt) < refusalPause {
		return
	}
	s.token, s.gaveUpOnAt = webhook.Secret{}, now
}

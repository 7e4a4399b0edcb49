package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

// retries are the bounds of trying again.
type retries struct {
	max              int
	waitMin, waitMax time.Duration
}

func (r retries) check() error {
	switch {
	case r.max < 0:
		return fmt.Errorf("fairhook: the number of retries must not be negative: %d", r.max)
	case r.waitMin < 0 || r.waitMax < r.waitMin:
		return fmt.Errorf("fairhook: the waits between retries must be 0 <= shortest <= longest: %s, %s", r.waitMin, r.waitMax)
	}
	return nil
}

// policy decides, for one call, which outcome of a try is worth another. It
// belongs to the goroutine that makes the call.
type policy struct {
	retries
	repeatable bool
	submission bool

	retrying bool  // the last decision
	last     error // why the last try was not the end
}

// checkRetry is a retryablehttp.CheckRetry.
func (p *policy) checkRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		p.retrying = false
		return false, ctx.Err()
	}
	if err != nil {
		p.retrying = p.worthAfterError(ctx, err)
		p.last = err
		return p.retrying, nil
	}
	p.retrying = p.worthAfterStatus(ctx, resp)
	if p.retrying {
		p.last = fmt.Errorf("the answer was %s", resp.Status)
	}
	return p.retrying, nil
}

func (p *policy) worthAfterError(ctx context.Context, err error) bool {
	if errors.Is(err, errAnswerTooLarge) {
		return false
	}
	// The library knows the errors that come back every time: certificates, bad
	// schemes, bad headers.
	if passing, _ := retryablehttp.DefaultRetryPolicy(ctx, nil, err); !passing {
		return false
	}
	return p.repeatable || unsent(err)
}

func (p *policy) worthAfterStatus(ctx context.Context, resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusTooManyRequests:
		return p.bearable(ctx, resp)
	case http.StatusServiceUnavailable:
		// It may come after a COMMIT whose outcome nobody knows, or from a balancer
		// that lost the server half-way.
		return p.repeatable && p.bearable(ctx, resp)
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return p.repeatable
	case http.StatusConflict:
		return p.submission
	}
	return false
}

// bearable reports whether the wait that the server asks for fits in the
// call's bounds.
func (p *policy) bearable(ctx context.Context, resp *http.Response) bool {
	wait := retryAfter(resp)
	if wait > p.waitMax {
		return false
	}
	deadline, bounded := ctx.Deadline()
	return !bounded || time.Until(deadline) > wait
}

// explain adds to the end of a context what the call was waiting to repeat.
func (p *policy) explain(ctx context.Context, err error) error {
	if ctx.Err() == nil || p.last == nil || errors.Is(p.last, ctx.Err()) {
		return err
	}
	return fmt.Errorf("%w; before that: %w", err, p.last)
}

// unsent reports whether an error proves that the server saw nothing of the
// request: no connection was made.
func unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect")
}

// retryAfter is the wait that a 429 or 503 asks for, in either of the header's
// forms (RFC 9110, section 10.2.3), and 0 where it asks for none.
func retryAfter(resp *http.Response) time.Duration {
	wait := retryablehttp.DefaultBackoff(0, 0, 0, resp)
	if wait < 0 { // more seconds than a Duration holds
		return math.MaxInt64
	}
	return wait
}

// backoff is a retryablehttp.Backoff: the library's, which honours Retry-After
// and doubles otherwise, with chance added so that producers that failed
// together do not come back together. A Retry-After is never undercut.
func backoff(shortest, longest time.Duration, tries int, resp *http.Response) time.Duration {
	wait := retryablehttp.DefaultBackoff(shortest, longest, tries, resp)
	if resp != nil && retryAfter(resp) > 0 {
		return wait + rand.N(wait/4+1)
	}
	return wait/2 + rand.N(wait/2+1)
}

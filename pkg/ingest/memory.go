package ingest

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// bodyMemory is how many bytes of requests' bodies are held at once, unless the
// largest single body needs more. The intake bounds what waits to be committed;
// this bounds what is still arriving.
const bodyMemory = 64 << 20

// bodyBudget is how many more bytes of bodies may be held.
type bodyBudget struct{ free atomic.Int64 }

func newBodyBudget(maxBodyBytes int64) *bodyBudget {
	b := &bodyBudget{}
	b.free.Store(max(bodyMemory, 2*maxBodyBytes))
	return b
}

// limitMemory counts the bytes of a request's body as they come, for as long as
// its handler runs. Where there is no room for more, reading the body fails with
// CodeUnavailable.
func (s *Server) limitMemory(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		if r.Body == nil || r.Body == http.NoBody {
			return next(c)
		}
		body := &countedBody{ReadCloser: r.Body, budget: s.bodies}
		defer body.release()
		r.Body = body
		return next(c)
	}
}

// countedBody belongs to the goroutine of its request.
type countedBody struct {
	io.ReadCloser
	budget *bodyBudget
	held   int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.held += int64(n)
	if b.budget.free.Add(-int64(n)) < 0 {
		return 0, &webhook.Error{
			Code:       webhook.CodeUnavailable,
			Message:    "Too many large requests are arriving at once. Try again.",
			RetryAfter: time.Second,
		}
	}
	return n, err
}

func (b *countedBody) release() { b.budget.free.Add(b.held) }

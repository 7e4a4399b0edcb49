package receiver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/client/receiver"
)

var testKey = bytes.Repeat([]byte{9}, 32)

// site is a real HTTP server behind a Receiver.
type site struct {
	t   *testing.T
	url string

	mu     sync.Mutex
	errors []error // guarded by mu
}

// newSite serves what make makes of a Receiver.
func newSite(t *testing.T, dedup receiver.Dedup, make func(*receiver.Receiver) http.Handler, opts ...receiver.Option) *site {
	t.Helper()
	s := &site{t: t}
	opts = append([]receiver.Option{receiver.WithOnError(func(_ *http.Request, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.errors = append(s.errors, err)
	})}, opts...)
	rc, err := receiver.New(newVerifier(t, secretText(testKey)), dedup, opts...)
	if err != nil {
		t.Fatal(err)
	}
	handler := make(rc)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if recover() != nil { // as net/http does, without the log
				panic(http.ErrAbortHandler)
			}
		}()
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *site) errs() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errors
}

type answer struct {
	status int
	header http.Header
	body   string
}

// deliver sends a signed message, changed if change is not nil.
func (s *site) deliver(id, body string, change func(*http.Request)) (answer, error) {
	s.t.Helper()
	now := time.Now()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url+"/hook", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header = headers(id, strconv.FormatInt(now.Unix(), 10), sign(testKey, id, now, []byte(body)))
	req.Header.Set("Content-Type", "application/json")
	if change != nil {
		change(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text)}, err
}

func (s *site) expect(id string, want int) answer {
	s.t.Helper()
	got, err := s.deliver(id, "{}", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if got.status != want {
		s.t.Fatalf("message %s: got %d %q, want %d", id, got.status, got.body, want)
	}
	return got
}

// handling counts calls, and does what it is told in each.
type handling struct {
	mu  sync.Mutex
	ids []string // guarded by mu
	do  func(ctx context.Context, m *receiver.Message, call int) error
}

func (h *handling) handle(ctx context.Context, m *receiver.Message) error {
	h.mu.Lock()
	h.ids = append(h.ids, m.ID)
	call := len(h.ids)
	h.mu.Unlock()
	if h.do == nil {
		return nil
	}
	return h.do(ctx, m, call)
}

func (h *handling) calls() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ids)
}

func by(h *handling) func(*receiver.Receiver) http.Handler {
	return func(rc *receiver.Receiver) http.Handler { return rc.Handle(h.handle) }
}

func TestHandle(t *testing.T) {
	t.Parallel()

	t.Run("GivesTheHandlerTheMessage", func(t *testing.T) {
		t.Parallel()
		body := `{"n": 1e400,  "s":"\u0000"}`
		h := &handling{do: func(_ context.Context, m *receiver.Message, _ int) error {
			if m.ID != "msg_1" || string(m.Body) != body || m.Type != "order.paid" || m.Attempt != 2 || time.Since(m.Timestamp) > time.Minute {
				t.Errorf("got %+v", m)
			}
			return nil
		}}
		s := newSite(t, receiver.NewMemory(10), by(h))
		got, err := s.deliver("msg_1", body, func(r *http.Request) {
			r.Header.Set(receiver.HeaderEventType, "order.paid")
			r.Header.Set(receiver.HeaderAttempt, "2")
		})
		if err != nil || got.status != http.StatusNoContent || h.calls() != 1 {
			t.Errorf("got %+v, %v after %d calls", got, err, h.calls())
		}
	})

	t.Run("HandlesAMessageOnce", func(t *testing.T) {
		t.Parallel()
		h := &handling{}
		s := newSite(t, receiver.NewMemory(10), by(h))
		s.expect("msg_1", http.StatusNoContent)
		s.expect("msg_1", http.StatusNoContent)
		s.expect("msg_2", http.StatusNoContent)
		if h.calls() != 2 {
			t.Errorf("%d calls", h.calls())
		}
	})

	t.Run("HandlesAgainWhatFailed", func(t *testing.T) {
		t.Parallel()
		h := &handling{do: func(_ context.Context, _ *receiver.Message, call int) error {
			if call == 1 {
				return errors.New("the database password is hunter2")
			}
			return nil
		}}
		s := newSite(t, receiver.NewMemory(10), by(h))
		if got := s.expect("msg_1", http.StatusInternalServerError); strings.Contains(got.body, "hunter2") {
			t.Errorf("the answer tells %q", got.body)
		}
		s.expect("msg_1", http.StatusNoContent)
		s.expect("msg_1", http.StatusNoContent)
		if errs := s.errs(); h.calls() != 2 || len(errs) != 1 || !strings.Contains(errs[0].Error(), "hunter2") {
			t.Errorf("%d calls, errors %v", h.calls(), errs)
		}
	})

	t.Run("HandlesAgainWhatPanicked", func(t *testing.T) {
		t.Parallel()
		h := &handling{do: func(_ context.Context, _ *receiver.Message, call int) error {
			if call == 1 {
				panic("a bug")
			}
			return nil
		}}
		s := newSite(t, receiver.NewMemory(10), by(h))
		if got, err := s.deliver("msg_1", "{}", nil); err == nil {
			t.Errorf("got %+v", got)
		}
		s.expect("msg_1", http.StatusNoContent)
		if h.calls() != 2 {
			t.Errorf("%d calls", h.calls())
		}
	})

	t.Run("AsksTheSenderToComeAgainWhileAMessageIsBeingHandled", func(t *testing.T) {
		t.Parallel()
		began, finish := make(chan struct{}), make(chan struct{})
		h := &handling{do: func(context.Context, *receiver.Message, int) error {
			close(began)
			<-finish
			return nil
		}}
		s := newSite(t, receiver.NewMemory(10), by(h))
		first := make(chan answer)
		go func() {
			got, err := s.deliver("msg_1", "{}", nil)
			if err != nil {
				t.Error(err)
			}
			first <- got
		}()
		<-began
		if got := s.expect("msg_1", http.StatusServiceUnavailable); got.header.Get("Retry-After") == "" {
			t.Errorf("got %v without Retry-After", got.header)
		}
		close(finish)
		if got := <-first; got.status != http.StatusNoContent {
			t.Errorf("got %+v", got)
		}
		s.expect("msg_1", http.StatusNoContent)
		if h.calls() != 1 {
			t.Errorf("%d calls", h.calls())
		}
	})

	t.Run("EndsTheHandlersContextWithTheLease", func(t *testing.T) {
		t.Parallel()
		h := &handling{do: func(ctx context.Context, _ *receiver.Message, call int) error {
			if call > 1 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		s := newSite(t, receiver.NewMemory(10), by(h), receiver.WithLease(10*time.Millisecond))
		s.expect("msg_1", http.StatusInternalServerError)
		s.expect("msg_1", http.StatusNoContent)
	})

	t.Run("SetsScopesApart", func(t *testing.T) {
		t.Parallel()
		h, dedup := &handling{}, receiver.NewMemory(10)
		one := newSite(t, dedup, by(h), receiver.WithScope("one"))
		other := newSite(t, dedup, by(h), receiver.WithScope("other"))
		one.expect("msg_1", http.StatusNoContent)
		other.expect("msg_1", http.StatusNoContent)
		one.expect("msg_1", http.StatusNoContent)
		if h.calls() != 2 {
			t.Errorf("%d calls", h.calls())
		}
	})

	for name, c := range map[string]struct {
		change func(*http.Request)
		want   int
		err    error // what the log hears; nil: anything
	}{
		"RefusesATamperedBody": {func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(`{"total":1}`)), 11
		}, http.StatusUnauthorized, receiver.ErrNoMatch},
		"RefusesWhatIsTooOld": {func(r *http.Request) {
			at := time.Now().Add(-time.Hour)
			r.Header = headers("msg_1", strconv.FormatInt(at.Unix(), 10), sign(testKey, "msg_1", at, []byte("{}")))
		}, http.StatusUnauthorized, receiver.ErrTooOld},
		"RefusesAMissingSignature": {func(r *http.Request) { r.Header.Del(receiver.HeaderSignature) }, http.StatusBadRequest, receiver.ErrMalformed},
		"RefusesALongBody": {func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat(" ", 1001))), 1001
		}, http.StatusRequestEntityTooLarge, nil},
		"RefusesALongBodyOfUnknownLength": {func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat(" ", 1001))), -1
		}, http.StatusRequestEntityTooLarge, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &handling{}
			s := newSite(t, receiver.NewMemory(10), by(h), receiver.WithMaxBody(1000))
			got, err := s.deliver("msg_1", "{}", c.change)
			if err != nil || got.status != c.want {
				t.Fatalf("got %+v, %v", got, err)
			}
			if got.body != http.StatusText(c.want)+"\n" {
				t.Errorf("the answer says %q", got.body)
			}
			if errs := s.errs(); h.calls() != 0 || len(errs) != 1 || c.err != nil && !errors.Is(errs[0], c.err) {
				t.Errorf("%d calls, errors %v", h.calls(), errs)
			}
			// It does not count as the message: the true one is handled.
			s.expect("msg_1", http.StatusNoContent)
		})
	}

	t.Run("RefusesWhatIsNoPost", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, receiver.NewMemory(10), by(&handling{}))
		got, err := s.deliver("msg_1", "{}", func(r *http.Request) { r.Method = http.MethodPut })
		if err != nil || got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != http.MethodPost {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

// faulty is a Dedup whose parts fail.
type faulty struct {
	receiver.Dedup
	claim, commit error
}

func (f faulty) Claim(ctx context.Context, key, token string, lease time.Duration) (receiver.Claim, error) {
	if f.claim != nil {
		return 0, f.claim
	}
	return f.Dedup.Claim(ctx, key, token, lease)
}

func (f faulty) Commit(ctx context.Context, key, token string, keep time.Duration) error {
	if f.commit != nil {
		return f.commit
	}
	return f.Dedup.Commit(ctx, key, token, keep)
}

func TestWhenTheDedupFails(t *testing.T) {
	t.Parallel()
	away := errors.New("connection refused")

	t.Run("NothingIsHandledThatCannotBeClaimed", func(t *testing.T) {
		t.Parallel()
		h := &handling{}
		s := newSite(t, faulty{Dedup: receiver.NewMemory(10), claim: away}, by(h))
		if got := s.expect("msg_1", http.StatusServiceUnavailable); got.header.Get("Retry-After") == "" {
			t.Errorf("got %v without Retry-After", got.header)
		}
		if errs := s.errs(); h.calls() != 0 || len(errs) != 1 || !errors.Is(errs[0], away) {
			t.Errorf("%d calls, errors %v", h.calls(), errs)
		}
	})

	t.Run("WhatWasHandledIsASuccessAndStaysClaimed", func(t *testing.T) {
		t.Parallel()
		h := &handling{}
		s := newSite(t, faulty{Dedup: receiver.NewMemory(10), commit: away}, by(h))
		s.expect("msg_1", http.StatusNoContent)
		s.expect("msg_1", http.StatusServiceUnavailable)
		if errs := s.errs(); h.calls() != 1 || len(errs) != 1 || !errors.Is(errs[0], away) {
			t.Errorf("%d calls, errors %v", h.calls(), errs)
		}
	})
}

func TestMiddleware(t *testing.T) {
	t.Parallel()

	t.Run("LeavesTheVerifiedBodyToBeRead", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, receiver.NewMemory(10), func(rc *receiver.Receiver) http.Handler {
			return rc.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				message, ok := receiver.FromContext(r.Context())
				body, err := io.ReadAll(r.Body)
				if err != nil || !ok || string(body) != `{"a": 1}` || string(message.Body) != string(body) {
					t.Errorf("got %q, %v, %v", body, err, message)
				}
				_, _ = io.WriteString(w, "thanks") // 200 goes ahead of it
			}))
		})
		got, err := s.deliver("msg_1", `{"a": 1}`, nil)
		if err != nil || got.status != http.StatusOK || got.body != "thanks" {
			t.Errorf("got %+v, %v", got, err)
		}
	})

	for name, c := range map[string]struct {
		handler http.HandlerFunc
		first   int // 0: the connection breaks
		calls   int // after a second delivery
	}{
		"CountsA2xxAsHandled":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }, http.StatusAccepted, 1},
		"CountsSilenceAsHandled":     {func(http.ResponseWriter, *http.Request) {}, http.StatusOK, 1},
		"DoesNotCountA3xx":           {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, http.StatusNotModified, 2},
		"DoesNotCountA4xx":           {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) }, http.StatusConflict, 2},
		"DoesNotCountA5xxWithABody":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadGateway) }, http.StatusBadGateway, 2},
		"GoesByTheFirstStatus":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); w.WriteHeader(200) }, 500, 2},
		"LetsInformationGoAhead":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(500) }, 500, 2},
		"DoesNotCountAPanic":         {func(http.ResponseWriter, *http.Request) { panic("a bug") }, 0, 2},
		"CountsWhatItsSenderWasTold": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204); panic("a bug") }, 0, 1},
		"HasTheContextEndWithTheLease": {func(w http.ResponseWriter, r *http.Request) {
			if _, bounded := r.Context().Deadline(); !bounded {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}, http.StatusOK, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &handling{}
			s := newSite(t, receiver.NewMemory(10), func(rc *receiver.Receiver) http.Handler {
				return rc.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					message, _ := receiver.FromContext(r.Context())
					_ = h.handle(r.Context(), message)
					c.handler(w, r)
				}))
			})
			got, err := s.deliver("msg_1", "{}", nil)
			if c.first != 0 && (err != nil || got.status != c.first) {
				t.Fatalf("got %+v, %v", got, err)
			}
			_, _ = s.deliver("msg_1", "{}", nil)
			if h.calls() != c.calls {
				t.Errorf("%d calls, want %d", h.calls(), c.calls)
			}
		})
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		options []receiver.Option
		fault   string
	}{
		"TakesItsDefaults":               {nil, ""},
		"RefusesABodyOfNoLength":         {[]receiver.Option{receiver.WithMaxBody(0)}, "longest body"},
		"RefusesNoLease":                 {[]receiver.Option{receiver.WithLease(0)}, "lease"},
		"RefusesToForgetWhatStillPasses": {[]receiver.Option{receiver.WithKeep(9 * time.Minute)}, "twice the tolerance"},
		"RefusesAScopeWithASlash":        {[]receiver.Option{receiver.WithScope("a/b")}, "slash"},
		"RefusesNoFunctionForErrors":     {[]receiver.Option{receiver.WithOnError(nil)}, "function"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := receiver.New(newVerifier(t, vectorSecret), receiver.NewMemory(1), c.options...)
			if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
				t.Errorf("got %v, want %q", err, c.fault)
			}
		})
	}

	t.Run("NeedsAVerifierAndADedup", func(t *testing.T) {
		t.Parallel()
		if _, err := receiver.New(nil, receiver.NewMemory(1)); err == nil {
			t.Error("no error without a verifier")
		}
		if _, err := receiver.New(newVerifier(t, vectorSecret), nil); err == nil {
			t.Error("no error without a dedup")
		}
	})
}

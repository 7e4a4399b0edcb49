package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
)

type healthReport struct {
	Status string            `json:"status"`
	Checks map[string]string `json:"checks"`
}

func probe(t *testing.T, h *Health, method, path string) (int, healthReport, http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	h.Handler(nil).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	var report healthReport
	if w.Header().Get("Content-Type") == "application/json" {
		if err := json.Unmarshal(w.Body.Bytes(), &report); err != nil {
			t.Fatalf("read %q: %v", w.Body, err)
		}
	}
	return w.Code, report, w.Header()
}

func TestHealth(t *testing.T) {
	t.Parallel()
	fine := func(context.Context) error { return nil }

	t.Run("IsReadyAndLiveWhenAllChecksPass", func(t *testing.T) {
		t.Parallel()
		h := NewHealth()
		h.Add("database", fine)
		h.AddLive("loop", fine)
		code, report, header := probe(t, h, "GET", "/readyz")
		if code != 200 || report.Status != "ready" || fmt.Sprint(report.Checks) != "map[database:ok process:ok]" || header.Get("Cache-Control") != "no-store" {
			t.Errorf("got %d %+v %v", code, report, header)
		}
		code, report, _ = probe(t, h, "GET", "/livez")
		if code != 200 || report.Status != "live" || fmt.Sprint(report.Checks) != "map[loop:ok]" {
			t.Errorf("got %d %+v", code, report)
		}
	})

	t.Run("SaysWhichPartIsNotReadyAndNothingOfItsInternals", func(t *testing.T) {
		t.Parallel()
		h := NewHealth()
		h.Add("buffer", fine)
		h.Add("schema", func(context.Context) error { return fmt.Errorf("check schema: %w", NotReady("too old")) })
		h.Add("database", func(context.Context) error { return errors.New("password of admin@10.1.2.3 is hunter2") })
		h.Add("cache", func(ctx context.Context) error { return fmt.Errorf("ask: %w", context.DeadlineExceeded) })
		code, report, _ := probe(t, h, "GET", "/readyz")
		want := "map[buffer:ok cache:timeout database:failed process:ok schema:too old]"
		if code != 503 || report.Status != "not ready" || fmt.Sprint(report.Checks) != want {
			t.Errorf("got %d %+v", code, report)
		}
		if code, _, _ := probe(t, h, "GET", "/livez"); code != 200 {
			t.Errorf("livez is %d: a database outage would restart every copy", code)
		}
	})

	t.Run("SaysUnreachableWhenThereIsNoConnection", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := listener.Addr().String()
		listener.Close()
		h := NewHealth()
		h.Add("database", func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, "postgres://"+address+"/db?sslmode=disable")
			if err == nil {
				conn.Close(ctx)
			}
			return err
		})
		if code, report, _ := probe(t, h, "GET", "/readyz"); code != 503 || report.Checks["database"] != "unreachable" {
			t.Errorf("got %d %+v", code, report)
		}
	})

	t.Run("IsNotReadyAndStaysLiveWhileStopping", func(t *testing.T) {
		t.Parallel()
		h := NewHealth()
		h.Add("database", fine)
		h.SetStopping()
		code, report, _ := probe(t, h, "GET", "/readyz")
		if code != 503 || fmt.Sprint(report.Checks) != "map[database:ok process:stopping]" {
			t.Errorf("got %d %+v", code, report)
		}
		if code, _, _ := probe(t, h, "GET", "/livez"); code != 200 {
			t.Errorf("livez is %d", code)
		}
	})

	t.Run("RecoversWhenACheckDoes", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var broken atomic.Bool
			h := NewHealth()
			h.AddLive("loop", func(context.Context) error {
				if broken.Load() {
					return NotReady("stalled")
				}
				return nil
			})
			for _, down := range []bool{false, true, false} {
				broken.Store(down)
				time.Sleep(healthCacheTime)
				want := 200
				if down {
					want = 503
				}
				if code, report, _ := probe(t, h, "GET", "/livez"); code != want {
					t.Errorf("got %d %+v, want %d", code, report, want)
				}
			}
		})
	})

	t.Run("AsksAtMostTwiceASecondHoweverManyProbe", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var asked, atOnce atomic.Int64
			h := NewHealth()
			h.Add("database", func(context.Context) error {
				if atOnce.Add(1) > 1 {
					t.Error("the check runs twice at the same time")
				}
				time.Sleep(10 * time.Millisecond)
				atOnce.Add(-1)
				asked.Add(1)
				return nil
			})
			for range 100 { // ten a 100 ms for ten seconds
				for range 10 {
					go func() {
						if code, report, _ := probe(t, h, "GET", "/readyz"); code != 200 {
							t.Errorf("got %d %+v", code, report)
						}
					}()
				}
				time.Sleep(100 * time.Millisecond)
			}
			synctest.Wait()
			if n := asked.Load(); n < 10 || n > 20 {
				t.Errorf("asked %d times in ten seconds", n)
			}
		})
	})

	t.Run("AnswersWithinItsDeadlineWhenACheckHangs", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var runs atomic.Int64
			release := make(chan struct{})
			h := NewHealth()
			h.Add("polite", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			h.Add("deaf", func(context.Context) error { runs.Add(1); <-release; return nil })
			for range 5 {
				began := time.Now()
				code, report, _ := probe(t, h, "GET", "/readyz")
				if code != 503 || report.Checks["polite"] != "timeout" || report.Checks["deaf"] != "timeout" || time.Since(began) > time.Second {
					t.Errorf("got %d %+v after %v", code, report, time.Since(began))
				}
				time.Sleep(time.Second)
			}
			if runs.Load() != 1 {
				t.Errorf("a check that hangs was started %d times", runs.Load())
			}
			close(release)
			synctest.Wait()
			if _, report, _ := probe(t, h, "GET", "/readyz"); report.Checks["deaf"] != "ok" {
				t.Errorf("got %+v after the check came back", report)
			}
		})
	})

	t.Run("LetsAProberLeaveWithoutFailingTheCheck", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			h := NewHealth()
			h.Add("database", func(ctx context.Context) error {
				select {
				case <-time.After(500 * time.Millisecond):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			h.Readyz().ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/readyz", nil))
			if time.Since(began) != 100*time.Millisecond {
				t.Errorf("the prober waited %v", time.Since(began))
			}
			if code, report, _ := probe(t, h, "GET", "/readyz"); code != 200 {
				t.Errorf("got %d %+v", code, report)
			}
		})
	})

	t.Run("TakesOnlyGetAndHead", func(t *testing.T) {
		t.Parallel()
		h := NewHealth()
		for method, want := range map[string]int{"GET": 200, "HEAD": 200, "POST": 405, "DELETE": 405} {
			if code, _, _ := probeStatus(t, h, method); code != want {
				t.Errorf("%s is %d, want %d", method, code, want)
			}
		}
	})

	t.Run("ServesMetricsOfItsRegistry", func(t *testing.T) {
		t.Parallel()
		w := httptest.NewRecorder()
		NewHealth().Handler(NewRegistry()).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
		for _, want := range []string{`fairhook_build_info{goversion="go`, `version="` + Version() + `"} 1`, "go_goroutines ", "process_open_fds "} {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s is not in the metrics", want)
			}
		}
	})

	t.Run("WithdrawsBeforeTheListenerCloses", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			h := NewHealth()
			s := newStages(25 * time.Second)
			s.Add("http", func(ctx context.Context) error {
				<-ctx.Done()
				if !h.stopping.Load() {
					t.Error("the listener is told to stop while the process says it is ready")
				}
				return nil
			})
			s.AddDrained("readiness", h.Withdraw(3*time.Second))
			if took, err := runStages(t, s); err != nil || took != 3*time.Second {
				t.Errorf("got %v after %v", err, took)
			}
		})
	})
}

func probeStatus(t *testing.T, h *Health, method string) (int, healthReport, http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	h.Handler(nil).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "/readyz", nil))
	return w.Code, healthReport{}, w.Header()
}

func TestServe(t *testing.T) {
	t.Parallel()
	logger := slog.New(slog.DiscardHandler)
	listen := func(t *testing.T) net.Listener {
		t.Helper()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return listener
	}
	get := func(t *testing.T, url string) (string, error) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		if err != nil {
			return "", err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}

	t.Run("FinishesTheRequestsUnderWay", func(t *testing.T) {
		t.Parallel()
		listener := listen(t)
		entered, release := make(chan struct{}), make(chan struct{})
		server := NewHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-release
			io.WriteString(w, "done")
		}), logger)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- Serve(server, listener)(ctx, t.Context()) }()
		answer := make(chan string, 1)
		go func() {
			body, err := get(t, "http://"+listener.Addr().String())
			answer <- fmt.Sprint(body, err)
		}()
		<-entered
		cancel()
		// A refused connection says that the listener is closed while the
		// request is still under way.
		waitFor(t, func() bool {
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
		close(release)
		if got := <-answer; got != "done<nil>" {
			t.Errorf("the request under way got %s", got)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	t.Run("CutsOffWhatIsStillThereWhenTimeIsUp", func(t *testing.T) {
		t.Parallel()
		listener := listen(t)
		entered := make(chan struct{})
		server := NewHTTPServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
		}), logger)
		ctx, cancel := context.WithCancel(t.Context())
		drain, endDrain := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- Serve(server, listener)(ctx, drain) }()
		answer := make(chan error, 1)
		go func() {
			_, err := get(t, "http://"+listener.Addr().String())
			answer <- err
		}()
		<-entered
		cancel()
		endDrain()
		if err := <-served; err == nil {
			t.Error("cutting off a request is not an error")
		}
		if err := <-answer; err == nil {
			t.Error("the request got an answer")
		}
	})

	t.Run("FailsWhenItsListenerDoes", func(t *testing.T) {
		t.Parallel()
		listener := listen(t)
		listener.Close()
		if err := Serve(NewHTTPServer(http.NotFoundHandler(), logger), listener)(t.Context(), t.Context()); err == nil {
			t.Error("no error")
		}
	})
}

// waitFor polls until the condition holds, for at most ten seconds.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(10 * time.Second)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("it does not happen")
		}
	}
}

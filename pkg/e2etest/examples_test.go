package e2etest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/fairhook/fairhook/pkg/client"
)

const examplesDir = projectRoot + "/docs/examples"

// exampleSecret is 32 bytes.
const exampleSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrs="

// interpreter finds a program that an example needs. It is not skipped where it is
// missing, since then nothing would run the example.
func interpreter(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("the examples need %s: .ci/interpreters installs it, or says how: %v", name, err)
	}
	return path
}

// example is a command line of docs/examples.
type example []string

func exampleProducers(t *testing.T) map[string]example {
	return map[string]example{
		"Curl":   {interpreter(t, "sh"), filepath.Join(examplesDir, "curl/producer.sh")},
		"Node":   {interpreter(t, "node"), filepath.Join(examplesDir, "node/producer.mjs")},
		"Python": {interpreter(t, "python3"), filepath.Join(examplesDir, "python/producer.py")},
		"Go":     {checked.program(t, "producer")},
	}
}

func exampleReceivers(t *testing.T) map[string]example {
	return map[string]example{
		"Node":   {interpreter(t, "node"), filepath.Join(examplesDir, "node/receiver.mjs")},
		"Python": {interpreter(t, "python3"), filepath.Join(examplesDir, "python/receiver.py")},
		"Go":     {checked.program(t, "receiver")},
	}
}

// listening starts a receiver and waits for its address.
func (e example) listening(t *testing.T) (p *process, url string) {
	t.Helper()
	p = start(t, e[0], []string{"PORT=0", "WEBHOOK_SECRET=" + exampleSecret}, e[1:]...)
	eventually(t, "the receiver listens", func() bool {
		for line := range strings.Lines(p.output()) {
			if address, found := strings.CutPrefix(line, "listening on "); found && strings.HasSuffix(line, "\n") {
				url = strings.TrimSpace(address)
			}
		}
		return url != ""
	})
	return p, url
}

// Each producer of docs/examples submits an event that each receiver of docs/examples
// handles, through real processes. On its way each submission meets a 503, and a 504
// after the event was accepted.
func TestTheExamples(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest := s.run("ingest").ready()
	s.run("dispatcher").ready()
	c := s.client(ingest)

	receivers := map[string]*process{}
	for name, receiver := range exampleReceivers(t) {
		p, url := receiver.listening(t)
		receivers[name] = p
		_, err := c.Webhooks().Create(t.Context(), client.NewWebhook{Tenant: "acme", URL: url, EventTypes: []string{"order.*"}, Secret: exampleSecret})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, producer := range exampleProducers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			front := newRoughFront(t, "http://"+ingest.addr)
			payload := `{"by":"` + name + `",  "total": 99.90}`
			p := start(t, producer[0], []string{"FAIRHOOK_URL=" + front.url, "FAIRHOOK_KEY=" + bootstrap},
				append(producer[1:], "acme", "order.paid", payload)...)
			select {
			case <-p.done:
			case <-time.After(testWait):
				t.Fatalf("the producer does not end:\n%s", p.tail())
			}
			var accepted struct {
				ID         string `json:"id"`
				Deliveries []any  `json:"deliveries"`
			}
			if err := json.Unmarshal([]byte(lastLine(p.output())), &accepted); err != nil || len(accepted.Deliveries) != len(receivers) {
				t.Fatalf("the producer ends with %v and prints (%v)\n%s", p.err, err, p.output())
			}
			keys := front.keys()
			if len(keys) != 3 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] {
				t.Errorf("its tries had the idempotency keys %q", keys)
			}
			if n := s.count(`SELECT count(*) FROM fairhook.events WHERE payload = convert_to($1, 'UTF8')`, payload); n != 1 {
				t.Errorf("there are %d events", n)
			}
			for receiver, p := range receivers {
				eventually(t, receiver+" handles the event of "+name, func() bool {
					return strings.Contains(p.output(), "handled "+accepted.ID+" order.paid ")
				})
			}
			eventually(t, "the deliveries are delivered", func() bool {
				event, err := c.Event(t.Context(), accepted.ID)
				if err != nil {
					t.Fatal(err)
				}
				for _, delivery := range event.Deliveries {
					if delivery.Status != client.DeliveryDelivered {
						return false
					}
				}
				return len(event.Deliveries) == len(receivers)
			})
		})
	}
}

// What is refused for good is not tried again, and its reason is shown.
func TestTheExamplesShowWhyAnEventIsRefused(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ingest := s.run("ingest").ready()
	for name, producer := range exampleProducers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, producer[0], []string{"FAIRHOOK_URL=http://" + ingest.addr, "FAIRHOOK_KEY=wrong"},
				append(producer[1:], "acme", "order.paid", "{}")...)
			if code := p.exitCode(); code == 0 || !strings.Contains(p.output(), "401") || strings.Contains(p.output(), "wrong") {
				t.Errorf("exit code %d:\n%s", code, p.output())
			}
		})
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// roughFront stands before ingest as a balancer does. It refuses the first request, and
// loses ingest's answer to the second, which is accepted by then.
type roughFront struct {
	url string

	mu   sync.Mutex
	seen []string // idempotency keys; guarded by mu
}

func newRoughFront(t *testing.T, ingest string) *roughFront {
	t.Helper()
	target, err := url.Parse(ingest)
	if err != nil {
		t.Fatal(err)
	}
	f := &roughFront{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.seen = append(f.seen, r.Header.Get("Idempotency-Key"))
		tries := len(f.seen)
		f.mu.Unlock()
		switch tries {
		case 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			lost := httptest.NewRecorder()
			proxy.ServeHTTP(lost, r)
			if lost.Code != http.StatusAccepted {
				t.Errorf("ingest answers %d %s", lost.Code, lost.Body)
			}
			w.WriteHeader(http.StatusGatewayTimeout)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	f.url = server.URL
	return f
}

func (f *roughFront) keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// Each receiver of docs/examples judges messages as it should. They are signed with an
// implementation of Standard Webhooks that is not ours.
func TestTheExampleReceivers(t *testing.T) {
	t.Parallel()
	signer, err := standardwebhooks.NewWebhook(exampleSecret)
	if err != nil {
		t.Fatal(err)
	}
	// post sends a message that was signed some time ago, changed afterwards if change is
	// not nil, and returns the status, or 0 if the connection broke.
	post := func(t *testing.T, url, id string, age time.Duration, body []byte, change func(*http.Request)) int {
		t.Helper()
		at := time.Now().Add(-age)
		list, err := signer.Sign(id, at, body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("webhook-id", id)
		req.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
		req.Header.Set("webhook-signature", list)
		req.Header.Set("fairhook-event-type", "order.paid")
		if change != nil {
			change(req)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	withBody := func(body string) func(*http.Request) {
		return func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
	}
	without := func(header string) func(*http.Request) { return func(r *http.Request) { r.Header.Del(header) } }
	signed := func(list func(string) string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("webhook-signature", list(r.Header.Get("webhook-signature")))
		}
	}

	for name, example := range exampleReceivers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, url := example.listening(t)
			body := []byte(`{"order": 4711}`)
			handled := func(id string) int { return strings.Count(p.output(), "handled "+id+" order.paid") }

			cases := map[string]struct {
				age    time.Duration
				change func(*http.Request)
				want   int
			}{
				"good":                 {0, nil, 204},
				"nearly-too-old":       {4 * time.Minute, nil, 204},
				"ahead":                {-4 * time.Minute, nil, 204},
				"one-of-several":       {0, signed(func(list string) string { return "v1a,x v1,AAAA junk " + list }), 204},
				"tampered":             {0, withBody(`{"order": 4712}`), 401},
				"too-old":              {6 * time.Minute, nil, 401},
				"too-new":              {-6 * time.Minute, nil, 401},
				"another-version":      {0, signed(func(list string) string { return "v2" + list[2:] }), 401},
				"cut-short":            {0, signed(func(list string) string { return list[:len(list)-1] }), 401},
				"without-an-id":        {0, without("webhook-id"), 400},
				"without-a-time":       {0, without("webhook-timestamp"), 400},
				"without-a-signature":  {0, without("webhook-signature"), 400},
				"a.dot":                {0, nil, 400},
				"larger-than-one-mebi": {0, withBody(strings.Repeat(" ", 1<<20+1)), 413},
			}
			for id, c := range cases {
				got := post(t, url, id, c.age, body, c.change)
				// Who sends too much may find the connection closed before the answer.
				if got != c.want && !(c.want == 413 && got == 0) {
					t.Errorf("%s: got %d, want %d", id, got, c.want)
				}
			}
			// It came before: success, and nothing done.
			if got := post(t, url, "good", 0, body, nil); got != 204 {
				t.Errorf("a duplicate: got %d", got)
			}
			// Its handler cannot read this. It fails each time, and is tried each time.
			for range 2 {
				if got := post(t, url, "not-json", 0, []byte("order 4711"), nil); got != 500 {
					t.Errorf("what cannot be handled: got %d, want 500", got)
				}
			}
			// What it prints comes in the order in which it was handled.
			if got := post(t, url, "last", 0, body, nil); got != 204 {
				t.Errorf("the last one: got %d", got)
			}
			eventually(t, "it has printed everything", func() bool { return handled("last") == 1 })
			for id, c := range cases {
				if want := map[bool]int{true: 1}[c.want == 204]; handled(id) != want {
					t.Errorf("%s: handled %d times, want %d", id, handled(id), want)
				}
			}
		})
	}
}

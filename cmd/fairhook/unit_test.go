//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// send posts a body to a receiver, signed with secret unless that is empty, and
// returns the status.
func send(t *testing.T, rc *receiver, secret, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, rc.url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if secret != "" {
		signer, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		signature, err := signer.Sign("evt", now, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("webhook-id", "evt")
		req.Header.Set("webhook-timestamp", fmt.Sprint(now.Unix()))
		req.Header.Set("webhook-signature", signature)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestReceiver(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T) *receiver {
		rc, err := startReceiver()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := rc.close(); err != nil {
				t.Error(err)
			}
		})
		return rc
	}

	t.Run("AnswersOnlyToWhatIsSignedWithItsSecret", func(t *testing.T) {
		t.Parallel()
		rc := start(t)
		if got := send(t, rc, testSecret, "early"); got != http.StatusUnauthorized {
			t.Errorf("before it knows a secret: %d", got)
		}
		if err := rc.trust("whsec_not base64"); err == nil {
			t.Error("took a secret that is none")
		}
		if err := rc.trust(testSecret); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			secret, body string
			want         int
		}{
			{testSecret, "good", http.StatusNoContent},
			{"", "unsigned", http.StatusUnauthorized},
			{"whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldA==", "another's", http.StatusUnauthorized},
		} {
			if got := send(t, rc, tc.secret, tc.body); got != tc.want {
				t.Errorf("%s: got %d, want %d", tc.body, got, tc.want)
			}
		}
		for _, want := range []string{"early", "good", "unsigned", "another's"} {
			d := <-rc.received
			if string(d.body) != want || (d.fault == nil) != (want == "good") {
				t.Errorf("got %s with %v, want %s", d.body, d.fault, want)
			}
		}
	})

	t.Run("AnswersWhenNobodyLooks", func(t *testing.T) {
		t.Parallel()
		rc := start(t)
		if err := rc.trust(testSecret); err != nil {
			t.Fatal(err)
		}
		for range maxUnseen + 3 {
			if got := send(t, rc, testSecret, "x"); got != http.StatusNoContent {
				t.Fatalf("got %d", got)
			}
		}
		if got := rc.unseen.Load(); got != 3 {
			t.Errorf("%d are counted as unseen, want 3", got)
		}
	})
}

func TestDeliveryIsShownAsItCame(t *testing.T) {
	t.Parallel()
	d := delivery{
		method: "POST", target: "/hook?a=b", proto: "HTTP/1.1", host: "127.0.0.1:1",
		header: http.Header{"Webhook-Id": {"evt"}, "B": {"2", "3"}, "A": {"1"}, "Fairhook-Event-Type": {"order.paid"}, "Fairhook-Attempt": {"2"}},
		body:   []byte("{\n \"a\": 1}"), at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), verified: true,
	}
	const want = "POST /hook?a=b HTTP/1.1\nHost: 127.0.0.1:1\nA: 1\nB: 2\nB: 3\nFairhook-Attempt: 2\nFairhook-Event-Type: order.paid\nWebhook-Id: evt\n\n{\n \"a\": 1}"
	if got := d.show(); got != want {
		t.Errorf("shows\n%s\nwant\n%s", got, want)
	}
	if got, want := d.summary(), "03:04:05 received order.paid, event evt, attempt 2, signature verified\n    {\n     \"a\": 1}"; got != want {
		t.Errorf("sums up as %q, want %q", got, want)
	}
	d.fault = errors.New("no match")
	if got := d.summary(); strings.Contains(got, "signature verified") || !strings.Contains(got, "NOT verified: no match") {
		t.Errorf("sums up as %q", got)
	}
}

func FuzzPrintable(f *testing.F) {
	for _, seed := range []string{"", "plain\n\ttext", "\x1b[2J", "\xff", "é", strings.Repeat("é", maxShown), "\u202e", "a\rb"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := printable(b)
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\r\x00\x07\u202e") {
			t.Errorf("%q is shown as %q", b, got)
		}
		if len(b) <= maxShown && !strings.HasPrefix(got, `"`) && got != string(b) {
			t.Errorf("%q is shown as %q", b, got)
		}
		if len(b) > maxShown && !strings.HasSuffix(got, fmt.Sprintf("(%d bytes)", len(b))) {
			t.Errorf("%d bytes are cut without saying so", len(b))
		}
	})
}

func TestChildLog(t *testing.T) {
	t.Parallel()

	t.Run("KeepsTheLastLines", func(t *testing.T) {
		t.Parallel()
		log := &childLog{}
		if got := log.tail(); !strings.Contains(got, "said nothing") {
			t.Errorf("got %q", got)
		}
		for i := range 20_000 {
			fmt.Fprintf(log, "line %d\n", i)
		}
		lines := strings.Split(log.tail(), "\n")
		if len(lines) != tailLines || lines[len(lines)-1] != "    line 19999" || len(log.kept) > 2*keptLog {
			t.Errorf("kept %d bytes, tail %q", len(log.kept), lines)
		}
	})

	t.Run("ShowsWholeLinesUnderTheProcesssName", func(t *testing.T) {
		t.Parallel()
		var out bytes.Buffer
		log := &childLog{name: "ingest", out: &console{out: &out}}
		for _, part := range []string{"one\ntw", "o", "\n\x1b[2J\nrest"} {
			fmt.Fprint(log, part)
		}
		if got, want := out.String(), "    ingest     | one\n    ingest     | two\n    ingest     | \"\\x1b[2J\"\n"; got != want {
			t.Errorf("shows %q, want %q", got, want)
		}
	})

	t.Run("DoesNotHoldALineForEver", func(t *testing.T) {
		t.Parallel()
		log := &childLog{out: &console{out: io.Discard}}
		for range 100 {
			fmt.Fprint(log, strings.Repeat("x", 1000))
		}
		if len(log.pending) > keptLog {
			t.Errorf("holds %d bytes", len(log.pending))
		}
	})
}

func TestChild(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, script string) (*child, *childLog) {
		t.Helper()
		log := &childLog{}
		c, err := startChild("/bin/sh", []string{"-c", script}, []string{"PATH=" + os.Getenv("PATH"), "NAME=value"}, log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.stop(0) })
		return c, log
	}

	t.Run("HasOnlyTheGivenEnvironmentAndItsOwnProcessGroup", func(t *testing.T) {
		t.Parallel()
		c, log := start(t, "echo $NAME$HOME; ps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat")
		<-c.done
		if c.err != nil {
			t.Fatal(c.err)
		}
		if got, want := strings.Fields(log.tail()), []string{"value", fmt.Sprint(c.cmd.Process.Pid)}; !slices.Equal(got, want) {
			t.Errorf("said %q, want %q", got, want)
		}
	})

	t.Run("SaysHowItEnded", func(t *testing.T) {
		t.Parallel()
		c, _ := start(t, "echo the door is stuck >&2; exit 3")
		<-c.done
		if got, want := c.died().Error(), "sh ended (exit status 3); the end of its log:\n    the door is stuck"; got != want {
			t.Errorf("says %q, want %q", got, want)
		}
	})

	t.Run("StopsInOrder", func(t *testing.T) {
		t.Parallel()
		c, log := start(t, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
		waitUntil(t, func() bool { return strings.Contains(log.tail(), "up") })
		c.stop(time.Minute)
		if c.err != nil || !strings.Contains(log.tail(), "bye") {
			t.Errorf("ended with %v, said %q", c.err, log.tail())
		}
	})

	t.Run("IsEndedWithItsGroupWhenItDoesNotStop", func(t *testing.T) {
		t.Parallel()
		c, log := start(t, "trap '' TERM; sleep 300 & echo $!; wait; wait")
		waitUntil(t, func() bool { return !strings.Contains(log.tail(), "nothing") })
		var sleeper int
		if _, err := fmt.Sscan(log.tail(), &sleeper); err != nil {
			t.Fatal(err)
		}
		c.stop(50 * time.Millisecond)
		if c.err == nil {
			t.Error("ended without an error")
		}
		waitUntil(t, func() bool { return !running(sleeper) })
	})

	t.Run("StoppingTwiceDoesNothing", func(t *testing.T) {
		t.Parallel()
		c, _ := start(t, "exit 0")
		c.stop(time.Minute)
		c.stop(time.Minute)
	})

	t.Run("AProgramThatIsNotThere", func(t *testing.T) {
		t.Parallel()
		if _, err := startChild(filepath.Join(t.TempDir(), "none"), nil, nil, &childLog{}); err == nil {
			t.Error("was started")
		}
	})
}

func TestChildEnviron(t *testing.T) {
	t.Parallel()
	inherited := []string{"HOME=/x", "FAIRHOOK_LISTEN=a", "FAIRHOOK_OTHER=kept", "PGHOST=elsewhere", "PGSSLMODE=require"}
	ours := map[string]string{"FAIRHOOK_LISTEN": "b", "FAIRHOOK_NEW": "c"}
	for private, want := range map[bool][]string{
		true:  {"FAIRHOOK_LISTEN=b", "FAIRHOOK_NEW=c", "FAIRHOOK_OTHER=kept", "HOME=/x"},
		false: {"FAIRHOOK_LISTEN=b", "FAIRHOOK_NEW=c", "FAIRHOOK_OTHER=kept", "HOME=/x", "PGHOST=elsewhere", "PGSSLMODE=require"},
	} {
		got := childEnviron(inherited, ours, private)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("private %t: got %q, want %q", private, got, want)
		}
	}
	if inherited[1] != "FAIRHOOK_LISTEN=a" {
		t.Error("the inherited environment was changed")
	}
}

func TestReachable(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		":80": "127.0.0.1:80", "0.0.0.0:80": "127.0.0.1:80", "[::]:80": "127.0.0.1:80",
		"127.0.0.1:80": "127.0.0.1:80", "[::1]:80": "[::1]:80", "localhost:80": "localhost:80",
	} {
		if got := reachable(listen); got != want {
			t.Errorf("%s: got %s, want %s", listen, got, want)
		}
	}
}

func TestFreeAddress(t *testing.T) {
	t.Parallel()
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if isFree(address) {
		t.Errorf("%s counts as free with a listener on it", address)
	}
}

// waitUntil waits for a condition of another process, which cannot signal us.
func waitUntil(t *testing.T, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("it did not come to that within 20 s")
		}
	}
}

// running reports whether a process exists and is not a zombie.
func running(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !os.IsNotExist(err)
	}
	_, after, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(after, []byte("Z"))
}

func TestFieldsArePrintedAsTheyAre(t *testing.T) {
	t.Parallel()
	got := jsonFields(struct {
		ID      string            `json:"id"`
		URL     string            `json:"url"`
		Text    string            `json:"text"`
		Digits  string            `json:"digits"`
		Empty   string            `json:"empty"`
		None    *int              `json:"none"`
		Nothing []string          `json:"nothing"`
		Types   []string          `json:"types"`
		Headers map[string]string `json:"headers"`
		Size    int               `json:"size"`
	}{
		ID: "x", URL: "https://example.com/?a=1&b=<2>", Text: `He said "no" \ "yes"`, Digits: "null", Nothing: []string{},
		Types: []string{"a&b"}, Headers: map[string]string{"X": "<&>"}, Size: 3,
	}, "url", "id")
	want := []field{
		{"url", "https://example.com/?a=1&b=<2>"},
		{"id", "x"},
		{"digits", "null"},
		{"headers", `{"X":"<&>"}`},
		{"size", "3"},
		{"text", `He said "no" \ "yes"`},
		{"types", `["a&b"]`},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

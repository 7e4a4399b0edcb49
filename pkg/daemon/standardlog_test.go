package daemon

import (
	"bufio"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// lines is a log that can be waited for.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// It sets what belongs to the whole process, so it runs beside no other test.
func TestCaptureStandardLog(t *testing.T) {
	flags, output := log.Flags(), log.Writer()
	defer func() { log.SetFlags(flags); log.SetOutput(output) }()
	var out lines
	logger, _ := NewLogger(&out, "debug", "json")
	CaptureStandardLog(logger)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 unasked\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	}()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(out.String(), "unasked") {
		select {
		case <-deadline:
			t.Fatalf("net/http's complaint is not in the log: %q", out.String())
		case <-tick.C:
		}
	}
	var line struct{ Level, Msg string }
	if err := json.Unmarshal([]byte(out.String()), &line); err != nil || line.Level != "DEBUG" {
		t.Errorf("logged %q: %v", out.String(), err)
	}
}

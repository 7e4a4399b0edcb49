package courier

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/webhook"
	"pgregory.net/rapid"
)

// failures are errors as net/http and what is below it make them, with all that
// they tell about this side of the connection.
func failures() []error {
	local := &net.TCPAddr{IP: net.IPv4(10, 9, 8, 7), Port: 45678}
	remote := &net.TCPAddr{IP: net.IPv4(192, 168, 7, 7), Port: 443}
	op := func(op string, err error) error {
		return &net.OpError{Op: op, Net: "tcp", Source: local, Addr: remote, Err: err}
	}
	return []error{
		&net.DNSError{Err: "no such host", Name: "a.example", Server: "10.9.8.7:53", IsNotFound: true},
		&net.DNSError{Err: "server misbehaving", Name: "a.example", Server: "10.9.8.7:53", IsTemporary: true},
		&net.DNSError{Err: "i/o timeout", Name: "a.example", Server: "10.9.8.7:53", IsTimeout: true},
		op("dial", egress.ErrBlocked),
		&egress.ProxyError{Detail: "cannot be reached"},
		op("dial", os.NewSyscallError("connect", syscall.ECONNREFUSED)),
		op("dial", os.ErrDeadlineExceeded),
		op("read", os.NewSyscallError("read", syscall.ECONNRESET)),
		op("write", os.NewSyscallError("write", syscall.EPIPE)),
		op("read", net.ErrClosed),
		&net.OpError{Op: "remote error", Err: tls.AlertError(40)},
		tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"},
		&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}},
		errors.New("tls: no supported versions satisfy MinVersion and MaxVersion"),
		fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w", io.EOF),
		errors.New("http: server closed idle connection"),
		errors.New("net/http: server response headers exceeded 65536 bytes; aborted"),
		errors.New("malformed HTTP response \"\\x00\""),
		context.DeadlineExceeded, errDeadline, errNoKey, errURL, errRefusedTwice, io.EOF, io.ErrUnexpectedEOF,
	}
}

func TestClassifyIsTotalAndTellsNothingOfOurNetwork(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		f := facts{
			status: rapid.OneOf(rapid.Just(0), rapid.IntRange(100, 999)).Draw(t, "status"),
			late:   rapid.Bool().Draw(t, "late"),
			phase:  phase(rapid.IntRange(int(phaseNone), int(phaseBody)).Draw(t, "phase")),
			unread: rapid.Bool().Draw(t, "unread"),
		}
		if f.status == 0 || rapid.Bool().Draw(t, "cut short") {
			f.err = rapid.SampledFrom(failures()).Draw(t, "error")
		}
		reason, detail := classify(f)
		if !slices.Contains(webhook.Reasons(), reason) {
			t.Fatalf("%+v became %q", f, reason)
		}
		if complete := f.err == nil && f.status/100 == 2; (reason == webhook.ReasonDelivered) != complete {
			t.Fatalf("%+v became %s", f, reason)
		}
		for _, secret := range []string{"10.9.8.7", "192.168.7.7", "45678", ":53"} {
			if strings.Contains(detail, secret) {
				t.Fatalf("%+v is described as %q", f, detail)
			}
		}
		if len(detail) > maxDetail || !utf8.ValidString(detail) {
			t.Fatalf("detail %q", detail)
		}
	})
}

func TestARefusedAddressIsBlockedInWhateverPhase(t *testing.T) {
	t.Parallel()
	for at := phaseNone; at <= phaseBody; at++ {
		for _, late := range []bool{false, true} {
			reason, detail := classify(facts{err: fmt.Errorf("dial: %w", egress.ErrBlocked), phase: at, late: late})
			if reason != webhook.ReasonBlocked || detail != egress.ErrBlocked.Error() {
				t.Errorf("phase %d: %s, %q", at, reason, detail)
			}
		}
	}
}

func TestCleanText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.OneOf(rapid.SliceOf(rapid.Byte()), rapid.Map(rapid.String(), func(s string) []byte { return []byte(s) })).Draw(t, "raw")
		limit := rapid.IntRange(0, 40).Draw(t, "limit")
		got := cleanText(raw, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.Contains(got, "\x00") {
			t.Fatalf("%q became %q", raw, got)
		}
		if utf8.Valid(raw) && len(raw) <= limit && !strings.Contains(string(raw), "\x00") && got != string(raw) {
			t.Fatalf("%q became %q", raw, got)
		}
		if clean := cleanText(raw, 1<<20); len(clean) > limit && len(got) <= limit-utf8.UTFMax {
			t.Fatalf("%q was cut to %q, shorter than %d asks for", raw, got, limit)
		}
	})
}

// A request can be given a connection that became idle while its own was being
// dialled.
func TestPhasesOfADialThatWasNotUsedDoNotCount(t *testing.T) {
	t.Parallel()
	rec := newRecorder()
	hooks := httptrace.ContextClientTrace(rec.attach(t.Context()))
	hooks.DNSStart(httptrace.DNSStartInfo{})
	hooks.DNSDone(httptrace.DNSDoneInfo{})
	hooks.ConnectStart("tcp", "192.0.2.1:443")
	hooks.ConnectDone("tcp", "192.0.2.1:443", nil)
	if timings := rec.timings(); timings.DNS == nil || timings.Connect == nil {
		t.Fatalf("%+v", timings)
	}
	hooks.GotConn(httptrace.GotConnInfo{Reused: true})
	if timings := rec.timings(); timings.DNS != nil || timings.Connect != nil {
		t.Errorf("%+v", timings)
	}
	if rec.phase() != phaseExchange {
		t.Errorf("phase %d", rec.phase())
	}
}

package courier

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/identity"
	"github.com/fairhook/fairhook/pkg/webhook"
)

var (
	errNoKey = errors.New("no signing secret of the webhook is valid")
	errURL   = fmt.Errorf("%w: it cannot be parsed", egress.ErrBadURL)

	errLongURL error = &egress.URLError{
		Reason: webhook.ReasonBadURL,
		Detail: fmt.Sprintf("must be at most %d bytes long", webhook.MaxURLLength),
	}
)

// maxDetail bounds Result.Detail, in bytes.
const maxDetail = 256

// facts are what classify judges by.
type facts struct {
	status int   // of the answer, or 0 where none came
	err    error // what ended the request or cut the answer's body short
	late   bool  // the attempt's deadline has passed
	phase  phase // where the request was when it ended
	unread bool  // the body went on beyond MaxResponseBody
}

// classify says how an attempt ended, and what may be said about it. It is pure.
func classify(f facts) (webhook.Reason, string) {
	reason, detail := classifyAnswer(f)
	if f.status == 0 {
		reason, detail = classifyFailure(f)
	}
	return reason, cleanText([]byte(detail), maxDetail)
}

// classifyAnswer is classify for an answer whose header arrived.
func classifyAnswer(f facts) (webhook.Reason, string) {
	byStatus := statusReason(f.status)
	switch {
	case f.err == nil && byStatus == webhook.ReasonRedirect:
		return byStatus, "redirects are not followed"
	case f.err == nil && byStatus == webhook.ReasonBadResponse:
		return byStatus, fmt.Sprintf("status %d was not asked for or does not exist", f.status)
	case f.err == nil && f.unread:
		return byStatus, fmt.Sprintf("the answer's body is longer than %d bytes and was not read to its end", MaxResponseBody)
	case f.err == nil:
		return byStatus, ""
	case f.late:
		return incomplete(byStatus, webhook.ReasonSlowBody, "the answer's body did not end within the timeout")
	case broken(f.err):
		return incomplete(byStatus, webhook.ReasonReset, "the connection ended in the middle of the answer's body")
	}
	return incomplete(byStatus, webhook.ReasonBadResponse, quote("the answer's body is malformed", f.err))
}

// incomplete is the reason for an answer that broke off: of a 2xx the way it
// broke, of any other its status.
func incomplete(byStatus, otherwise webhook.Reason, detail string) (webhook.Reason, string) {
	if byStatus == webhook.ReasonDelivered {
		return otherwise, detail
	}
	return byStatus, detail
}

// statusReason is the reason that a status stands for.
func statusReason(status int) webhook.Reason {
	switch status {
	case http.StatusGone:
		return webhook.ReasonGone
	case http.StatusTooManyRequests:
		return webhook.ReasonRateLimited
	case http.StatusBadGateway:
		return webhook.ReasonBadGateway
	case http.StatusServiceUnavailable:
		return webhook.ReasonUnavailable
	case http.StatusGatewayTimeout:
		return webhook.ReasonGatewayTimeout
	}
	switch status / 100 {
	case 2:
		return webhook.ReasonDelivered
	case 3:
		return webhook.ReasonRedirect
	case 4:
		return webhook.ReasonClientError
	case 5:
		return webhook.ReasonServerError
	}
	return webhook.ReasonBadResponse
}

// classifyFailure is classify for a request without an answer.
func classifyFailure(f facts) (webhook.Reason, string) {
	var (
		urlError *egress.URLError
		proxy    *egress.ProxyError
		lookup   *net.DNSError
		token    *identity.TokenError
	)
	switch {
	case errors.As(f.err, &token):
		return token.Reason, token.Detail
	case errors.As(f.err, &proxy):
		return webhook.ReasonProxy, proxy.Error()
	case errors.Is(f.err, egress.ErrBlocked):
		return webhook.ReasonBlocked, egress.ErrBlocked.Error()
	case errors.As(f.err, &urlError):
		return urlError.Reason, "the URL " + urlError.Detail
	case errors.Is(f.err, egress.ErrBadURL):
		return webhook.ReasonBadURL, f.err.Error()
	case errors.Is(f.err, errNoKey):
		return webhook.ReasonInternalError, errNoKey.Error()
	case errors.As(f.err, &lookup):
		return webhook.ReasonDNS, describeLookup(f)
	}

	switch f.phase {
	case phaseResolve:
		return webhook.ReasonDNS, describeLookup(f)
	case phaseConnect:
		return webhook.ReasonConnect, describe(f, "no connection to the host")
	case phaseHandshake:
		return webhook.ReasonTLS, describe(f, "the TLS handshake failed")
	case phaseNone:
		switch {
		case f.late:
			return webhook.ReasonTimeout, "no connection became free within the timeout"
		case broken(f.err):
			return webhook.ReasonReset, "the connection ended before the request was sent"
		}
		return webhook.ReasonInternalError, "the request could not be made"
	case phaseExchange, phaseBody:
	}

	switch {
	case f.late:
		return webhook.ReasonTimeout, "no answer within the timeout"
	case remoteAlert(f.err):
		// With TLS 1.3 a receiver's refusal of our side of the handshake arrives
		// after it.
		return webhook.ReasonTLS, describe(f, "the TLS handshake failed")
	case headerTooLarge(f.err):
		return webhook.ReasonTooLarge, "the answer's header is over the limit"
	case errors.Is(f.err, errRefusedTwice):
		return webhook.ReasonReset, errRefusedTwice.Error()
	case broken(f.err):
		return webhook.ReasonReset, describe(f, "the connection ended before an answer")
	}
	return webhook.ReasonBadResponse, quote("the answer is not HTTP", f.err)
}

// describeLookup names the host's fate and nothing of our resolver.
func describeLookup(f facts) string {
	var lookup *net.DNSError
	switch {
	case f.late:
		return "the host name was not resolved in time"
	case !errors.As(f.err, &lookup):
		return "the host name could not be resolved"
	case lookup.IsNotFound:
		return "the host name does not exist"
	case lookup.IsTimeout:
		return "the host name was not resolved in time"
	}
	return "the host name could not be resolved"
}

// describe adds to a sentence what can be said about an error without repeating
// addresses, which the texts of package net are full of.
func describe(f facts, what string) string {
	var (
		errno  syscall.Errno
		slow   net.Error
		cert   *tls.CertificateVerificationError
		record tls.RecordHeaderError
	)
	switch {
	case f.late:
		return what + ": timed out"
	case errors.As(f.err, &cert):
		return what + ": " + describeCertificate(cert.Err)
	case errors.As(f.err, &record):
		return what + ": the receiver does not speak TLS"
	case errors.As(f.err, &errno):
		return what + ": " + errno.Error()
	case errors.As(f.err, &slow) && slow.Timeout():
		return what + ": timed out"
	case errors.Is(f.err, io.EOF), errors.Is(f.err, io.ErrUnexpectedEOF):
		return what + ": connection closed"
	case remoteAlert(f.err):
		return what + ": " + f.err.Error()
	case strings.HasPrefix(f.err.Error(), "tls: "):
		return what + ": " + f.err.Error()
	}
	return what
}

// quote adds the text of an error to a sentence, unless it is one of package net.
func quote(what string, err error) string {
	if _, ok := errors.AsType[net.Error](err); ok {
		return what
	}
	return what + ": " + err.Error()
}

func describeCertificate(err error) string {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &authority):
		return "the certificate is signed by an unknown authority"
	case errors.As(err, &host):
		return "the certificate is for another host"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired or is not yet valid"
	}
	return "the certificate is not trusted"
}

// remoteAlert recognises a TLS alert sent by the receiver.
func remoteAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// broken recognises a connection that ended, as against one that carried
// nonsense.
func broken(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return true
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return true
	}
	text := err.Error()
	return containsAny(text,
		"server closed idle connection", // net/http keeps these errors to itself:
		"stream error:",                 // HTTP/2 RST_STREAM
		"connection error:",             // HTTP/2 GOAWAY of ours
		"GOAWAY",                        // HTTP/2 GOAWAY of theirs
		"client connection lost",        // HTTP/2 ping unanswered
		"client connection force closed",
		"client connection is closing",
		"client conn not usable",
		notEstablished,
	)
}

// notEstablished is in the text of net/http's error for an HTTP/2 connection that
// ended before its first request.
const notEstablished = "client conn could not be established"

// headerTooLarge recognises the errors, kept by net/http to itself, for an answer's
// header over MaxResponseHeaderBytes, that of informational answers included.
func headerTooLarge(err error) bool {
	return containsAny(err.Error(), "server response headers exceeded", "response header list larger than advertised limit",
		"header list too large")
}

func containsAny(text string, parts ...string) bool {
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/fairhook/fairhook/pkg/webhook"
	"golang.org/x/net/idna"
)

// URLError says why a URL is refused. errors.Is recognises ErrBlocked or
// ErrBadURL in it.
type URLError struct {
	// Reason is webhook.ReasonBlocked where an address is refused, and
	// webhook.ReasonBadURL where the URL's form is.
	Reason webhook.Reason
	// Detail says what the URL must be, in words for whoever entered it. It
	// repeats nothing of the URL.
	Detail string
}

func (e *URLError) Error() string { return e.Detail }

// Is makes errors.Is recognise ErrBlocked and ErrBadURL.
func (e *URLError) Is(target error) bool {
	switch e.Reason {
	case webhook.ReasonBlocked:
		return target == ErrBlocked
	case webhook.ReasonBadURL:
		return target == ErrBadURL
	}
	return false
}

func badURL(format string, args ...any) error {
	return &URLError{Reason: webhook.ReasonBadURL, Detail: fmt.Sprintf(format, args...)}
}

var errBlockedHost error = &URLError{
	Reason: webhook.ReasonBlocked,
	Detail: "must not point to a private or otherwise reserved address",
}

// CheckURL returns nil if webhooks may be sent to this URL, and a *URLError
// otherwise, whose text is fit for the caller of the API as the detail of the
// field /url. It resolves no name: an address behind a name is judged when it is
// dialled.
//
// The rules: absolute, http or https (https alone under RequireHTTPS), at most
// webhook.MaxURLLength bytes, no user info, no fragment, no white space or
// control characters; a host that is a domain name or an IP address in its one
// usual spelling, and not a refused address, nor localhost unless loopback is
// allowed; a port, if any, between 1 and 65535.
func (g *Guard) CheckURL(raw string) error {
	switch {
	case raw == "":
		return badURL("must not be empty")
	case len(raw) > webhook.MaxURLLength:
		return badURL("must be at most %d bytes long", webhook.MaxURLLength)
	case !utf8.ValidString(raw):
		return badURL("must be valid UTF-8")
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return badURL("must not contain white space or control characters")
	case strings.Contains(raw, "#"):
		return badURL("must not have a fragment")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return badURL("must be a URL%s", parseFault(err))
	}
	return g.checkURL(u)
}

// parseFault is what package url found wrong, where it can be said without
// repeating the URL.
func parseFault(err error) string {
	if _, ok := errors.AsType[url.EscapeError](err); ok {
		return ": an escape is not valid"
	}
	if _, ok := errors.AsType[url.InvalidHostError](err); ok {
		return ": its host has characters that are not allowed there"
	}
	return ""
}

// Target is the host and port that requests to a URL go to, in one spelling for all the
// ways to write them; empty for what is no such URL. An IPv4 address is the same
// whether it is written as itself, mapped into IPv6 or behind NAT64.
func Target(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	host, port := u.Hostname(), u.Port()
	if addr, err := netip.ParseAddr(host); err == nil {
		host = embedded(addr.Unmap()).String()
	} else if host, err = asciiName(host); err != nil {
		return ""
	}
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	return net.JoinHostPort(host, port)
}

// checkURL is CheckURL for a URL that is parsed already.
func (g *Guard) checkURL(u *url.URL) error {
	switch {
	case u.Scheme == "http" && g.requireHTTPS:
		return badURL("must be an https URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return badURL("must be an absolute URL that begins with http:// or https://")
	case u.User != nil:
		return badURL("must not contain a user name or password")
	case u.Fragment != "":
		return badURL("must not have a fragment")
	case u.Opaque != "" || u.Host == "":
		return badURL("must have a host")
	}
	host, err := splitPort(u.Host)
	if err != nil {
		return err
	}
	return g.checkHost(host)
}

// splitPort checks the port of a URL's authority, and returns the host with its
// brackets, if any.
func splitPort(authority string) (host string, err error) {
	host = authority
	colon := strings.LastIndexByte(authority, ':')
	if colon > strings.LastIndexByte(authority, ']') {
		host = authority[:colon]
		port, err := strconv.ParseUint(authority[colon+1:], 10, 16)
		if err != nil || port == 0 {
			return "", badURL("must have a port between 1 and 65535, or none")
		}
	}
	if host == "" {
		return "", badURL("must have a host")
	}
	return host, nil
}

func (g *Guard) checkHost(host string) error {
	if literal, ok := strings.CutPrefix(host, "["); ok {
		return g.checkLiteral(strings.TrimSuffix(literal, "]"))
	}
	name, err := asciiName(host)
	if err != nil {
		return err
	}
	if endsInNumber(name) {
		// "2130706433", "0x7f.1" and "0177.0.0.1" are 127.0.0.1 to some resolvers and
		// names to others.
		addr, err := netip.ParseAddr(name)
		if err != nil || !addr.Is4() {
			return badURL("must write an IPv4 address as four decimal numbers without leading zeros")
		}
		return g.checkAddr(addr)
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		// Loopback by definition (RFC 6761, section 6.3), of either family.
		if !g.admits(netip.AddrFrom4([4]byte{127, 0, 0, 1})) && !g.admits(netip.IPv6Loopback()) {
			return errBlockedHost
		}
	}
	return nil
}

// checkLiteral judges what stands between brackets.
func (g *Guard) checkLiteral(literal string) error {
	addr, err := netip.ParseAddr(literal)
	switch {
	case err != nil || !addr.Is6():
		return badURL("must have an IPv6 address between the brackets")
	case addr.Zone() != "":
		return badURL("must not have an IPv6 zone")
	}
	return g.checkAddr(addr)
}

func (g *Guard) checkAddr(addr netip.Addr) error {
	if !g.admits(addr) {
		return errBlockedHost
	}
	return nil
}

// asciiName checks the form of a host that is not an IPv6 address, and returns
// it in the form that net/http will resolve: in ASCII, by IDNA 2008's lookup
// rules (which also turn full-width digits and dots into plain ones). It is
// lower case.
func asciiName(host string) (string, error) {
	name := host
	if strings.ContainsFunc(host, func(r rune) bool { return r >= utf8.RuneSelf }) {
		ascii, err := idna.Lookup.ToASCII(host)
		if err != nil {
			return "", badURL("must have a host that is a valid domain name or IP address")
		}
		name = ascii
	}
	name = strings.ToLower(name)
	if strings.HasSuffix(name, ".") {
		return "", badURL("must have a host that does not end in a dot")
	}
	if len(name) > 253 {
		return "", badURL("must have a host of at most 253 bytes")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInLabel) {
			return "", badURL("must have a host that is a valid domain name or IP address")
		}
	}
	return name, nil
}

// notInLabel allows the underscore, which is in no host name by the letter and
// in many by use.
func notInLabel(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// endsInNumber reports whether a host must be read as an IPv4 address (WHATWG
// URL, "ends in a number checker"): its last label is decimal digits, or 0x and
// any hexadecimal digits.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

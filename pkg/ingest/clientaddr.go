package ingest

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const headerForwardedFor = "X-Forwarded-For"

// clientAddr is where a request comes from: its peer, or, where that is a trusted
// proxy, the last hop of X-Forwarded-For that is not one. What stands before that
// in the header is hearsay: anybody can write it. The zero address means that it
// cannot be told.
func (s *Server) clientAddr(r *http.Request) netip.Addr {
	var peer netip.Addr
	if hop, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		peer = plain(hop.Addr())
	}
	return lastUntrusted(peer, r.Header.Values(headerForwardedFor), s.trustedProxies)
}

// lastUntrusted goes back from the peer, hop by hop, while it is at a trusted
// proxy. Each proxy appends the hop that it saw, to the line or as a further one.
func lastUntrusted(peer netip.Addr, forwarded []string, trusted []netip.Prefix) netip.Addr {
	client := peer
	line := strings.Join(forwarded, ",")
	for len(trusted) > 0 && client.IsValid() && webhook.AllowsAddr(trusted, client) && line != "" {
		hop := line
		if comma := strings.LastIndexByte(line, ','); comma >= 0 {
			line, hop = line[:comma], line[comma+1:]
		} else {
			line = ""
		}
		client = parseHop(strings.Trim(hop, " \t"))
	}
	return client
}

// parseHop reads an address, with a port or without. What is none, such as
// "unknown", is the zero address: nothing before it can be believed.
func parseHop(text string) netip.Addr {
	if addr, err := netip.ParseAddr(text); err == nil {
		return plain(addr)
	}
	if hop, err := netip.ParseAddrPort(text); err == nil {
		return plain(hop.Addr())
	}
	if inner, bracketed := strings.CutPrefix(text, "["); bracketed && strings.HasSuffix(inner, "]") {
		if addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]")); err == nil && addr.Is6() {
			return plain(addr)
		}
	}
	return netip.Addr{}
}

// plain is the one form in which addresses are compared: IPv4 as IPv4, and
// without a zone.
func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// shownAddr is an address for people to read.
func shownAddr(addr netip.Addr) string {
	if !addr.IsValid() {
		return "an address that cannot be told"
	}
	return addr.String()
}

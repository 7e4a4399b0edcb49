package ingest

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func prefixes(t testing.TB, texts ...string) []netip.Prefix {
	t.Helper()
	parsed, err := webhook.ParseCIDRs(texts)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestClientAddr(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, peer string
		trusted    []string
		forwarded  []string
		want       string // empty: it cannot be told
	}{
		{"no proxy", "192.0.2.1:5", nil, nil, "192.0.2.1"},
		{"no proxy, a spoofed header", "192.0.2.1:5", nil, []string{"10.0.0.1"}, "192.0.2.1"},
		{"a peer that is no proxy, a spoofed header", "192.0.2.1:5", []string{"10.0.0.0/8"}, []string{"10.0.0.1"}, "192.0.2.1"},
		{"one proxy", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"192.0.2.1"}, "192.0.2.1"},
		{"one proxy, which appends to a spoofed header", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"198.51.100.1, 192.0.2.1"}, "192.0.2.1"},
		{"one proxy, which adds a header to a spoofed one", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"198.51.100.1", "192.0.2.1"}, "192.0.2.1"},
		{"a spoofed hop that claims to be a proxy", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"198.51.100.1, 10.9.9.9, 192.0.2.1"}, "192.0.2.1"},
		{"two proxies", "10.0.0.1:5", []string{"10.0.0.0/8", "172.16.0.0/12"}, []string{"198.51.100.1, 192.0.2.1 ,172.16.0.1"}, "192.0.2.1"},
		{"a proxy without the header", "10.0.0.1:5", []string{"10.0.0.0/8"}, nil, "10.0.0.1"},
		{"proxies all the way", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"an obscured hop", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"192.0.2.1, unknown"}, ""},
		{"an empty hop", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"192.0.2.1,"}, ""},
		{"an empty hop in between", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"192.0.2.1,, 10.0.0.2"}, ""},
		{"an obscured hop that does not matter", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"unknown, 192.0.2.1"}, "192.0.2.1"},
		{"a hop with a port", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"192.0.2.1:1234"}, "192.0.2.1"},
		{"an IPv6 hop", "[2001:db8::1]:5", []string{"2001:db8::/32"}, []string{"2001:db9::7"}, "2001:db9::7"},
		{"an IPv6 hop with a port", "[2001:db8::1]:5", []string{"2001:db8::/32"}, []string{"[2001:db9::7]:99"}, "2001:db9::7"},
		{"an IPv6 hop in brackets", "[2001:db8::1]:5", []string{"2001:db8::/32"}, []string{"[2001:db9::7]"}, "2001:db9::7"},
		{"a mapped peer", "[::ffff:10.0.0.1]:5", []string{"10.0.0.0/8"}, []string{"::ffff:192.0.2.1"}, "192.0.2.1"},
		{"a mapped proxy in the header", "10.0.0.1:5", []string{"10.0.0.0/8"}, []string{"192.0.2.1, ::ffff:10.0.0.2"}, "192.0.2.1"},
		{"a zone", "[fe80::1%eth0]:5", []string{"fe80::/10"}, []string{"fe81::1%eth1, fe80::2%eth0"}, "fe81::1"},
		{"no peer", "@", nil, []string{"192.0.2.1"}, ""},
		{"no peer, and proxies", "", []string{"0.0.0.0/0", "::/0"}, []string{"192.0.2.1"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &Server{trustedProxies: prefixes(t, tt.trusted...)}
			got := s.clientAddr(&http.Request{RemoteAddr: tt.peer, Header: http.Header{"X-Forwarded-For": tt.forwarded}})
			if got != (netip.Addr{}) && got.String() != tt.want || got == (netip.Addr{}) && tt.want != "" {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

// Whatever a client writes into the header, a proxy appends the client's address
// behind it, and that is what counts.
func FuzzClientAddr(f *testing.F) {
	for _, text := range []string{"", "10.0.0.1", "192.0.2.1, 10.0.0.2", "unknown", "[::1]:5", ",,,", "10.0.0.1,", " ", "\x00", "[[::1]]", "::ffff:10.0.0.1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, spoofed string) {
		trusted := prefixes(t, "10.0.0.0/8")
		peer := netip.MustParseAddr("10.0.0.1")
		client := netip.MustParseAddr("203.0.113.9")
		for _, forwarded := range [][]string{{spoofed + ", " + client.String()}, {spoofed, client.String()}} {
			if got := lastUntrusted(peer, forwarded, trusted); got != client {
				t.Errorf("%q: %v", forwarded, got)
			}
		}
		if got := lastUntrusted(client, []string{spoofed}, trusted); got != client {
			t.Errorf("%q from a client: %v", spoofed, got)
		}
		if got := lastUntrusted(peer, []string{spoofed}, trusted); got.Is4In6() || got.Zone() != "" {
			t.Errorf("%q: %v", spoofed, got)
		}
		if strings.Count(spoofed, ",") == 0 {
			parseHop(spoofed)
		}
	})
}

func TestAllowedCIDRs(t *testing.T) {
	t.Parallel()
	direct := setup(t) // the client is 127.0.0.1
	proxied := setupWith(t, options{pool: direct.db, key: testKey, trustedProxies: prefixes(t, "127.0.0.0/8")})

	t.Run("OfAKey", func(t *testing.T) {
		t.Parallel()
		here := newKey(t, direct, "acme", `,"allowed_cidrs":["10.0.0.0/8","::ffff:127.0.0.0/104"]`, webhook.ScopeRead)
		away := newKey(t, direct, "acme", `,"allowed_cidrs":["192.0.2.0/24"]`, webhook.ScopeRead)
		want[any](t, direct, http.StatusOK, "GET", "/v1/webhooks", "", here.with()...)
		p, _ := refused(t, direct, http.StatusForbidden, "forbidden", "GET", "/v1/webhooks", "", away.with()...)
		if p.Detail != "The API key may not be used from 127.0.0.1." {
			t.Errorf("refused with %q", p.Detail)
		}
		// Without a trusted proxy anyone could write this.
		refused(t, direct, http.StatusForbidden, "forbidden", "GET", "/v1/webhooks", "", away.with("X-Forwarded-For", "192.0.2.7")...)
		refused(t, direct, http.StatusForbidden, "forbidden", "GET", "/v1/nothing", "", away.with()...)

		want[any](t, proxied, http.StatusOK, "GET", "/v1/webhooks", "", away.with("X-Forwarded-For", "10.1.1.1, ::ffff:192.0.2.7")...)
		for _, forwarded := range []string{"192.0.2.7, 10.1.1.1", "192.0.2.7, unknown", ""} {
			refused(t, proxied, http.StatusForbidden, "forbidden", "GET", "/v1/webhooks", "", away.with("X-Forwarded-For", forwarded)...)
		}
	})
	t.Run("OfAWebhookHoldForDirectSubmits", func(t *testing.T) {
		t.Parallel()
		w := newWebhook(t, direct, "cidrs", `,"allowed_cidrs":["192.0.2.0/24"]`)
		one, raw := submitBody(`"webhook_id":"`+w.ID.String()+`"`, `1`), "/v1/webhooks/"+w.ID.String()+"/events?type=a"
		for _, b := range []*testBundle{direct, proxied} {
			p, _ := refused(t, b, http.StatusForbidden, "forbidden", "POST", "/v1/events", one)
			if p.Detail != "Events may not be submitted to the webhook from 127.0.0.1." {
				t.Errorf("refused with %q", p.Detail)
			}
			refused(t, b, http.StatusForbidden, "forbidden", "POST", raw, "x")
			got, _ := want[acceptedEvent](t, b, http.StatusAccepted, "POST", "/v1/events", submitBody(`"tenant":"cidrs"`, `1`))
			if len(got.Deliveries) != 1 {
				t.Errorf("fan-out makes %d deliveries", len(got.Deliveries))
			}
		}
		want[any](t, proxied, http.StatusAccepted, "POST", "/v1/events", one, "X-Forwarded-For", "192.0.2.255")
		want[any](t, proxied, http.StatusAccepted, "POST", raw, "x", "X-Forwarded-For", "192.0.2.0")
		refused(t, direct, http.StatusForbidden, "forbidden", "POST", "/v1/events", one, "X-Forwarded-For", "192.0.2.255")
	})
}

package webhook_test

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestKeyText(t *testing.T) {
	t.Parallel()

	t.Run("IsFoundByItsHash", func(t *testing.T) {
		t.Parallel()
		text, other := webhook.NewKeyText(), webhook.NewKeyText()
		if text == other || !strings.HasPrefix(text.Reveal(), "fhk_") || len(text.Reveal()) != 47 {
			t.Fatalf("made %q and %q", text.Reveal(), other.Reveal())
		}
		hash, ok := webhook.HashKeyText(text.Reveal())
		if !ok || hash != sha256.Sum256([]byte(text.Reveal())) {
			t.Errorf("hash is %v, %v", hash, ok)
		}
		if parsed, err := webhook.ParseKeyHash(hash.String()); err != nil || parsed != hash {
			t.Errorf("the hash reads back as %v, %v", parsed, err)
		}
		if hint := webhook.KeyHint(text); !strings.HasPrefix(text.Reveal(), hint) || len(hint) != 10 {
			t.Errorf("hint is %q", hint)
		}
	})
	t.Run("ThatCannotBeOneIsToldWithoutLookingItUp", func(t *testing.T) {
		t.Parallel()
		good := webhook.NewKeyText().Reveal()
		for _, text := range []string{
			"", "fhk_", good[:46], good + "A", good[4:], "FHK_" + good[4:], good[:10] + "\n" + good[11:], good[:10] + "+" + good[11:],
			good[:10] + "=" + good[11:], " " + good[1:],
			"fhk_" + strings.Repeat("A", 42) + "B", // bits beyond the 32nd byte
		} {
			if _, ok := webhook.HashKeyText(text); ok {
				t.Errorf("%q passes", text)
			}
		}
	})
}

func FuzzHashKeyText(f *testing.F) {
	f.Add("")
	f.Add(webhook.NewKeyText().Reveal())
	f.Add("fhk_" + strings.Repeat("A", 43))
	f.Add("fhk_" + strings.Repeat("\n", 43))
	f.Fuzz(func(t *testing.T, text string) {
		if hash, ok := webhook.HashKeyText(text); ok && (hash != sha256.Sum256([]byte(text)) || len(text) != 47) {
			t.Errorf("%q passes with hash %v", text, hash)
		}
	})
}

func FuzzParseKeyHash(f *testing.F) {
	f.Add(strings.Repeat("0f", 32))
	f.Add(strings.Repeat("g", 64))
	f.Fuzz(func(t *testing.T, text string) {
		if hash, err := webhook.ParseKeyHash(text); err == nil && hash.String() != strings.ToLower(text) {
			t.Errorf("%q reads as %v", text, hash)
		}
	})
}

func TestCheckKey(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	good := webhook.Key{Scopes: []webhook.Scope{webhook.ScopeSubmit}}
	for name, tt := range map[string]struct {
		change func(*webhook.Key)
		want   []string
	}{
		"Good":               {func(*webhook.Key) {}, nil},
		"EveryScope":         {func(k *webhook.Key) { k.Scopes = webhook.Scopes() }, nil},
		"NoScope":            {func(k *webhook.Key) { k.Scopes = nil }, []string{"/scopes"}},
		"UnknownScope":       {func(k *webhook.Key) { k.Scopes = []webhook.Scope{"read", "root"} }, []string{"/scopes/1"}},
		"ScopeTwice":         {func(k *webhook.Key) { k.Scopes = []webhook.Scope{"read", "read"} }, []string{"/scopes/1"}},
		"TooManyScopes":      {func(k *webhook.Key) { k.Scopes = append(webhook.Scopes(), "submit", "x") }, []string{"/scopes"}},
		"EmptyTenant":        {func(k *webhook.Key) { k.Tenant = new("") }, []string{"/tenant"}},
		"LongDescription":    {func(k *webhook.Key) { k.Description = strings.Repeat("a", 1025) }, []string{"/description"}},
		"NoNetwork":          {func(k *webhook.Key) { k.AllowedCIDRs = []string{"10.0.0.0/8", "10.0.0.1"} }, []string{"/allowed_cidrs/1"}},
		"BitsBeyondItsMask":  {func(k *webhook.Key) { k.AllowedCIDRs = []string{"10.0.0.1/8"} }, []string{"/allowed_cidrs/0"}},
		"EndsNow":            {func(k *webhook.Key) { k.ExpiresAt = &now }, []string{"/expires_at"}},
		"EndsInAMicrosecond": {func(k *webhook.Key) { k.ExpiresAt = new(now.Add(time.Microsecond)) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := good
			tt.change(&k)
			var got []string
			for _, fault := range k.Check(now) {
				got = append(got, fault.Pointer)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("faults are %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPrincipal(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

	t.Run("MayDoWhatItsScopesSayAndAnAdminEverything", func(t *testing.T) {
		t.Parallel()
		for _, has := range webhook.Scopes() {
			p := webhook.Principal{Scopes: []webhook.Scope{has}}
			for _, needs := range webhook.Scopes() {
				if want := has == needs || has == webhook.ScopeAdmin; p.May(needs) != want {
					t.Errorf("with %s, may %s: %v", has, needs, !want)
				}
			}
		}
	})
	t.Run("NobodyMayDoNothing", func(t *testing.T) {
		t.Parallel()
		p := webhook.Nobody()
		for _, scope := range webhook.Scopes() {
			if p.May(scope) {
				t.Errorf("nobody may %s", scope)
			}
		}
		if p.Covers("acme") {
			t.Error("nobody covers a tenant")
		}
	})
	t.Run("CoversItsTenantOrAll", func(t *testing.T) {
		t.Parallel()
		all, one := webhook.Principal{}, webhook.Principal{Tenant: new("acme")}
		if !all.Covers("acme") || !one.Covers("acme") || one.Covers("acm") || one.Covers("Acme") || one.Covers("") {
			t.Error("it does not")
		}
	})
	t.Run("GivesAwayNothingThatItDoesNotHave", func(t *testing.T) {
		t.Parallel()
		soon, later := now.Add(time.Hour), now.Add(2*time.Hour)
		networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
		for name, tt := range map[string]struct {
			by      webhook.Principal
			key     webhook.Key
			exceeds bool
		}{
			"all for all":             {webhook.Principal{}, webhook.Key{}, false},
			"all for one":             {webhook.Principal{}, webhook.Key{Tenant: new("a")}, false},
			"one for itself":          {webhook.Principal{Tenant: new("a")}, webhook.Key{Tenant: new("a")}, false},
			"one for another":         {webhook.Principal{Tenant: new("a")}, webhook.Key{Tenant: new("b")}, true},
			"one for all":             {webhook.Principal{Tenant: new("a")}, webhook.Key{}, true},
			"no end":                  {webhook.Principal{ExpiresAt: &soon}, webhook.Key{}, true},
			"a later end":             {webhook.Principal{ExpiresAt: &soon}, webhook.Key{ExpiresAt: &later}, true},
			"the same end":            {webhook.Principal{ExpiresAt: &soon}, webhook.Key{ExpiresAt: &soon}, false},
			"everywhere":              {webhook.Principal{Networks: networks}, webhook.Key{}, true},
			"the same networks":       {webhook.Principal{Networks: networks}, webhook.Key{AllowedCIDRs: []string{"2001:db8::/32", "10.0.0.0/8"}}, false},
			"a part of a network":     {webhook.Principal{Networks: networks}, webhook.Key{AllowedCIDRs: []string{"10.1.0.0/16"}}, false},
			"a part in another form":  {webhook.Principal{Networks: networks}, webhook.Key{AllowedCIDRs: []string{"::ffff:10.1.0.0/112"}}, false},
			"a wider network":         {webhook.Principal{Networks: networks}, webhook.Key{AllowedCIDRs: []string{"10.0.0.0/7"}}, true},
			"one within, one without": {webhook.Principal{Networks: networks}, webhook.Key{AllowedCIDRs: []string{"10.0.0.0/9", "11.0.0.0/9"}}, true},
		} {
			if got := tt.by.Exceeds(&tt.key); (got != "") != tt.exceeds {
				t.Errorf("%s: %q", name, got)
			}
		}
	})
}

func TestAllowsAddr(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cidrs, addr string
		allowed     bool
	}{
		{"", "192.0.2.1", true},
		{"", "", true},
		{"10.0.0.0/8", "", false},
		{"0.0.0.0/0", "", false},
		{"10.0.0.0/8", "10.255.255.255", true},
		{"10.0.0.0/8", "11.0.0.0", false},
		{"10.0.0.0/8", "::ffff:10.0.0.1", true},
		{"::ffff:10.0.0.0/104", "10.0.0.1", true},
		{"::ffff:10.0.0.0/104", "::ffff:11.0.0.1", false},
		{"::ffff:0.0.0.0/96", "192.0.2.1", true},
		{"10.0.0.0/8", "::10.0.0.1", false},
		{"::/0", "10.0.0.1", false}, // IPv4 is not a part of IPv6
		{"fe80::/10", "fe80::1%eth0", true},
		{"192.0.2.7/32,2001:db8::/32", "2001:db8::1", true},
		{"192.0.2.7/32,2001:db8::/32", "192.0.2.8", false},
	} {
		var texts []string
		if tt.cidrs != "" {
			texts = strings.Split(tt.cidrs, ",")
		}
		if faults := webhook.CheckCIDRs("", texts); len(faults) > 0 {
			t.Errorf("%s: %v", tt.cidrs, faults)
		}
		networks, err := webhook.ParseCIDRs(texts)
		if err != nil {
			t.Fatal(err)
		}
		var addr netip.Addr
		if tt.addr != "" {
			addr = netip.MustParseAddr(tt.addr)
		}
		if got := webhook.AllowsAddr(networks, addr); got != tt.allowed {
			t.Errorf("%s in %s: %v", tt.addr, tt.cidrs, got)
		}
	}
	if _, err := webhook.ParseCIDRs([]string{"10.0.0.1"}); err == nil {
		t.Error("an address passes as a network")
	}
}

// An address in either of its forms is judged alike.
func TestTheFormOfAnAddressMakesNoDifference(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		raw := [4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr"))
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "network"))),
			rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
		mapped := netip.PrefixFrom(netip.AddrFrom16(network.Addr().As16()), 96+network.Bits())
		plain := netip.AddrFrom4(raw)
		want := network.Contains(plain)
		for _, cidr := range []string{network.String(), mapped.String()} {
			networks, err := webhook.ParseCIDRs([]string{cidr})
			if err != nil {
				t.Fatal(err)
			}
			for _, addr := range []netip.Addr{plain, netip.AddrFrom16(plain.As16())} {
				if webhook.AllowsAddr(networks, addr) != want {
					t.Errorf("%v in %s: %v, want %v", addr, cidr, !want, want)
				}
			}
		}
	})
}

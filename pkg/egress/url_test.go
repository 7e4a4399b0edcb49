package egress_test

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/fairhook/fairhook/pkg/egress"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func newGuard(t testing.TB, cfg egress.Config) *egress.Guard {
	t.Helper()
	guard, err := egress.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(guard.Client().CloseIdleConnections)
	return guard
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestCheckURLAccepts(t *testing.T) {
	t.Parallel()
	guard := newGuard(t, egress.Config{})
	for name, raw := range map[string]string{
		"AnOrdinaryURL":          "https://example.com/hooks?a=b&c=%20d",
		"PlainHTTP":              "http://example.com",
		"AnyPort":                "https://example.com:8443/hooks",
		"TheHighestPort":         "https://example.com:65535",
		"UpperCase":              "HTTPS://EXAMPLE.COM/Hooks",
		"UnderscoresInNames":     "https://my_hook.example.com/",
		"NumbersInNames":         "https://3com.example/1.2.3.4",
		"ANumericLabelInside":    "https://127.0.0.1.example.com/",
		"InternationalNames":     "https://bücher.example/",
		"TheirASCIIForm":         "https://xn--bcher-kva.example/",
		"PublicIPv4":             "https://93.184.216.34/",
		"PublicIPv6":             "https://[2606:2800:220:1:248:1893:25c8:1946]:8443/",
		"MappedPublicIPv4":       "https://[::ffff:93.184.216.34]/",
		"TranslatedPublicIPv4":   "https://[64:ff9b::93.184.216.34]/",
		"AnAtSignInThePath":      "https://example.com/@user",
		"NamesThatOnlyLookLocal": "https://localhost.example.com/",
		"TheLongestURL":          "https://example.com/" + strings.Repeat("a", webhook.MaxURLLength-len("https://example.com/")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := guard.CheckURL(raw); err != nil {
				t.Errorf("%s: %v", raw, err)
			}
		})
	}
}

func TestCheckURLRefuses(t *testing.T) {
	t.Parallel()
	guard := newGuard(t, egress.Config{})
	bad, blocked := egress.ErrBadURL, egress.ErrBlocked
	for name, c := range map[string]struct {
		raw  string
		want error
	}{
		"NoURL":                       {"", bad},
		"ARelativeURL":                {"/hooks", bad},
		"NoScheme":                    {"example.com/hooks", bad},
		"ASchemelessAuthority":        {"//example.com/hooks", bad},
		"FTP":                         {"ftp://example.com/", bad},
		"Files":                       {"file:///etc/passwd", bad},
		"Gopher":                      {"gopher://127.0.0.1:6379/_PING", bad},
		"AnOpaqueURL":                 {"http:example.com", bad},
		"NoHost":                      {"http:///hooks", bad},
		"APortWithoutAHost":           {"http://:80/", bad},
		"OneByteTooMany":              {"https://example.com/" + strings.Repeat("a", webhook.MaxURLLength), bad},
		"AUserName":                   {"https://user@example.com/", bad},
		"APassword":                   {"https://user:secret@example.com/", bad},
		"AnEmptyUserName":             {"https://@example.com/", bad},
		"AHostDisguisedAsAUser":       {"https://example.com@127.0.0.1/", bad},
		"ABackslash":                  {`http://example.com\@127.0.0.1/`, bad},
		"AFragment":                   {"https://example.com/#top", bad},
		"AnEmptyFragment":             {"https://example.com/#", bad},
		"LeadingSpace":                {" https://example.com/", bad},
		"TrailingSpace":               {"https://example.com/ ", bad},
		"ALineBreak":                  {"https://example.com/\r\nHost: x", bad},
		"ATabInTheHost":               {"https://exa\tmple.com/", bad},
		"NUL":                         {"https://example.com/\x00", bad},
		"BytesThatAreNotUTF8":         {"https://example.com/\xff", bad},
		"ABadEscape":                  {"https://example.com/%zz", bad},
		"EscapesInTheHost":            {"https://%31%32%37.0.0.1/", bad},
		"AnEscapedDot":                {"http://127%2e0.0.1/", bad},
		"AnEscapedFullWidthDot":       {"http://127%EF%BC%8E0.0.1/", blocked},
		"PortZero":                    {"https://example.com:0/", bad},
		"APortTooHigh":                {"https://example.com:65536/", bad},
		"APortThatIsNoNumber":         {"https://example.com:http/", bad},
		"ASignedPort":                 {"https://example.com:+80/", bad},
		"AnEmptyPort":                 {"https://example.com:/", bad},
		"ATrailingDot":                {"https://example.com./", bad},
		"LoopbackWithATrailingDot":    {"http://127.0.0.1./", bad},
		"LocalhostWithATrailingDot":   {"http://localhost./", bad},
		"EmptyLabels":                 {"https://example..com/", bad},
		"ALabelOver63Bytes":           {"https://" + strings.Repeat("a", 64) + ".com/", bad},
		"ANameOver253Bytes":           {"https://" + strings.Repeat("a23456789.", 26) + "com/", bad},
		"CharactersOutsideNames":      {"https://exa$mple.com/", bad},
		"AZoneInTheAddress":           {"http://[fe80::1%25eth0]/", bad},
		"AZoneOnAPublicAddress":       {"http://[2606:2800:220:1::1%25eth0]/", bad},
		"IPv6WithoutBrackets":         {"http://::1/", bad},
		"IPv4InBrackets":              {"http://[127.0.0.1]/", bad},
		"ANameInBrackets":             {"http://[localhost]/", bad},
		"UnclosedBrackets":            {"http://[::1/", bad},
		"TextAfterBrackets":           {"http://[::1]x/", bad},
		"ADecimalAddress":             {"http://2130706433/", bad},
		"AnOctalAddress":              {"http://0177.0.0.1/", bad},
		"AHexadecimalAddress":         {"http://0x7f000001/", bad},
		"AHexadecimalLastLabel":       {"http://127.0.0.0x1/", bad},
		"AnEmptyHexadecimalLabel":     {"http://1.0x/", bad},
		"AShortAddress":               {"http://127.1/", bad},
		"ALongAddress":                {"http://1.2.3.4.5/", bad},
		"AnAddressOutOfRange":         {"http://256.0.0.1/", bad},
		"ZeroAsAnAddress":             {"http://0/", bad},
		"LeadingZerosInAnAddress":     {"http://127.000.000.001/", bad},
		"ANameThatEndsInANumber":      {"http://example.1/", bad},
		"FullWidthDigits":             {"http://１２７.０.０.１/", blocked},
		"IdeographicDots":             {"http://127。0。0。1/", blocked},
		"CircledDigits":               {"http://①②⑦.⓪.⓪.①/", blocked},
		"AFullWidthName":              {"http://ｌｏｃａｌｈｏｓｔ/", blocked},
		"ASoftHyphenInAName":          {"http://local\u00adhost/", blocked},
		"AZeroWidthSpaceInAName":      {"http://local\u200bhost/", blocked},
		"ARightToLeftMark":            {"http://exam\u202eple.com/", bad},
		"Localhost":                   {"http://localhost/", blocked},
		"LocalhostInUpperCase":        {"http://LOCALHOST:8080/", blocked},
		"NamesBelowLocalhost":         {"http://db.localhost/", blocked},
		"Loopback":                    {"http://127.0.0.1/", blocked},
		"OtherLoopback":               {"http://127.255.255.254:8080/", blocked},
		"TheUnspecifiedAddress":       {"http://0.0.0.0/", blocked},
		"CloudMetadata":               {"http://169.254.169.254/latest/meta-data/", blocked},
		"AzureWireServer":             {"http://168.63.129.16/", blocked},
		"AlibabaMetadata":             {"http://100.100.100.200/", blocked},
		"TenSlashEight":               {"https://10.1.2.3/", blocked},
		"IPv6Loopback":                {"http://[::1]/", blocked},
		"IPv6Unspecified":             {"http://[::]/", blocked},
		"IPv6LinkLocal":               {"http://[fe80::1]/", blocked},
		"IPv6UniqueLocal":             {"http://[fd00:ec2::254]/", blocked},
		"IPv6Multicast":               {"http://[ff02::1]/", blocked},
		"MappedLoopback":              {"http://[::ffff:127.0.0.1]/", blocked},
		"MappedLoopbackInHexadecimal": {"http://[::ffff:7f00:1]/", blocked},
		"CompatibleLoopback":          {"http://[::127.0.0.1]/", blocked},
		"TranslatedLoopback":          {"http://[64:ff9b::7f00:1]/", blocked},
		"TranslatedMetadata":          {"http://[64:ff9b::169.254.169.254]/", blocked},
		"LocallyTranslatedLoopback":   {"http://[64:ff9b:1::127.0.0.1]/", blocked},
		"LocallyTranslatedPublicIPv4": {"http://[64:ff9b:1::93.184.216.34]/", blocked},
		"LoopbackBehind6to4":          {"http://[2002:7f00:1::]/", blocked},
		"PublicIPv4Behind6to4":        {"http://[2002:5db8:d822::1]/", blocked},
		"Teredo":                      {"http://[2001:0:5db8:d822::f5ff:fffe]/", blocked},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := guard.CheckURL(c.raw)
			if !errors.Is(err, c.want) {
				t.Fatalf("%s: got %v, want %v", c.raw, err, c.want)
			}
			var urlError *egress.URLError
			if !errors.As(err, &urlError) || errors.Is(err, bad) == errors.Is(err, blocked) {
				t.Fatalf("%#v is not one kind of URLError", err)
			}
			if !strings.HasPrefix(err.Error(), "must ") || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "127.0.0.1") {
				t.Errorf("detail %q", err)
			}
		})
	}
}

func TestCheckURLUnderRequireHTTPS(t *testing.T) {
	t.Parallel()
	guard := newGuard(t, egress.Config{RequireHTTPS: true})
	if err := guard.CheckURL("http://example.com/"); !errors.Is(err, egress.ErrBadURL) {
		t.Errorf("http: got %v", err)
	}
	if err := guard.CheckURL("https://example.com/"); err != nil {
		t.Errorf("https: got %v", err)
	}
}

func TestCheckURLWithAnAllowList(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		allow   []netip.Prefix
		raw     string
		allowed bool
	}{
		"LetsAListedAddressThrough":          {prefixes("127.0.0.0/8"), "http://127.0.0.1:8080/", true},
		"RefusesOthersStill":                 {prefixes("127.0.0.0/8"), "http://10.0.0.1/", false},
		"KnowsAMappedAddressByItsIPv4":       {prefixes("127.0.0.0/8"), "http://[::ffff:127.0.0.1]/", true},
		"KnowsATranslatedAddressByItsIPv4":   {prefixes("10.0.0.0/8"), "http://[64:ff9b::10.0.0.1]/", true},
		"LetsLocalhostThroughWithIPv4":       {prefixes("127.0.0.0/8"), "http://localhost:8080/", true},
		"LetsLocalhostThroughWithIPv6":       {prefixes("::1/128"), "http://app.localhost/", true},
		"RefusesLocalhostWithoutLoopback":    {prefixes("10.0.0.0/8"), "http://localhost/", false},
		"TakesAPrefixWithHostBits":           {prefixes("10.1.2.3/8"), "http://10.9.9.9/", true},
		"TakesAMappedPrefix":                 {prefixes("::ffff:10.0.0.0/104"), "http://10.9.9.9/", true},
		"TakesIPv6Networks":                  {prefixes("fd00::/8"), "http://[fd12::1]/", true},
		"RefusesZonesThoughListed":           {prefixes("fe80::/10"), "http://[fe80::1%25eth0]/", false},
		"RefusesOtherSpellingsThoughListed":  {prefixes("127.0.0.0/8"), "http://2130706433/", false},
		"DoesNotOpenIPv4ThroughAnIPv6Prefix": {prefixes("::/0"), "http://10.0.0.1/", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := newGuard(t, egress.Config{AllowPrivate: c.allow}).CheckURL(c.raw)
			if (err == nil) != c.allowed {
				t.Errorf("%s: %v", c.raw, err)
			}
		})
	}
}

func TestTargetIsOneSpelling(t *testing.T) {
	t.Parallel()
	for want, spellings := range map[string][]string{
		"example.com:443":           {"https://example.com", "https://EXAMPLE.com/hooks?a=b", "https://example.com:443/", "http://example.com:443/"},
		"example.com:80":            {"http://example.com/", "http://example.com:80"},
		"example.com:8443":          {"https://example.com:8443"},
		"xn--bcher-kva.example:443": {"https://bücher.example/", "https://xn--bcher-kva.example", "https://BÜCHER.example:443", "https://b%C3%BCcher.example/"},
		"93.184.216.34:443":         {"https://93.184.216.34", "https://[::ffff:93.184.216.34]/", "https://[::ffff:5db8:d822]:443", "https://[64:ff9b::5db8:d822]/"},
		"[2606:2800:220::1]:80":     {"http://[2606:2800:220::1]", "http://[2606:2800:0220:0:0:0:0:1]:80/"},
		"":                          {"", "/hooks", "http://:80/", "https://exa mple/", "https://a..b/", "http://[::1"},
	} {
		for _, raw := range spellings {
			if got := egress.Target(raw); got != want {
				t.Errorf("%s goes to %q, want %q", raw, got, want)
			}
		}
	}
}

func TestNewReportsEveryFaultAtOnce(t *testing.T) {
	t.Parallel()
	_, err := egress.New(egress.Config{AllowPrivate: []netip.Prefix{{}}, DialTimeout: -1, MaxIdleConns: -1})
	if err == nil {
		t.Fatal("was accepted")
	}
	for _, part := range []string{"allowed network", "dial timeout", "idle connections"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, raw := range []string{
		"", "https://example.com/", "http://[::1%25lo]:80/", "http://0x7f.1/", "http://１２７.１/", "http://a@b:c@d/",
		"http://[::ffff:1.2.3.4]:99/x?y#z", "http://xn--/", "http://%e2%80%8b/", "http://1.2.3.4.:80",
	} {
		f.Add(raw)
	}
	guard := newGuard(f, egress.Config{})
	f.Fuzz(func(t *testing.T, raw string) {
		err := guard.CheckURL(raw)
		if err != nil {
			if errors.Is(err, egress.ErrBadURL) == errors.Is(err, egress.ErrBlocked) {
				t.Fatalf("%q: %v is not one kind of refusal", raw, err)
			}
			return
		}
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || (u.Scheme != "http" && u.Scheme != "https") {
			t.Fatalf("%q was accepted as %+v, %v", raw, u, err)
		}
		host := u.Hostname()
		if strings.EqualFold(host, "localhost") || strings.ContainsAny(host, "%\\@ ") {
			t.Fatalf("%q was accepted", raw)
		}
		// The standard library's own idea of an address that is not public.
		if addr, err := netip.ParseAddr(host); err == nil {
			addr = addr.Unmap()
			if addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() || addr.Zone() != "" {
				t.Fatalf("%q was accepted", raw)
			}
		}
	})
}

package egress

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// special are the rows of the IANA special-purpose address registries (RFC 6890),
// as they stood in November 2026, those that are globally reachable included:
// nobody's webhook is at an anycast address of a protocol's.
var special = []struct{ name, prefix string }{
	// The IANA IPv4 special-purpose address registry.
	{`"This network" (RFC 791)`, "0.0.0.0/8"},
	{"This host on this network (RFC 1122)", "0.0.0.0/32"},
	{"Private use (RFC 1918)", "10.0.0.0/8"},
	{"Shared address space (RFC 6598)", "100.64.0.0/10"},
	{"Loopback (RFC 1122)", "127.0.0.0/8"},
	{"Link local (RFC 3927)", "169.254.0.0/16"},
	{"Private use (RFC 1918)", "172.16.0.0/12"},
	{"IETF protocol assignments (RFC 6890)", "192.0.0.0/24"},
	{"IPv4 service continuity (RFC 7335)", "192.0.0.0/29"},
	{"IPv4 dummy address (RFC 7600)", "192.0.0.8/32"},
	{"Port Control Protocol anycast (RFC 7723)", "192.0.0.9/32"},
	{"TURN anycast (RFC 8155)", "192.0.0.10/32"},
	{"NAT64/DNS64 discovery (RFC 7050)", "192.0.0.170/32"},
	{"NAT64/DNS64 discovery (RFC 7050)", "192.0.0.171/32"},
	{"Documentation, TEST-NET-1 (RFC 5737)", "192.0.2.0/24"},
	{"AS112-v4 (RFC 7535)", "192.31.196.0/24"},
	{"AMT (RFC 7450)", "192.52.193.0/24"},
	{"Deprecated 6to4 relay anycast (RFC 7526)", "192.88.99.0/24"},
	{"6a44 relay anycast (RFC 6751)", "192.88.99.2/32"},
	{"Private use (RFC 1918)", "192.168.0.0/16"},
	{"Direct delegation AS112 service (RFC 7534)", "192.175.48.0/24"},
	{"Benchmarking (RFC 2544)", "198.18.0.0/15"},
	{"Documentation, TEST-NET-2 (RFC 5737)", "198.51.100.0/24"},
	{"Documentation, TEST-NET-3 (RFC 5737)", "203.0.113.0/24"},
	{"Reserved (RFC 1112)", "240.0.0.0/4"},
	{"Limited broadcast (RFC 919)", "255.255.255.255/32"},

	// The IPv6 one. Missing are two rows that stand for IPv4 addresses, and are
	// judged as those: IPv4-mapped (::ffff:0:0/96) and IPv4-IPv6 translation
	// (64:ff9b::/96).
	{"Loopback (RFC 4291)", "::1/128"},
	{"Unspecified (RFC 4291)", "::/128"},
	{"IPv4-IPv6 translation for local use (RFC 8215)", "64:ff9b:1::/48"},
	{"Discard only (RFC 6666)", "100::/64"},
	{"Dummy prefix (RFC 9780)", "100:0:0:1::/64"},
	{"IETF protocol assignments (RFC 2928)", "2001::/23"},
	{"Teredo (RFC 4380)", "2001::/32"},
	{"Port Control Protocol anycast (RFC 7723)", "2001:1::1/128"},
	{"TURN anycast (RFC 8155)", "2001:1::2/128"},
	{"DNS-SD service registration anycast (RFC 9665)", "2001:1::3/128"},
	{"Benchmarking (RFC 5180)", "2001:2::/48"},
	{"AMT (RFC 7450)", "2001:3::/32"},
	{"AS112-v6 (RFC 7535)", "2001:4:112::/48"},
	{"Deprecated ORCHID (RFC 4843)", "2001:10::/28"},
	{"ORCHIDv2 (RFC 7343)", "2001:20::/28"},
	{"Drone remote ID (RFC 9374)", "2001:30::/28"},
	{"Documentation (RFC 3849)", "2001:db8::/32"},
	{"6to4 (RFC 3056)", "2002::/16"},
	{"Direct delegation AS112 service (RFC 7534)", "2620:4f:8000::/48"},
	{"Documentation (RFC 9637)", "3fff::/20"},
	{"Segment routing SIDs (RFC 9602)", "5f00::/16"},
	{"Unique local (RFC 4193)", "fc00::/7"},
	{"Link local unicast (RFC 4291)", "fe80::/10"},

	// Beside the registries.
	{"IPv4 multicast (RFC 1112)", "224.0.0.0/4"},
	{"IPv6 multicast (RFC 4291)", "ff00::/8"},
	{"Deprecated site local (RFC 3879)", "fec0::/10"},
	{"Deprecated IPv4-compatible (RFC 4291)", "::/96"},
	{"Metadata of AWS, Azure, Google and others", "169.254.169.254/32"},
	{"Container credentials of AWS", "169.254.170.2/32"},
	{"Metadata of AWS over IPv6", "fd00:ec2::254/128"},
	{"Metadata of Google over IPv6", "fd20:ce::254/128"},
	{"Metadata of Alibaba", "100.100.100.200/32"},
	{"Metadata of Oracle", "192.0.0.192/32"},
	{"Wire server of Azure", "168.63.129.16/32"},
}

func TestDialRefusesTheSpecialPurposeRegistries(t *testing.T) {
	t.Parallel()
	guard, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range special {
		prefix := netip.MustParsePrefix(row.prefix)
		t.Run(row.prefix+" "+row.name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				addr := within(t, prefix)
				forms := []netip.Addr{addr}
				if addr.Is4() {
					raw := addr.As4()
					forms = append(forms, netip.AddrFrom16(addr.As16()), // mapped
						netip.AddrFrom16([16]byte{0x00, 0x64, 0xff, 0x9b, 12: raw[0], 13: raw[1], 14: raw[2], 15: raw[3]}),
						netip.AddrFrom16([16]byte{0x00, 0x64, 0xff, 0x9b, 0, 1, 12: raw[0], 13: raw[1], 14: raw[2], 15: raw[3]}),
						netip.AddrFrom16([16]byte{0x20, 0x02, raw[0], raw[1], raw[2], raw[3]}),
						netip.AddrFrom16([16]byte{0x20, 0x01, 12: ^raw[0], 13: ^raw[1], 14: ^raw[2], 15: ^raw[3]}),
						netip.AddrFrom16([16]byte{12: raw[0], 13: raw[1], 14: raw[2], 15: raw[3]}))
				}
				for _, form := range forms {
					network := "tcp6"
					if form.Is4() {
						network = "tcp4"
					}
					if err := guard.checkDial(network, netip.AddrPortFrom(form, 443).String()); !errors.Is(err, ErrBlocked) {
						t.Fatalf("%s: got %v", form, err)
					}
				}
			})
		})
	}
}

// within draws an address of a prefix.
func within(t *rapid.T, prefix netip.Prefix) netip.Addr {
	raw := prefix.Addr().AsSlice()
	for i := prefix.Bits(); i < len(raw)*8; i++ {
		if rapid.Bool().Draw(t, "bit") {
			raw[i/8] |= 0x80 >> (i % 8)
		}
	}
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

func TestDialAdmitsPublicAddresses(t *testing.T) {
	t.Parallel()
	guard, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{
		"1.1.1.1:443", "8.8.8.8:80", "172.15.255.255:1", "172.32.0.0:1", "100.63.255.255:1", "100.128.0.0:1", "223.255.255.255:65535",
		"[2606:4700::1111]:443", "[2a00::1]:443", "[2400:cb00::1]:80", "[64:ff9b::808:808]:443", "[::ffff:8.8.8.8]:443",
	} {
		network := "tcp4"
		if address[0] == '[' {
			network = "tcp6"
		}
		if err := guard.checkDial(network, address); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestDialRefusesWhatIsNotTCP(t *testing.T) {
	t.Parallel()
	guard, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{"udp4", "8.8.8.8:53"}, {"unix", "/run/postgresql"}, {"tcp4", "not an address"}, {"tcp6", "[fe80::1%lo]:80"}} {
		if err := guard.checkDial(c[0], c[1]); !errors.Is(err, ErrBlocked) {
			t.Errorf("%s %s: got %v", c[0], c[1], err)
		}
	}
}

func TestARefusalIsRecognisableThroughTheDialer(t *testing.T) {
	t.Parallel()
	guard, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := guard.transport.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err == nil {
		_ = conn.Close()
		t.Fatal("loopback was connected to")
	}
	var op *net.OpError
	if !errors.Is(err, ErrBlocked) || !errors.As(err, &op) {
		t.Errorf("got %v", err)
	}
}

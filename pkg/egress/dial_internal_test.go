package egress

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// The IANA special-purpose address registries (RFC 6890; entries that are not
// globally reachable, and the multicast and reserved spaces beside them).
var special = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32", "168.63.129.16/32",
	"::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/32", "2001:2::/48", "2001:10::/28",
	"2001:20::/28", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
}

func TestDialRefusesTheSpecialPurposeRegistries(t *testing.T) {
	t.Parallel()
	guard, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range special {
		prefix := netip.MustParsePrefix(text)
		t.Run(text, func(t *testing.T) {
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

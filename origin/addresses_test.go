package origin

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

// SetResolver has the store resolve names so.
func (e *External) SetResolver(r *net.Resolver) { e.dial.Resolver = r }

// Dialer is what the store connects to a host and port with.
func (e *External) Dialer(target string) *net.Dialer { return e.dialer(target) }

func TestJudgeAddress(t *testing.T) {
	for _, tt := range []struct {
		addr string
		need grant
		what string // part of what it is called
	}{
		{"8.8.8.8", grantAny, ""},
		{"93.184.216.34", grantAny, ""},
		{"1.0.0.0", grantAny, ""},
		{"223.255.255.255", grantAny, ""},
		{"2606:4700::1111", grantAny, ""},
		{"2a00:1450:4001::200e", grantAny, ""},
		{"2001:200::1", grantAny, ""}, // the first block behind the special-purpose ones

		{"10.0.0.0", grantName, "private"},
		{"10.255.255.255", grantName, "private"},
		{"9.255.255.255", grantAny, ""},
		{"11.0.0.0", grantAny, ""},
		{"172.15.255.255", grantAny, ""},
		{"172.16.0.0", grantName, "private"},
		{"172.31.255.255", grantName, "private"},
		{"172.32.0.0", grantAny, ""},
		{"192.168.0.1", grantName, "private"},
		{"192.167.255.255", grantAny, ""},
		{"192.169.0.0", grantAny, ""},
		{"100.63.255.255", grantAny, ""},
		{"100.64.0.0", grantName, "shared"},
		{"100.127.255.255", grantName, "shared"},
		{"100.128.0.0", grantAny, ""},
		{"127.0.0.1", grantName, "loopback"},
		{"127.255.255.254", grantName, "loopback"},
		{"192.0.0.1", grantName, "reserved"},
		{"192.0.1.0", grantAny, ""},
		{"192.0.2.1", grantName, "documentation"},
		{"198.51.100.1", grantName, "documentation"},
		{"203.0.113.1", grantName, "documentation"},
		{"198.18.0.1", grantName, "benchmark"},
		{"198.19.255.255", grantName, "benchmark"},
		{"198.20.0.0", grantAny, ""},
		{"192.88.99.1", grantName, "reserved"},
		{"240.0.0.1", grantName, "reserved"},
		{"255.255.255.254", grantName, "reserved"},
		{"255.255.255.255", grantNever, "broadcast"},
		{"0.0.0.0", grantNever, "unspecified"},
		{"0.1.2.3", grantNever, "unspecified"},
		{"224.0.0.1", grantNever, "multicast"},
		{"239.255.255.255", grantNever, "multicast"},
		{"169.254.0.1", grantLiteral, "link-local"},
		{"169.254.169.254", grantLiteral, "link-local"},
		{"169.254.170.2", grantLiteral, "link-local"},
		{"100.100.100.200", grantLiteral, "metadata"},
		{"100.100.100.201", grantName, "shared"},
		{"168.63.129.16", grantLiteral, "metadata"},
		{"192.0.0.192", grantLiteral, "metadata"},

		{"::", grantNever, "unspecified"},
		{"::1", grantName, "loopback"},
		{"::2", grantLiteral, "reserved"},
		{"::127.0.0.1", grantLiteral, "reserved"}, // IPv4-compatible
		{"::ffff:0:127.0.0.1", grantLiteral, "reserved"},
		{"100::1", grantLiteral, "reserved"},
		{"4000::1", grantLiteral, "reserved"},
		{"5f00::1", grantLiteral, "reserved"},
		{"fc00::1", grantName, "private"},
		{"fdff:ffff::1", grantName, "private"},
		{"fec0::1", grantName, "private"},
		{"fe80::1", grantLiteral, "link-local"},
		{"febf::1", grantLiteral, "link-local"},
		{"fe80::a9fe:a9fe", grantLiteral, "link-local"},
		{"ff02::1", grantNever, "multicast"},
		{"fd00:ec2::254", grantLiteral, "metadata"},
		{"fd00:ec2::23", grantLiteral, "metadata"},
		{"fd20:ce::254", grantLiteral, "metadata"},
		{"fd00:42::42", grantLiteral, "metadata"},
		{"fd00:a9fe:a9fe::1", grantLiteral, "metadata"},
		{"2001:db8::1", grantName, "documentation"},
		{"3fff::1", grantName, "documentation"},
		{"2001:2::1", grantName, "special"},
		{"2001:10::1", grantName, "special"},

		{"fe80::1%eth0", grantLiteral, "link-local"}, // a zone hides an address from every prefix
		{"fd00::1%1", grantName, "private"},
		{"::1%lo", grantName, "loopback"},
		{"2606:4700::1111%eth0", grantAny, ""},

		{"::ffff:8.8.8.8", grantAny, ""},
		{"::ffff:10.0.0.7", grantName, "private"},
		{"::ffff:7f00:1", grantName, "loopback"},
		{"::ffff:169.254.169.254", grantLiteral, "link-local"},
		{"::ffff:0.0.0.0", grantNever, "unspecified"},
		{"::ffff:10.0.0.7%eth0", grantName, "private"},

		{"64:ff9b::8.8.8.8", grantAny, ""},
		{"64:ff9b::10.0.0.7", grantName, "NAT64 form of 10.0.0.7, a private"},
		{"64:ff9b::127.0.0.1", grantName, "loopback"},
		{"64:ff9b::169.254.169.254", grantLiteral, "link-local"},
		{"64:ff9b::0.0.0.0", grantNever, "unspecified"},
		{"64:ff9b:0:0:1::8.8.8.8", grantLiteral, "reserved"}, // outside of the /96
		{"64:ff9b:1::8.8.8.8", grantName, "local NAT64"},
		{"64:ff9b:1:ffff::169.254.169.254", grantLiteral, "link-local"},

		{"2002:808:808::1", grantAny, ""},
		{"2002:a00:7::1", grantName, "6to4 form of 10.0.0.7, a private"},
		{"2002:7f00:1::", grantName, "loopback"},
		{"2002:a9fe:a9fe::1", grantLiteral, "link-local"},
		{"2002:a9fe:a9fe::1%eth0", grantLiteral, "link-local"},
		{"2002::1", grantNever, "unspecified"},

		{"2001:0:808:808:0:0:f7f7:f7f7", grantName, "special"},                                     // from 8.8.8.8, to 8.8.8.8
		{"2001:0:808:808:0:0:5601:5601", grantLiteral, "Teredo form of 169.254.169.254"},           // client
		{"2001:0:a9fe:a9fe:0:0:f7f7:f7f7", grantLiteral, "Teredo form of 169.254.169.254, a link"}, // server
		{"2001:0:808:808:0:0:ffff:ffff", grantNever, "unspecified"},
	} {
		need, what := judgeAddress(netip.MustParseAddr(tt.addr))
		if need != tt.need || !strings.Contains(what, tt.what) || (need == grantAny) != (what == "") {
			t.Errorf("%s: got %d, %q, want %d, %q", tt.addr, need, what, tt.need, tt.what)
		}
	}
	if need, _ := judgeAddress(netip.Addr{}); need != grantNever {
		t.Errorf("no address: got %d", need)
	}
}

// TestAddressForms has the forms that some programs read as an IPv4 address, and others as a name.
func TestAddressForms(t *testing.T) {
	for _, host := range []string{
		"0x7f.1", "0x7f000001", "0X7F.1", "2130706433", "017700000001", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.01", "010.0.0.5",
		"127.0.0.1.", "127.0.0.0x1", "1.2.3.4.5", "256.0.0.1", "0x", "cdn.example.0x7f", "cdn.example.7",
		"fe80::1%eth0", "::1%25lo", "[::1]", "", ".", "..", "a..b", ".a", "-a.example", "a-.example", "a b", "a/b", "a\\b", "a:b", "a@b", "*.a",
		"münchen.example", "ⓐ.example", "127。0。0。1", "１２７.0.0.1", "a\x00.example", strings.Repeat("a", 64) + ".example",
		strings.Repeat("a.", 127) + "example",
	} {
		if got, ok := canonicalHost(host); ok {
			t.Errorf("%q is taken for %q", host, got)
		}
	}
	for host, want := range map[string]string{
		"CDN.Example.COM": "cdn.example.com", "cdn.example.com.": "cdn.example.com", "localhost": "localhost", "xn--mnchen-3ya.example": "xn--mnchen-3ya.example",
		"my_bucket.example": "my_bucket.example", "7.example": "7.example", "0x7f.example": "0x7f.example", "a.1b": "a.1b",
		"127.0.0.1": "127.0.0.1", "::1": "::1", "0:0:0:0:0:0:0:1": "::1", "FD00::0001": "fd00::1", "::ffff:10.0.0.5": "10.0.0.5", "::ffff:a00:5": "10.0.0.5",
	} {
		if got, ok := canonicalHost(host); !ok || got != want {
			t.Errorf("%q: got %q, %v, want %q", host, got, ok, want)
		}
	}
}

// TestAddressOfConnection judges connections as a dialer is about to make them.
func TestAddressOfConnection(t *testing.T) {
	hosts, err := parseHostList([]string{
		"*.example.com", "intranet.example.com", "intranet.example.com:8443", "http://legacy.example.com",
		"10.0.0.5", "http://169.254.169.254", "[fe80::1]", "[fd00::1]:8443",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ target, address, want string }{
		{"cdn.example.com:443", "93.184.216.34:443", ""},
		{"cdn.example.com:443", "[2606:4700::1111]:443", ""},
		{"cdn.example.com:443", "10.0.0.7:443", "cdn.example.com resolves to 10.0.0.7, a private address; list that host by name in external proxy if it is meant"},
		{"cdn.example.com:443", "10.0.0.5:443", "private"}, // listed as itself, not for others
		{"cdn.example.com:443", "127.0.0.1:443", "list that host by name"},
		{"cdn.example.com:443", "[::ffff:127.0.0.1]:443", "loopback"},
		{"cdn.example.com:443", "[fe80::1%eth0]:443", "only that very address"},
		{"cdn.example.com:443", "169.254.169.254:443", "only that very address"},
		{"cdn.example.com:443", "0.0.0.0:443", "nothing is fetched"},
		{"intranet.example.com:443", "10.0.0.7:443", ""},
		{"intranet.example.com:8443", "10.0.0.7:8443", ""},
		{"INTRANET.example.com.:443", "10.0.0.7:443", ""},
		{"intranet.example.com:443", "127.0.0.1:443", ""},
		{"intranet.example.com:443", "[fd00::7]:443", ""},
		{"intranet.example.com:443", "[64:ff9b::10.0.0.7]:443", ""},
		{"intranet.example.com:444", "10.0.0.7:444", "private"}, // listed by name, but not with this port
		{"intranet.example.com:443", "169.254.169.254:443", "link-local"},
		{"intranet.example.com:443", "[::ffff:169.254.169.254]:443", "link-local"},
		{"intranet.example.com:443", "[64:ff9b::169.254.169.254]:443", "link-local"},
		{"intranet.example.com:443", "[fd00:ec2::254]:443", "metadata"},
		{"intranet.example.com:443", "100.100.100.200:443", "metadata"},
		{"intranet.example.com:443", "255.255.255.255:443", "broadcast"},
		{"legacy.example.com:80", "10.0.0.7:80", ""},
		{"legacy.example.com:443", "10.0.0.7:443", "private"}, // by https it is one of the wildcard's
		{"10.0.0.5:443", "10.0.0.5:443", ""},
		{"169.254.169.254:80", "169.254.169.254:80", ""},
		{"169.254.169.254:443", "169.254.169.254:443", "link-local"},
		{"[fe80::1]:443", "[fe80::1]:443", ""},
		{"[fd00::1]:8443", "[fd00::1]:8443", ""},
		{"0x7f.1:443", "127.0.0.1:443", "loopback"}, // as a C resolver reads it
		{"other.example.org:443", "10.0.0.7:443", "private"},
		{"other.example.org:443", "socket", "no address"},
		{"other.example.org", "10.0.0.7:443", "cannot be told apart"},
		{"other.example.org:x", "10.0.0.7:443", "private"},
	} {
		err := hosts.judgeConnection(tt.target, tt.address)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s at %s: got %v, want %q", tt.target, tt.address, err, tt.want)
		}
	}
}

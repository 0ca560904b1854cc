package origin

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// grant is how clearly an operator must have asked for an address before it is connected to; a later one includes those
// before it.
type grant int

const (
	grantAny     grant = iota // whatever host is allowed may be there: the address is public
	grantName                 // only a host listed by its exact name, or the address itself
	grantLiteral              // only the address itself, listed as such: no name is worth that trust
	grantNever                // nobody: there is no server at such an address, or it means another one
)

// addressBlock is a part of the address space that is not the public internet's.
type addressBlock struct {
	block netip.Prefix
	need  grant
	what  string
}

// addressBlocks are the blocks of IANA's special-purpose registries (RFC 6890), and where clouds answer machines with
// their credentials. They overlap; the strictest counts.
var addressBlocks = []addressBlock{
	{netip.MustParsePrefix("0.0.0.0/8"), grantNever, "an unspecified address"}, // Linux takes it for this machine
	{netip.MustParsePrefix("10.0.0.0/8"), grantName, "a private address"},
	{netip.MustParsePrefix("100.64.0.0/10"), grantName, "a shared address"},
	{netip.MustParsePrefix("100.100.100.200/32"), grantLiteral, "a cloud's metadata service"}, // Alibaba
	{netip.MustParsePrefix("127.0.0.0/8"), grantName, "a loopback address"},
	{netip.MustParsePrefix("168.63.129.16/32"), grantLiteral, "a cloud's metadata service"}, // Azure; the block is public
	{netip.MustParsePrefix("169.254.0.0/16"), grantLiteral, "a link-local address"},         // most clouds' metadata
	{netip.MustParsePrefix("172.16.0.0/12"), grantName, "a private address"},
	{netip.MustParsePrefix("192.0.0.0/24"), grantName, "a reserved address"},
	{netip.MustParsePrefix("192.0.0.192/32"), grantLiteral, "a cloud's metadata service"}, // Oracle
	{netip.MustParsePrefix("192.0.2.0/24"), grantName, "a documentation address"},
	{netip.MustParsePrefix("192.88.99.0/24"), grantName, "a reserved address"},
	{netip.MustParsePrefix("192.168.0.0/16"), grantName, "a private address"},
	{netip.MustParsePrefix("198.18.0.0/15"), grantName, "a benchmark address"},
	{netip.MustParsePrefix("198.51.100.0/24"), grantName, "a documentation address"},
	{netip.MustParsePrefix("203.0.113.0/24"), grantName, "a documentation address"},
	{netip.MustParsePrefix("224.0.0.0/4"), grantNever, "a multicast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), grantName, "a reserved address"},
	{netip.MustParsePrefix("255.255.255.255/32"), grantNever, "the broadcast address"},

	{netip.MustParsePrefix("::/128"), grantNever, "an unspecified address"},
	{netip.MustParsePrefix("::1/128"), grantName, "a loopback address"},
	{netip.MustParsePrefix("64:ff9b::/96"), grantAny, ""},                         // NAT64: judged by what it embeds
	{netip.MustParsePrefix("64:ff9b:1::/48"), grantName, "a local NAT64 address"}, // its length is the network's own choice
	{netip.MustParsePrefix("2001::/23"), grantName, "a special-purpose address"},  // Teredo, ORCHID, benchmarks
	{netip.MustParsePrefix("2001:db8::/32"), grantName, "a documentation address"},
	{netip.MustParsePrefix("3fff::/20"), grantName, "a documentation address"},
	{netip.MustParsePrefix("fc00::/7"), grantName, "a private address"},
	{netip.MustParsePrefix("fd00:42::42/128"), grantLiteral, "a cloud's metadata service"},       // Scaleway
	{netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"), grantLiteral, "a cloud's metadata service"}, // Akamai
	{netip.MustParsePrefix("fd00:ec2::/32"), grantLiteral, "a cloud's metadata service"},         // AWS
	{netip.MustParsePrefix("fd20:ce::254/128"), grantLiteral, "a cloud's metadata service"},      // Google
	{netip.MustParsePrefix("fe80::/10"), grantLiteral, "a link-local address"},
	{netip.MustParsePrefix("fec0::/10"), grantName, "a private address"}, // site-local: deprecated, yet routed
	{netip.MustParsePrefix("ff00::/8"), grantNever, "a multicast address"},
}

// globalUnicast is all of IPv6 that was ever given out; what lies outside and is not listed above has no business here.
var globalUnicast = netip.MustParsePrefix("2000::/3")

// embeddings are the IPv6 blocks whose addresses a router turns into IPv4 ones, and where those stand.
var embeddings = []struct {
	block    netip.Prefix
	at       []int
	inverted int // the one of them whose bits are turned round; 0 for none
	what     string
}{
	{netip.MustParsePrefix("64:ff9b::/96"), []int{12}, 0, "a NAT64 form"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), []int{12}, 0, "a NAT64 form"},
	{netip.MustParsePrefix("2002::/16"), []int{2}, 0, "a 6to4 form"},
	{netip.MustParsePrefix("2001::/32"), []int{4, 12}, 12, "a Teredo form"}, // the server, then the client
}

// judgeAddress says what it takes to connect to an address, and, if it is not public, what it is.
//
// A network may translate IPv4 under a prefix of its own (RFC 6052); no one can tell such a prefix by looking at it.
func judgeAddress(addr netip.Addr) (need grant, what string) {
	addr = addr.Unmap().WithZone("") // no prefix contains an address with a zone
	if !addr.IsValid() {
		return grantNever, "no address"
	}
	known := addr.Is4() || globalUnicast.Contains(addr)
	for _, b := range addressBlocks {
		if !b.block.Contains(addr) {
			continue
		}
		known = true
		if b.need > need {
			need, what = b.need, b.what
		}
	}
	if !known {
		return grantLiteral, "a reserved address"
	}
	for _, inner := range embedded(addr) {
		if n, w := judgeAddress(inner.addr); n > need {
			need, what = n, fmt.Sprintf("%s of %s, %s", inner.what, inner.addr, w)
		}
	}
	return need, what
}

type embeddedAddress struct {
	addr netip.Addr
	what string
}

// embedded returns the IPv4 addresses that what is sent to an IPv6 one may end up at.
func embedded(addr netip.Addr) []embeddedAddress {
	var found []embeddedAddress
	for _, e := range embeddings {
		if !e.block.Contains(addr) {
			continue
		}
		bytes := addr.As16()
		for _, at := range e.at {
			inner := [4]byte(bytes[at : at+4])
			if at == e.inverted {
				for i := range inner {
					inner[i] = ^inner[i]
				}
			}
			found = append(found, embeddedAddress{netip.AddrFrom4(inner), e.what})
		}
	}
	return found
}

// parseLiteral reads a host that is an IP address, without brackets. An IPv4 address in IPv6 clothes is an IPv4 address.
func parseLiteral(host string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Zone() != "" { // a zone is an interface of this machine, not a place on the network
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// isHostName reports that host is a name, in ASCII and lower case, without a dot at its end. What ends in a number is
// none: C resolvers and browsers read 0x7f.1, 2130706433 and 0177.0.0.1 as addresses.
func isHostName(host string) bool {
	labels := strings.Split(host, ".")
	if len(host) > 253 || slices.ContainsFunc(labels, func(label string) bool { return !isLabel(label) }) {
		return false
	}
	return !isNumber(labels[len(labels)-1])
}

// isLabel allows for the underscore: it is no host name's by the book, but object stores have them.
func isLabel(label string) bool {
	const inner = "abcdefghijklmnopqrstuvwxyz0123456789-_"
	return label != "" && len(label) <= 63 && strings.Trim(label, inner) == "" && label[0] != '-' && label[len(label)-1] != '-'
}

// isNumber reports that a last label is decimal, octal or hexadecimal (WHATWG URL, "ends in a number").
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return label != "" && strings.Trim(label, "0123456789") == ""
}

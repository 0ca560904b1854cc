package resolver

import (
	"errors"
	"strconv"
	"strings"
	"unicode"

	"github.com/Masterminds/semver/v3"
)

// maxNumber is the largest number the upstream's version library takes in any of the three places of a version
// (JavaScript's Number.MAX_SAFE_INTEGER).
const maxNumber = 1<<53 - 1

// errVersionSyntax and errVersionOverflow tell text that is no semantic version from one whose numbers are too large.
// The upstream refuses the first as a bad request and notices the second only while it decides (protocol 1.3, 1.5 row 8).
var (
	errVersionSyntax   = errors.New("not a semantic version")
	errVersionOverflow = errors.New("a number in the version is too large")
)

// version is a semantic version as far as order goes. Build metadata never matters for order and is not kept.
type version struct {
	major, minor, patch uint64
	pre                 string
}

// parseVersion reads strict semver as the upstream does: surrounding blanks are ignored, one lower-case v is allowed,
// numbers have no leading zeros. The second result is the canonical spelling.
func parseVersion(s string) (version, string, error) {
	s = strings.TrimPrefix(strings.TrimFunc(s, isBlank), "v")
	if v, ok := parsePlain(s); ok {
		return v, s, nil
	}
	parsed, err := semver.StrictNewVersion(s)
	switch {
	case errors.Is(err, strconv.ErrRange) && !lacksNumber(s):
		return version{}, s, errVersionOverflow
	case err != nil:
		return version{}, "", errVersionSyntax
	}
	v := version{parsed.Major(), parsed.Minor(), parsed.Patch(), parsed.Prerelease()}
	if v.major > maxNumber || v.minor > maxNumber || v.patch > maxNumber {
		return version{}, s, errVersionOverflow
	}
	return v, s, nil
}

// isBlank reports whether r is what JavaScript's trim takes away: Go's white space without U+0085, and U+FEFF.
func isBlank(r rune) bool { return r == '\ufeff' || r != '\u0085' && unicode.IsSpace(r) }

// lacksNumber reports an empty number in a version of three parts. The library gives up at the first number that is too
// large, before it looks at the next.
func lacksNumber(s string) bool {
	core, _, _ := strings.Cut(s, "+")
	core, _, _ = strings.Cut(core, "-")
	return strings.Contains(core+".", "..")
}

// parsePlain is the common case, three short numbers and nothing else, without an allocation.
func parsePlain(s string) (version, bool) {
	var n [3]uint64
	place, digits := 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.' && digits > 0 && place < 2:
			place, digits = place+1, 0
		case c >= '0' && c <= '9' && digits < 15 && (digits == 0 || n[place] != 0):
			n[place] = n[place]*10 + uint64(c-'0')
			digits++
		default:
			return version{}, false
		}
	}
	return version{major: n[0], minor: n[1], patch: n[2]}, place == 2 && digits > 0
}

// coerceNative turns what a device reports as its native version into strict semver (protocol 1.3). The counting of
// dots is purely textual, so "1-beta" becomes "1-beta.0.0" and fails.
func coerceNative(s string) string {
	switch {
	case s == "builtin" || s == "unknown":
		return "0.0.0"
	case strings.Count(s, ".") == 0:
		return s + ".0.0"
	case strings.Count(s, ".") == 1:
		return s + ".0"
	}
	return s
}

// compare orders a and b as semver 2.0 does.
func (a version) compare(b version) int {
	switch {
	case a.major != b.major:
		return order(a.major < b.major)
	case a.minor != b.minor:
		return order(a.minor < b.minor)
	case a.patch != b.patch:
		return order(a.patch < b.patch)
	case a.pre == b.pre:
		return 0
	case a.pre == "" || b.pre == "":
		return order(a.pre != "")
	}
	return comparePre(a.pre, b.pre)
}

func (a version) less(b version) bool { return a.compare(b) < 0 }

// comparePre orders two different pre-releases identifier by identifier (semver 2.0, point 11.4). The library's own
// comparison allocates and takes numbers beyond 64 bits for text.
func comparePre(a, b string) int {
	for {
		var x, y string
		var moreA, moreB bool
		x, a, moreA = strings.Cut(a, ".")
		y, b, moreB = strings.Cut(b, ".")
		if x != y {
			return compareIdentifiers(x, y)
		}
		if !moreA || !moreB {
			return order(!moreA)
		}
	}
}

func compareIdentifiers(x, y string) int {
	switch numX, numY := numeric(x), numeric(y); {
	case numX != numY:
		return order(numX)
	case numX && len(x) != len(y):
		return order(len(x) < len(y))
	}
	return strings.Compare(x, y)
}

func numeric(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func order(less bool) int {
	if less {
		return -1
	}
	return 1
}

// gate is the smallest version per major of the plugin's maintained lines that has an ability. A major that is not
// named always has it: newer lines do, and Electron calls itself 0.0.1.
type gate [4]version // majors 5, 6, 7, 8

func (g *gate) passes(v version) bool {
	if v.major < 5 || v.major > 8 {
		return true
	}
	return !v.less(g[v.major-5])
}

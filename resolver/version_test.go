package resolver

import (
	"errors"
	"strings"
	"testing"
)

// The table of protocol 1.3, through the parser as a device's body takes it, with the edges of each of its rules.
func TestNativeVersion(t *testing.T) {
	tests := []struct {
		name, sent string
		used       string // "" if the check is refused with semver_error
		overflow   bool   // too large to compare
	}{
		{name: "plain", sent: "1.2.3", used: "1.2.3"},
		{name: "zeros", sent: "0.0.0", used: "0.0.0"},
		{name: "one part", sent: "1", used: "1.0.0"},
		{name: "two parts", sent: "1.2", used: "1.2.0"},
		{name: "calendar version of two parts", sent: "2024.10", used: "2024.10.0"},
		{name: "v", sent: "v1.2.3", used: "1.2.3"},
		{name: "v and one part", sent: "v1", used: "1.0.0"},
		{name: "v and two parts", sent: "v1.2", used: "1.2.0"},
		{name: "blanks around", sent: " 1.2.3 ", used: "1.2.3"},
		{name: "tab and newline around", sent: "\t1.2.3\r\n", used: "1.2.3"},
		{name: "every blank of JavaScript around", sent: "\ufeff\u00a0\v\f1.2.3\u1680\u2000\u2028\u2029\u202f\u205f\u3000\ufeff", used: "1.2.3"},
		{name: "blank and v", sent: " v1.2.3", used: "1.2.3"},
		{name: "blanks before two parts", sent: "  1.2", used: "1.2.0"},
		{name: "pre-release", sent: "1.2.3-beta.1", used: "1.2.3-beta.1"},
		{name: "v and pre-release", sent: "v1.2.3-beta.1", used: "1.2.3-beta.1"},
		{name: "build metadata", sent: "1.2.3+5", used: "1.2.3+5"},
		{name: "pre-release and build metadata", sent: "1.2.3-rc.1+exp.sha-5114f85", used: "1.2.3-rc.1+exp.sha-5114f85"},
		{name: "leading zeros in build metadata", sent: "1.2.3+005", used: "1.2.3+005"},
		{name: "zero as pre-release", sent: "1.2.3-0", used: "1.2.3-0"},
		{name: "hyphen as pre-release", sent: "1.2.3--", used: "1.2.3--"},
		{name: "leading zero in an alphanumeric identifier", sent: "1.2.3-0a", used: "1.2.3-0a"},
		{name: "builtin", sent: "builtin", used: "0.0.0"},
		{name: "unknown", sent: "unknown", used: "0.0.0"},
		{name: "largest number", sent: "9007199254740991.9007199254740991.9007199254740991", used: "9007199254740991.9007199254740991.9007199254740991"},
		{name: "fifteen digits", sent: "999999999999999.0.0", used: "999999999999999.0.0"},
		{name: "sixteen digits", sent: "1000000000000000.0.0", used: "1000000000000000.0.0"},
		{name: "longest", sent: "1.2.3-" + strings.Repeat("a", 250), used: "1.2.3-" + strings.Repeat("a", 250)},

		{name: "first number too large", sent: "9007199254740992.0.0", used: "9007199254740992.0.0", overflow: true},
		{name: "last number too large", sent: "0.0.9007199254740992", used: "0.0.9007199254740992", overflow: true},
		{name: "largest of 64 bits", sent: "0.18446744073709551615.0", used: "0.18446744073709551615.0", overflow: true},
		{name: "beyond 64 bits", sent: "0.18446744073709551616.0", used: "0.18446744073709551616.0", overflow: true},
		{name: "twenty digits", sent: "99999999999999999999.0.0", used: "99999999999999999999.0.0", overflow: true},
		{name: "twenty digits in one part", sent: "99999999999999999999", used: "99999999999999999999.0.0", overflow: true},
		{name: "twenty digits and build metadata of hyphens", sent: "99999999999999999999.0.0+--.a", used: "99999999999999999999.0.0+--.a", overflow: true},
		{name: "twenty digits and a pre-release", sent: "99999999999999999999.0.0-a", used: "99999999999999999999.0.0-a", overflow: true},

		{name: "capital V", sent: "V1.2.3"},
		{name: "two v", sent: "vv1.2.3"},
		{name: "v alone", sent: "v"},
		{name: "blank after v", sent: "v 1.2.3"},
		{name: "blank alone", sent: " "},
		{name: "blank inside", sent: "1. 2.3"},
		{name: "a blank in Go but not in JavaScript", sent: "1.2.3\u0085"},
		{name: "a blank in neither", sent: "\u200b1.2.3"},
		{name: "too large, and a number missing", sent: "99999999999999999999..1"},
		{name: "too large, and the last number missing", sent: "99999999999999999999.1."},
		{name: "too large, and a pre-release for the last number", sent: "99999999999999999999.1.-a"},
		{name: "too large, and build metadata for the last number", sent: "1.99999999999999999999.+a.b"},
		{name: "too large, and a leading zero", sent: "99999999999999999999.01.1"},
		{name: "blanks around one part", sent: " 1 "},
		{name: "blank after builtin", sent: "builtin "},
		{name: "capital builtin", sent: "Builtin"},
		{name: "leading zero in major", sent: "01.2.3"},
		{name: "leading zero in minor", sent: "1.02.3"},
		{name: "leading zero in patch", sent: "1.2.03"},
		{name: "two zeros", sent: "1.00.3"},
		{name: "four parts", sent: "1.2.3.4"},
		{name: "two parts and pre-release", sent: "1.2-beta"},
		{name: "one part and pre-release", sent: "1-beta"},
		{name: "two parts and build metadata", sent: "1.2+5"},
		{name: "numeric pre-release with a leading zero", sent: "1.2.3-01"},
		{name: "the same after a dot", sent: "1.2.3-beta.01"},
		{name: "empty pre-release", sent: "1.2.3-"},
		{name: "empty build metadata", sent: "1.2.3+"},
		{name: "empty pre-release before build metadata", sent: "1.2.3-+5"},
		{name: "pre-release and empty build metadata", sent: "1.2.3-beta+"},
		{name: "empty identifier", sent: "1.2.3-a..b"},
		{name: "empty first identifier", sent: "1.2.3-.a"},
		{name: "empty last identifier", sent: "1.2.3-a."},
		{name: "two pluses", sent: "1.2.3+a+b"},
		{name: "underscore", sent: "1.2.3-a_b"},
		{name: "trailing dot", sent: "1."},
		{name: "trailing dot after two parts", sent: "1.2."},
		{name: "trailing dot after three parts", sent: "1.2.3."},
		{name: "two dots in a row", sent: "1..2"},
		{name: "dots alone", sent: ".."},
		{name: "leading dot", sent: ".1.2"},
		{name: "word", sent: "abc"},
		{name: "build number in brackets", sent: "1.2.3 (45)"},
		{name: "sign", sent: "-1.2.3"},
		{name: "plus sign", sent: "+1.2.3"},
		{name: "hexadecimal", sent: "0x1.2.3"},
		{name: "thousands", sent: "1_000.2.3"},
		{name: "arabic digit", sent: "\u0661.2.3"},
		{name: "full-width digit", sent: "\uff11.2.3"},
		{name: "arabic digit in pre-release", sent: "1.2.3-\u0663"},
		{name: "accent in pre-release", sent: "1.2.3-b\u00eata"},
		{name: "NUL", sent: "1.2.3\x00"},
		{name: "too long", sent: "1.2.3-" + strings.Repeat("a", 251)},
		{name: "too long by a number", sent: strings.Repeat("1", 253) + ".0.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p CheckParser
			c, err := p.Parse(toJSON(t, plainCheck.with(object{"version_build": tt.sent, "version_name": "builtin"})))
			if tt.used == "" {
				var r *Refusal
				if !errors.As(err, &r) || r.Status != 400 || r.Code != "semver_error" || r.VersionBuild != tt.sent {
					t.Fatalf("%q gives %+v, %+v, want semver_error that repeats it", tt.sent, c, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("%q is refused: %v", tt.sent, err)
			}
			// The canonical spelling replaces the value everywhere, and builtin by it.
			if c.VersionBuild != tt.used || c.VersionName != tt.used {
				t.Errorf("%q is used as %q and %q, want %q", tt.sent, c.VersionBuild, c.VersionName, tt.used)
			}
			if c.nativeOverflow != tt.overflow {
				t.Errorf("overflow is %t", c.nativeOverflow)
			}
		})
	}
}

// plugin_version and the names of bundles are read without coercion.
func TestParseVersion(t *testing.T) {
	tests := []struct {
		sent string
		want version
		err  error
	}{
		{sent: "1.2.3", want: version{1, 2, 3, ""}},
		{sent: "v1.2.3", want: version{1, 2, 3, ""}},
		{sent: " 1.2.3\n", want: version{1, 2, 3, ""}},
		{sent: "1.2.3-beta.1+5", want: version{1, 2, 3, "beta.1"}},
		{sent: "1.2.3+5", want: version{1, 2, 3, ""}},
		{sent: "10.20.30", want: version{10, 20, 30, ""}},
		{sent: "9007199254740991.0.0", want: version{maxNumber, 0, 0, ""}},
		{sent: "9007199254740992.0.0", err: errVersionOverflow},
		{sent: "0.0.99999999999999999999", err: errVersionOverflow},
		{sent: "", err: errVersionSyntax},
		{sent: "1", err: errVersionSyntax},
		{sent: "1.2", err: errVersionSyntax},
		{sent: "builtin", err: errVersionSyntax},
		{sent: "V1.2.3", err: errVersionSyntax},
		{sent: "1.2.3-", err: errVersionSyntax},
		{sent: "1.2.3+", err: errVersionSyntax},
		{sent: "1.2.3-+5", err: errVersionSyntax},
		{sent: "1.2.3-a+", err: errVersionSyntax},
		{sent: "99999999999999999999..1", err: errVersionSyntax},
		{sent: "1.2.", err: errVersionSyntax},
		{sent: "1.2.3.", err: errVersionSyntax},
		{sent: "999999999999999999999999.0.0-01", err: errVersionSyntax},
	}
	for _, tt := range tests {
		t.Run(tt.sent, func(t *testing.T) {
			got, canonical, err := parseVersion(tt.sent)
			if !errors.Is(err, tt.err) || got != tt.want {
				t.Fatalf("got %+v, %v, want %+v, %v", got, err, tt.want, tt.err)
			}
			if want := strings.TrimPrefix(strings.TrimSpace(tt.sent), "v"); err == nil && canonical != want {
				t.Errorf("canonical spelling %q, want %q", canonical, want)
			}
		})
	}
}

func mustVersion(t testing.TB, s string) version {
	t.Helper()
	v, _, err := parseVersion(s)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return v
}

// Every version of the list is compared with every other, so that order is shown to be total.
func TestVersionOrder(t *testing.T) {
	ascending := []string{
		"0.0.0-0", "0.0.0", "0.0.1", "0.0.10", "0.1.0", "0.10.0",
		// Numeric identifiers sort below others, and by their value however many digits they have.
		"1.0.0-0", "1.0.0-1", "1.0.0-2", "1.0.0-2.0", "1.0.0-10", "1.0.0-9007199254740992", "1.0.0-9007199254740993",
		"1.0.0-18446744073709551615", "1.0.0-18446744073709551616", "1.0.0-99999999999999999999",
		"1.0.0-100000000000000000000", "1.0.0-100000000000000000000.a",
		// The others by their bytes: hyphen, digits, capitals, small letters.
		"1.0.0--", "1.0.0--1", "1.0.0-0a", "1.0.0-99a", "1.0.0-9a", "1.0.0-Alpha",
		// The chain of semver.org, point 11.4.
		"1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-alpha-", "1.0.0-beta", "1.0.0-beta.2",
		"1.0.0-beta.11", "1.0.0-rc.1", "1.0.0",
		"1.0.1-rc.1", "1.0.1", "1.1.0-0", "1.1.0", "1.2.0", "1.10.0", "2.0.0-alpha", "2.0.0", "10.0.0",
		"999999999999999.0.0", "9007199254740991.0.0",
	}
	for i, a := range ascending {
		for j, b := range ascending {
			x, y := mustVersion(t, a), mustVersion(t, b)
			want := 0
			if i != j {
				want = order(i < j)
			}
			if got := x.compare(y); got != want {
				t.Errorf("compare(%s, %s) = %d, want %d", a, b, got, want)
			}
			if x.less(y) != (want < 0) {
				t.Errorf("less(%s, %s) = %t", a, b, x.less(y))
			}
		}
	}
}

func TestBuildMetadataIsWithoutOrder(t *testing.T) {
	for _, pair := range [][2]string{
		{"1.0.0", "1.0.0+1"}, {"1.0.0+1", "1.0.0+2"}, {"1.0.0-rc.1+9", "1.0.0-rc.1"}, {"v1.0.0", "1.0.0"},
	} {
		if got := mustVersion(t, pair[0]).compare(mustVersion(t, pair[1])); got != 0 {
			t.Errorf("compare(%s, %s) = %d, want 0", pair[0], pair[1], got)
		}
	}
}

// Gates at their edges (protocol 1.6). Pre-releases sort below their release, so a release candidate of the first
// version that has an ability does not have it.
func TestGates(t *testing.T) {
	returnsToBuiltin := func(v version) bool { return !v.less(firstWithBuiltin) }
	tests := []struct {
		name   string
		passes func(version) bool
		yes    []string
		no     []string
	}{
		{
			"files", filesGate.passes,
			[]string{
				"5.10.0", "5.10.0+1", "5.10.1-rc.1", "5.99.0", "6.25.0", "6.25.1", "7.0.35", "7.1.0", "8.0.0", "8.0.1",
				"0.0.1", "1.0.0", "4.0.0", "4.99.99-rc.1", "9.0.0", "9.0.0-alpha", "10.0.0",
			},
			[]string{
				"5.0.0", "5.9.999", "5.10.0-rc.1", "5.0.0-0", "6.24.9", "6.25.0-0", "6.0.0", "7.0.34", "7.0.35-rc.1",
				"7.0.0", "8.0.0-alpha.1", "8.0.0-0",
			},
		},
		{
			"link and comment", metaGate.passes,
			[]string{
				"5.35.0", "5.36.0", "6.35.0", "7.35.0", "8.35.0", "8.35.0+7", "8.36.0-rc.1", "0.0.1", "4.0.0", "9.0.0",
				"9.0.0-rc.1", "10.0.0",
			},
			[]string{
				"5.34.9", "5.35.0-rc.1", "6.34.99", "6.35.0-0", "7.34.9", "7.35.0-0", "8.34.9", "8.35.0-beta.11", "8.0.0",
			},
		},
		{
			"return to builtin", returnsToBuiltin,
			[]string{"6.2.0", "6.2.0+1", "6.2.1-rc.1", "7.0.0-rc.1", "8.0.0", "10.0.0"},
			[]string{"6.2.0-rc.1", "6.1.99", "6.0.0", "5.99.0", "0.0.1"},
		},
		{
			"key check", lastWithoutKeyCheck.less,
			[]string{"8.40.8", "8.40.8-rc.1", "8.41.0", "9.0.0", "9.0.0-alpha"},
			[]string{"8.40.7", "8.40.7+1", "8.40.7-rc.1", "8.40.6", "7.99.0", "0.0.1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, s := range tt.yes {
				if !tt.passes(mustVersion(t, s)) {
					t.Errorf("%s does not pass", s)
				}
			}
			for _, s := range tt.no {
				if tt.passes(mustVersion(t, s)) {
					t.Errorf("%s passes", s)
				}
			}
		})
	}
}

package upstreams

import (
	"cmp"
	"fmt"
	"strings"
)

// number is a version as capgo-update-lite orders them here: three numbers, and perhaps a pre-release before its release.
type number struct {
	major, minor, patch int
	pre                 string
}

func parseNumber(s string) (n number, ok bool) {
	s, n.pre, _ = strings.Cut(s, "-")
	_, err := fmt.Sscanf(s+"\n", "%d.%d.%d\n", &n.major, &n.minor, &n.patch)
	return n, err == nil
}

func (a number) compare(b number) int {
	switch {
	case a.pre == b.pre:
	case a.pre == "" || b.pre == "": // a pre-release sorts below its release
		return cmp.Or(a.compareNumbers(b), map[bool]int{true: 1, false: -1}[a.pre == ""])
	}
	return cmp.Or(a.compareNumbers(b), strings.Compare(a.pre, b.pre))
}

func (a number) compareNumbers(b number) int {
	return cmp.Or(cmp.Compare(a.major, b.major), cmp.Compare(a.minor, b.minor), cmp.Compare(a.patch, b.patch))
}

package caddymodule

import "testing"

// JSON may hold what a Caddyfile cannot.
func TestStatsOfJSON(t *testing.T) {
	for name, all := range map[string][]*Stats{
		"null":                   {nil},
		"a placeholder to drop":  {{Collectors: []string{"https://a.example.com"}, Drop: []string{"{env.ACTION}"}}},
		"a placeholder to share": {{Collectors: []string{"https://a.example.com"}, Sample: map[string]float64{"{env.ACTION}": 1}}},
		"actions in one":         {{Collectors: []string{"https://a.example.com"}, Drop: []string{"get,set"}}},
		"apps by a placeholder":  {{Collectors: []string{"https://a.example.com"}, Apps: []string{"{env.APPS}"}}},
	} {
		if err := checkStats(all); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

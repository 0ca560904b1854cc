package caddymodule

import "testing"

func TestWithoutSecrets(t *testing.T) {
	for address, want := range map[string]string{
		"https://a.example.com/stats":                   "https://a.example.com/stats",
		"https://a.example.com/{env.PATH}":              "https://a.example.com/{env.PATH}",
		"https://joe:s3cret@a.example.com/stats":        "https://xxxxx@a.example.com/stats",
		"https://s3cret@a.example.com":                  "https://xxxxx@a.example.com",
		"https://a.example.com/stats?token=s3cret":      "https://a.example.com/stats",
		"https://a.example.com/#s3cret":                 "https://a.example.com/",
		"https://joe:s3/cr?t@x#y@a.example.com/?s3cret": "https://xxxxx@a.example.com/",
		"joe:s3cret@a.example.com/stats":                "xxxxx@a.example.com/stats",
		"a.example.com":                                 "a.example.com",
		"":                                              "",
	} {
		if got := withoutSecrets(address); got != want {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
}

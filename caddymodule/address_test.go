package caddymodule

import (
	"net/url"
	"testing"
)

func TestWithoutSecrets(t *testing.T) {
	for address, want := range map[string]string{
		"https://a.example.com/stats":                   "https://a.example.com/stats",
		"https://a.example.com/{env.PATH}":              "https://a.example.com/{env.PATH}",
		"https://joe:s3cret@a.example.com/stats":        "https://xxxxx@a.example.com/stats",
		"https://s3cret@a.example.com":                  "https://xxxxx@a.example.com",
		"https://a.example.com/stats?token=s3cret":      "https://a.example.com/stats",
		"https://a.example.com/#s3cret":                 "https://a.example.com/",
		"https://joe:s3/cr?t@x#y@a.example.com/?s3cret": "https://xxxxx",
		"https://a.example.com/?u=o@b.c&token=s3cret":   "https://xxxxx",
		"https://joe:s3/cret@a.example.com/stats":       "https://xxxxx@a.example.com/stats",
		"joe:s3cret@a.example.com/stats":                "xxxxx@a.example.com/stats",
		"a.example.com":                                 "a.example.com",
		"":                                              "",
	} {
		if got := withoutSecrets(address); got != want {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
}

// A redirect leads back here however the same address is written.
func TestLeadsBack(t *testing.T) {
	const here = "https://edge.example/p/files/read/attachments/a.zip"
	for to, want := range map[string]bool{
		here:                    true,
		here + "?key=1&x-sig=2": true,
		"https://EDGE.example:443/p/files/read/attachments/a.zip":   true,
		"http://edge.example.:80/p//files/read/./attachments/a.zip": true,
		"https://edge.example:8443/p/files/read/attachments/a.zip":  false,
		"https://edge.example/p/files/read/attachments/b.zip":       false,
		"https://bucket.example/p/files/read/attachments/a.zip":     false,
		"https://edge.example.evil/p/files/read/attachments/a.zip":  false,
	} {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		if leadsBack(u, here) != want {
			t.Errorf("%s: %t", to, !want)
		}
	}
}

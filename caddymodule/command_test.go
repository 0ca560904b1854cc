package caddymodule

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestVerbs: a word that is no verb is an error, with the flags of the one that was meant, too; no word at all asks for help.
func TestVerbs(t *testing.T) {
	for _, tt := range []struct{ args, wantErr, wantHelp string }{
		{"", "", "Tools for channel manifests"},
		{"--help", "", "Tools for channel manifests"},
		{"foo", `unknown verb "foo"; see --help`, ""},
		{"foo --app com.demo.app", `unknown verb "foo"; see --help`, ""},
		{"--app com.demo.app", "unknown flag: --app", ""},
		{"manifest", "", "Builds a channel manifest"},
		{"manifest imprt", `unknown verb "imprt"; see --help`, ""},
		{"manifest imprt --upstream https://capgo.test", `unknown verb "imprt"; see --help`, ""},
		{"manifest import --verb x", "unknown flag: --verb", ""},
		{"manifest import more", `unknown command "more"`, ""},
	} {
		t.Run(tt.args, func(t *testing.T) {
			tools := &cobra.Command{Use: "capgo-edge"}
			addVerbs(tools, newManifestCommand())
			caddy := &cobra.Command{Use: "caddy", SilenceUsage: true}
			caddy.AddCommand(tools)
			var out bytes.Buffer
			caddy.SetOut(&out)
			caddy.SetErr(&out)
			caddy.SetArgs(append([]string{"capgo-edge"}, strings.Fields(tt.args)...))
			err := caddy.Execute()
			if tt.wantErr == "" && (err != nil || !strings.Contains(out.String(), tt.wantHelp)) {
				t.Errorf("%v\n%s", err, out.String())
			}
			if tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
				t.Errorf("%v, want %q", err, tt.wantErr)
			}
		})
	}
}

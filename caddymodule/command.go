package caddymodule

import (
	"fmt"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "capgo-edge",
		Usage: "<verb>",
		Short: "Tools for an edge of Capgo-style live updates",
		CobraFunc: func(cmd *cobra.Command) {
			addVerbs(cmd, newManifestCommand())
		},
	})
}

func newManifestCommand() *cobra.Command {
	return addVerbs(&cobra.Command{Use: "manifest", Short: "Tools for channel manifests"}, newImportCommand())
}

// addVerbs gives verbs to a command that does nothing by itself: alone it shows its help, and a word that is no verb is an
// error, whatever stands behind it.
func addVerbs(cmd *cobra.Command, verbs ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(verbs...)
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(flags caddycmd.Flags) (int, error) {
		if flags.NArg() > 0 {
			return exitUsage, unknownVerb(flags.Arg(0))
		}
		return 0, cmd.Help()
	})
	cmd.SetFlagErrorFunc(func(failed *cobra.Command, err error) error {
		if failed.HasSubCommands() && failed.Flags().NArg() > 0 { // the flag is one of the verb that was meant
			return unknownVerb(failed.Flags().Arg(0))
		}
		return err
	})
	return cmd
}

func unknownVerb(verb string) error { return fmt.Errorf("unknown verb %q; see --help", verb) }

// The exit codes of verbs. Caddy's own stay what they are.
const (
	exitUsage    = 1 // the command line, or a file it names, is not right
	exitUpstream = 3 // the upstream cannot be read
	exitRefused  = 4 // what was read makes no manifest
	exitOutput   = 5 // the manifest cannot be written
)

// newImportCommand is: manifest import.
func newImportCommand() *cobra.Command {
	var i manifestImport
	cmd := &cobra.Command{
		Use:   "import --upstream <url> --api-key {env.X} --app <id> [--out <file>] [--platforms <channel>=<list>] [--overrides <file>] [--learned <file>]",
		Short: "Builds a channel manifest from an official server's management API",
		Long: `
Reads an app's channels, bundles and device overrides from the management API of an official server, and writes the channel
manifest that answers as that server does. An edge with the manifest in its origin needs that server no more for checks.

The API does not tell everything. What it lacks is named on standard error, and can be given:

  --platforms  which platforms a channel serves: production=ios,android. Repeat it for each channel. Without it, and if no
               learned answer tells, channels are taken to serve all platforms; with several public channels that is refused.
  --overrides  a JSON array of {"device_id": ..., "channel": ...}, in place of the devices that the API lists. For apps with
               very many devices: the API lists fifty at a time.
  --learned    checks with the answers of that server, from the oldest to the newest, one JSON object per line:
               {"request": {...}, "answer": {...}}. They tell delta lists, and often platforms. An edge in front of that
               server has them: curl 'localhost:2019/capgo_edge/learned?app_id=com.example.app'

The manifest is checked before it is written, and a file is replaced in one step. Give the key by a placeholder, which keeps
it out of the list of processes and the shell's history:

  $ caddy capgo-edge manifest import --upstream https://capgo.example.com/functions/v1 \
      --api-key '{env.CAPGO_KEY}' --app com.example.app --out manifests/com.example.app.json

It ends with 0 once the manifest is written, 1 if the command line or a file it names is not right, 3 if the upstream cannot
be read, 4 if what it tells makes no manifest, and 5 if the manifest cannot be written.`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&i.upstream, "upstream", "", "address below which the management API is")
	flags.StringVar(&i.key, "api-key", "", "API key that may read the app, as {env.NAME} or {file./path}")
	flags.StringVar(&i.app, "app", "", "id of the app")
	flags.StringVar(&i.out, "out", "-", "file to write; - is standard output")
	flags.StringArrayVar(&i.platforms, "platforms", nil, "platforms of a channel, as production=ios,android or beta=none")
	flags.StringVar(&i.overrides, "overrides", "", "file with overrides of devices")
	flags.StringVar(&i.learned, "learned", "", "file with learned answers; - is standard input")
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		i.stdin, i.stdout, i.stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
		return i.run(cmd.Context())
	})
	return cmd
}

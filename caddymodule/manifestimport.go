package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/capgo-edge/capgo-edge/origin/management"
	"github.com/capgo-edge/capgo-edge/resolver"
)

// manifestImport is one run of: manifest import. It reads rows by management, and has resolver make a manifest of them.
type manifestImport struct {
	upstream, key, app string
	out                string
	platforms          []string
	overrides, learned string
	stdin              io.Reader
	stdout, stderr     io.Writer
	wrap               func(http.RoundTripper) http.RoundTripper // for tests
	client             *management.Client

	serves []channelPlatforms // what platforms says
	forced []json.RawMessage  // the rows of overrides
	pairs  io.ReadCloser      // the content of learned
}

// channelPlatforms is which platforms a channel serves.
type channelPlatforms struct {
	channel string
	names   []string
}

// exitError is an error with the code that the command ends with.
type exitError struct {
	code int
	err  error
}

// Error implements error.
func (e *exitError) Error() string { return e.err.Error() }

// Unwrap returns the error without its code.
func (e *exitError) Unwrap() error { return e.err }

func exit(code int, err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code, err}
}

func (i *manifestImport) run(ctx context.Context) (int, error) {
	err := i.do(ctx)
	if failed, ok := errors.AsType[*exitError](err); ok {
		return failed.code, err
	}
	return 0, err
}

func (i *manifestImport) do(ctx context.Context) error {
	defer i.close()
	if err := i.prepare(); err != nil {
		return exit(exitUsage, err)
	}
	if err := i.checkOut(); err != nil {
		return exit(exitOutput, fmt.Errorf("writing the manifest: %w", err))
	}
	m, err := i.read(ctx)
	if err != nil {
		return err
	}
	if err := i.complete(m); err != nil {
		return exit(exitUsage, err)
	}
	doc, notes, err := m.Document()
	if err != nil {
		return exit(exitRefused, err)
	}
	for _, note := range notes {
		i.say("note: %s", note)
	}
	if err := i.write(doc); err != nil {
		return exit(exitOutput, fmt.Errorf("writing the manifest: %w", err))
	}
	if i.out != "-" {
		i.say("%s written, %d bytes", i.out, len(doc))
	}
	return nil
}

// say tells people how it goes. The manifest may be on its way through standard output.
func (i *manifestImport) say(format string, args ...any) {
	_, _ = fmt.Fprintf(i.stderr, format+"\n", args...)
}

// prepare judges the command line and the files it names, all of it before the server is asked: reading an app may take long.
func (i *manifestImport) prepare() error {
	for _, flag := range []struct{ name, value string }{{"upstream", i.upstream}, {"api-key", i.key}, {"app", i.app}} {
		if flag.value == "" {
			return fmt.Errorf("--%s is missing; see --help", flag.name)
		}
	}
	if !resolver.IsAppID(i.app) {
		return fmt.Errorf("--app: %q is no app id, such as com.example.app", i.app)
	}
	if err := errors.Join(i.readPlatforms(), i.readOverrides(), i.openLearned()); err != nil {
		return err
	}
	return i.connect()
}

func (i *manifestImport) close() {
	if i.client != nil {
		i.client.CloseIdleConnections()
	}
	if i.pairs != nil {
		_ = i.pairs.Close() // it was only read
	}
}

// readPlatforms reads --platforms. Whether there are such channels, only the server knows.
func (i *manifestImport) readPlatforms() error {
	for _, text := range i.platforms {
		channel, list, ok := cutLast(text, "=")
		if !ok {
			return fmt.Errorf("--platforms: %q is not <channel>=<platforms>, as production=ios,android", text)
		}
		names := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
		switch {
		case len(names) == 0:
			return fmt.Errorf("--platforms: %q names no platform; name ios, android, electron, or none", text)
		case len(names) == 1 && names[0] == "none":
			names = nil
		}
		for _, name := range names {
			if !slices.Contains([]string{resolver.IOS.String(), resolver.Android.String(), resolver.Electron.String()}, name) {
				return fmt.Errorf("--platforms: %q is none of the platforms ios, android and electron", name)
			}
		}
		i.serves = append(i.serves, channelPlatforms{channel, names})
	}
	return nil
}

// readOverrides reads the file of --overrides.
func (i *manifestImport) readOverrides() error {
	if i.overrides == "" {
		return nil
	}
	raw, err := os.ReadFile(i.overrides)
	if err != nil {
		return fmt.Errorf("--overrides: %w", err)
	}
	if err := json.Unmarshal(raw, &i.forced); err != nil {
		return fmt.Errorf(`--overrides: %s is no JSON array of {"device_id": ..., "channel": ...}: %w`, i.overrides, err)
	}
	return i.addForced(resolver.NewImporter(i.app)) // what is wrong in a row is found now
}

// openLearned opens the file of --learned.
func (i *manifestImport) openLearned() error {
	switch i.learned {
	case "":
		return nil
	case "-":
		i.pairs = io.NopCloser(i.stdin)
		return nil
	}
	file, err := os.Open(i.learned)
	if err != nil {
		return fmt.Errorf("--learned: %w", err)
	}
	i.pairs = file
	return nil
}

// connect makes the client of the management API.
func (i *manifestImport) connect() error {
	key, err := expand("--api-key", i.key)
	if err != nil {
		return err
	}
	if key == i.key {
		i.say("note: other users of this machine can see a key on the command line; --api-key '{env.CAPGO_KEY}' takes it from the environment")
	}
	i.client, err = management.New(management.Options{
		URL: i.upstream, Key: strings.TrimSpace(key), WrapTransport: i.wrap,
		Waiting: func(why error, wait time.Duration) { i.say("%v; asking again in %s", why, wait.Round(time.Second)) },
	})
	return err
}

// maxReadings is how often the rows are read if they change meanwhile.
const maxReadings = 3

// read reads the app until its channels are the same before and after, so that channels and bundles belong together.
func (i *manifestImport) read(ctx context.Context) (*resolver.Importer, error) {
	app, err := i.client.App(ctx, i.app)
	if err != nil {
		return nil, exit(exitUpstream, err)
	}
	channels, err := collect(i.client.Channels(ctx, i.app))
	if err != nil {
		return nil, exit(exitUpstream, err)
	}
	for n := 1; ; n++ {
		m := resolver.NewImporter(i.app)
		if err := m.AddApp(app); err != nil {
			return nil, exit(exitRefused, err)
		}
		if err := i.addRows(ctx, m, channels); err != nil {
			return nil, err
		}
		if err := i.addOverrides(ctx, m, app); err != nil {
			return nil, err
		}
		again, err := collect(i.client.Channels(ctx, i.app))
		if err != nil {
			return nil, exit(exitUpstream, err)
		}
		if slices.EqualFunc(channels, again, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
			return m, nil
		}
		if n == maxReadings {
			return nil, exit(exitUpstream, errors.New("the channels change faster than they can be read; try again when nobody works on them"))
		}
		i.say("the channels have changed meanwhile, reading again")
		channels = again
	}
}

func (i *manifestImport) addRows(ctx context.Context, m *resolver.Importer, channels []json.RawMessage) error {
	for _, row := range channels {
		if err := m.AddChannel(row); err != nil {
			return exit(exitRefused, err)
		}
	}
	bundles, err := i.addAll(i.client.Bundles(ctx, i.app), m.AddBundle)
	if err == nil && m.Missing() { // deleted, or lost where one page ended and the next began
		_, err = i.addAll(i.client.Bundles(ctx, i.app), m.AddBundle)
	}
	if err == nil {
		i.say("%d channels and %d bundles read", len(channels), bundles)
	}
	return err
}

// addAll hands rows on and counts them.
func (i *manifestImport) addAll(rows iter.Seq2[json.RawMessage, error], add func([]byte) error) (n int, err error) {
	for row, err := range rows {
		if err != nil {
			return n, exit(exitUpstream, err)
		}
		if err := add(row); err != nil {
			return n, exit(exitRefused, err)
		}
		if n++; n%10_000 == 0 {
			i.say("%d rows read so far", n)
		}
	}
	return n, nil
}

func collect(rows iter.Seq2[json.RawMessage, error]) (all []json.RawMessage, err error) {
	for row, err := range rows {
		if err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, nil
}

// addOverrides adds the devices that are forced into a channel: those of the file, or else those of the API, if the app has
// any.
func (i *manifestImport) addOverrides(ctx context.Context, m *resolver.Importer, app []byte) error {
	if i.overrides != "" {
		return exit(exitUsage, i.addForced(m))
	}
	var counters struct {
		Devices *int64 `json:"channel_device_count"`
	}
	if json.Unmarshal(app, &counters) == nil && counters.Devices != nil && *counters.Devices == 0 {
		return nil // the server itself does not look for overrides then (protocol 2.1)
	}
	devices, err := i.addAll(i.client.Devices(ctx, i.app), m.AddDevice)
	if err == nil {
		i.say("%d devices read", devices)
	}
	return err
}

func (i *manifestImport) addForced(m *resolver.Importer) error {
	for n, row := range i.forced {
		err := m.AddDevice(row)
		if err == nil {
			err = checkForced(row)
		}
		if err != nil {
			return fmt.Errorf("--overrides: %s, item %d: %w", i.overrides, n, err)
		}
	}
	return nil
}

// checkForced refuses a row that forces nothing. The API lists devices without an override, too; who writes a file means one.
func checkForced(row []byte) error {
	var device map[string]any
	if err := json.Unmarshal(row, &device); err != nil {
		return err
	}
	for _, name := range []string{"device_id", "channel"} {
		if text, _ := device[name].(string); text == "" {
			return fmt.Errorf("it has no %q; an item is {\"device_id\": ..., \"channel\": <the channel's name>}", name)
		}
	}
	return nil
}

// complete adds what the API does not tell.
func (i *manifestImport) complete(m *resolver.Importer) error {
	for _, s := range i.serves {
		if err := m.SetPlatforms(s.channel, s.names); err != nil {
			return fmt.Errorf("--platforms: %w", err)
		}
	}
	if i.pairs == nil {
		return nil
	}
	n, err := i.learn(m)
	if err != nil {
		return fmt.Errorf("--learned: %w", err)
	}
	i.say("%d learned answers read", n)
	return nil
}

// cutLast cuts at the last separator: names of channels may hold any.
func cutLast(s, separator string) (before, after string, ok bool) {
	at := strings.LastIndex(s, separator)
	if at < 0 {
		return s, "", false
	}
	return s[:at], s[at+len(separator):], true
}

// learn reads the learned answers.
func (i *manifestImport) learn(m *resolver.Importer) (n int, err error) {
	for lines := json.NewDecoder(i.pairs); ; n++ {
		var pair struct{ Request, Answer json.RawMessage }
		err := lines.Decode(&pair)
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err == nil:
			err = m.Observe(pair.Request, pair.Answer)
		}
		if err != nil {
			return n, fmt.Errorf(`item %d of %s is not {"request": {...}, "answer": {...}}: %w`, n+1, i.learned, err)
		}
	}
}

// write hands the manifest out. A file is there whole, or as it was before.
func (i *manifestImport) write(doc []byte) error {
	if i.out == "-" {
		_, err := i.stdout.Write(doc)
		return err
	}
	temporary, err := i.create()
	if err != nil {
		return err
	}
	_, err = temporary.Write(doc)
	if err == nil {
		err = temporary.Sync()
	}
	if err = errors.Join(err, temporary.Close()); err == nil {
		err = os.Rename(temporary.Name(), i.out)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return nil
}

// checkOut finds out whether the manifest can be written.
func (i *manifestImport) checkOut() error {
	if i.out == "-" {
		return nil
	}
	if info, err := os.Stat(i.out); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory; name a file in it", i.out)
	}
	temporary, err := i.create()
	if err != nil {
		return err
	}
	return errors.Join(temporary.Close(), os.Remove(temporary.Name()))
}

// create makes the file that takes the place of the old one once it is whole.
func (i *manifestImport) create() (*os.File, error) {
	// What serves the file may run as another user, and a manifest holds nothing that phones are not told.
	return os.OpenFile(filepath.Clean(i.out+".new"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // see above
}

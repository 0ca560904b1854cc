package management_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/capgo-edge/capgo-edge/caddymodule/edgetest/upstreams"
	"github.com/capgo-edge/capgo-edge/origin/management"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server has an app with so many channels, versions and overrides.
func server(t *testing.T, rows int) *upstreams.Official {
	t.Helper()
	var versions, channels, devices []map[string]any
	for i := range rows {
		versions = append(versions, map[string]any{"id": i + 1, "name": fmt.Sprintf("1.0.%d", i)})
		channels = append(channels, map[string]any{"id": i + 1, "name": fmt.Sprintf("channel%d", i), "version": i + 1})
		devices = append(devices, map[string]any{"device_id": fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", i), "channel_id": i + 1})
	}
	doc, err := json.Marshal(map[string]any{
		"app": map[string]any{"app_id": "com.demo.app"}, "versions": versions, "channels": channels, "channel_devices": devices,
	})
	if err != nil {
		t.Fatal(err)
	}
	o := upstreams.NewOfficial()
	if err := o.Publish(doc); err != nil {
		t.Fatal(err)
	}
	return o
}

func client(t *testing.T, o *upstreams.Official, change func(*management.Options)) *management.Client {
	t.Helper()
	options := management.Options{
		URL: o.URL, Key: o.Key, WrapTransport: func(http.RoundTripper) http.RoundTripper { return o.Transport() },
	}
	if change != nil {
		change(&options)
	}
	c, err := management.New(options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// names are the values of a column, in the order of the rows.
func names(rows iter.Seq2[json.RawMessage, error], column string) (values []string, err error) {
	for raw, err := range rows {
		if err != nil {
			return values, err
		}
		var row map[string]any
		if err := json.Unmarshal(raw, &row); err != nil {
			return values, err
		}
		values = append(values, fmt.Sprint(row[column]))
	}
	return values, nil
}

func TestPages(t *testing.T) {
	for _, rows := range []int{0, 1, 50, 100, 123} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := server(t, rows)
				c := client(t, o, nil)
				app, err := c.App(t.Context(), "com.demo.app")
				if err != nil || !strings.Contains(string(app), `"expose_metadata":false`) {
					t.Errorf("%s, %v", app, err)
				}
				channels, err := names(c.Channels(t.Context(), "com.demo.app"), "name")
				if err != nil || len(channels) != rows || rows > 0 && channels[rows-1] != fmt.Sprintf("channel%d", rows-1) {
					t.Errorf("channels: %v, %v", channels, err)
				}
				bundles, err := names(c.Bundles(t.Context(), "com.demo.app"), "name")
				if err != nil || len(bundles) != rows || rows > 0 && bundles[rows-1] != "1.0.0" {
					t.Errorf("bundles: %v, %v", bundles, err)
				}
				devices, err := names(c.Devices(t.Context(), "com.demo.app"), "channel")
				if err != nil || len(devices) != 2*rows {
					t.Errorf("devices: %v, %v", devices, err)
				}
				c.Channels(t.Context(), "com.demo.app")(func(json.RawMessage, error) bool { return false }) // who stops early is not called again
			})
		})
	}
}

// TestEmptyPage: the error that stands for an empty page of bundles may be a fault, and is believed only if it stays.
func TestEmptyPage(t *testing.T) {
	const empty = `{"error":"cannot_get_bundle","message":"Cannot get bundle"}`
	for _, test := range []struct {
		name        string
		rows, fails int // at the second page
		want, asked int // rows, and requests for bundles
	}{
		{"full, and once a fault", 100, 1, 100, 6}, // the third page is asked for three times
		{"full, and twice a fault", 70, 2, 70, 5},
		{"full, and the end", 50, 0, 50, 4},
		{"not full", 49, 0, 49, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, asked, fails := server(t, test.rows), 0, test.fails
				c := client(t, o, func(options *management.Options) {
					options.WrapTransport = func(http.RoundTripper) http.RoundTripper {
						return transport(func(r *http.Request) (*http.Response, error) {
							asked++
							if fails > 0 && r.URL.Query().Get("page") == "1" {
								fails--
								return &http.Response{StatusCode: 400, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(empty)), Request: r}, nil
							}
							return o.Transport().RoundTrip(r)
						})
					}
				})
				rows, err := names(c.Bundles(t.Context(), "com.demo.app"), "id")
				if err != nil || len(rows) != test.want || asked != test.asked {
					t.Errorf("%d rows, %v, after %d requests", len(rows), err, asked)
				}
			})
		})
	}
}

// TestWithoutPages: a server that does not know pages is read to its end, though its rows change from one answer to the next.
func TestWithoutPages(t *testing.T) {
	for name, row := range map[string]string{
		"same bytes":     `{"name":"production"}`,
		"changing bytes": `{"id":1,"name":"production","updated_at":%d}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				c := client(t, server(t, 0), func(options *management.Options) {
					options.WrapTransport = func(http.RoundTripper) http.RoundTripper {
						return transport(func(r *http.Request) (*http.Response, error) {
							asked++
							body := "[" + strings.ReplaceAll(row, "%d", strconv.Itoa(asked)) + "]"
							return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
						})
					}
				})
				rows, err := names(c.Channels(t.Context(), "com.demo.app"), "name")
				if err != nil || len(rows) != 1 || asked != 2 {
					t.Errorf("%v, %v, after %d requests", rows, err, asked)
				}
			})
		})
	}
}

// TestLimit: 429 is waited out, as long as the server says.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := server(t, 200)
		o.KeyLimit = 2
		var waits []time.Duration
		c := client(t, o, func(options *management.Options) {
			options.Waiting = func(why error, wait time.Duration) {
				waits = append(waits, wait)
				if failed, ok := errors.AsType[*management.StatusError](why); !ok || failed.Status != 429 {
					t.Errorf("it waits for %v", why)
				}
			}
		})
		start := time.Now()
		channels, err := names(c.Channels(t.Context(), "com.demo.app"), "name")
		if err != nil || len(channels) != 200 || len(waits) != 2 || waits[0] < 59*time.Second || waits[0] > 61*time.Second {
			t.Errorf("%d channels, %v, after %v and waits of %v", len(channels), err, time.Since(start), waits)
		}
	})
}

// TestPace: however fast the server is, the key's limit is not reached.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := server(t, 1000)
		start := time.Now()
		if _, err := names(client(t, o, nil).Devices(t.Context(), "com.demo.app"), "device_id"); err != nil {
			t.Fatal(err)
		}
		if perMinute := float64(o.Count("/device")) / time.Since(start).Minutes(); perMinute > 1250 {
			t.Errorf("%.0f requests a minute", perMinute)
		}
	})
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault upstreams.Fault
		tries int
		text  string
	}{
		"down":    {upstreams.Down, 8, "hung up"},
		"500":     {upstreams.Error500, 8, "status 500 (unknown_error Unknown error)"},
		"503":     {upstreams.Error503, 8, "status 503"},
		"garbage": {upstreams.Garbage, 1, "no JSON"},
		"empty":   {upstreams.Empty, 1, "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := server(t, 1)
				o.Break(c.fault, "/channel")
				rows, err := names(client(t, o, nil).Channels(t.Context(), "com.demo.app"), "name")
				if err == nil || !strings.Contains(err.Error(), c.text) || len(rows) != 0 || o.Count("/channel") != c.tries {
					t.Errorf("%v, %v, %d tries", rows, err, o.Count("/channel"))
				}
			})
		})
	}
	t.Run("it comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			o := server(t, 1)
			o.Break(upstreams.Error503)
			c := client(t, o, func(options *management.Options) { options.Waiting = func(error, time.Duration) { o.Heal() } })
			if rows, err := names(c.Channels(t.Context(), "com.demo.app"), "name"); err != nil || len(rows) != 1 {
				t.Errorf("%v, %v", rows, err)
			}
		})
	})
	t.Run("it hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			o := server(t, 1)
			o.Break(upstreams.Hang)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			start := time.Now()
			if _, err := client(t, o, nil).App(ctx, "com.demo.app"); err == nil || time.Since(start) > 3*time.Minute {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	})
}

// TestRefused: what does not pass is not tried again, says what to do, and never holds the key.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := server(t, 1)
		c := client(t, o, func(options *management.Options) { options.Key = "secret-wrong-key" })
		_, err := c.App(t.Context(), "com.demo.app")
		if failed, ok := errors.AsType[*management.StatusError](err); !ok || failed.Status != 401 || failed.Code != "invalid_apikey" ||
			!strings.Contains(err.Error(), "check that the API key") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v", err)
		}
		if _, err := client(t, o, nil).App(t.Context(), "com.other.app"); err == nil || !strings.Contains(err.Error(), "cannot_access_app") ||
			!strings.Contains(err.Error(), "check --app, and that the key may read it") {
			t.Errorf("%v", err)
		}
		if o.Count("") != 2 {
			t.Errorf("%v", o.Counts())
		}
	})
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestRedirect: the key goes to no other host.
func TestRedirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := map[string]bool{}
		c := client(t, server(t, 0), func(options *management.Options) {
			options.WrapTransport = func(http.RoundTripper) http.RoundTripper {
				return transport(func(r *http.Request) (*http.Response, error) {
					hosts[r.URL.Host] = true
					return &http.Response{StatusCode: 302, Header: http.Header{"Location": {"https://evil.test/app"}}, Body: http.NoBody, Request: r}, nil
				})
			}
		})
		if _, err := c.App(t.Context(), "com.demo.app"); err == nil || !strings.Contains(err.Error(), "another host") || len(hosts) != 1 {
			t.Errorf("%v, hosts %v", err, hosts)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]management.Options{
		"no scheme":  {URL: "capgo.example.com", Key: "k"},
		"a file":     {URL: "file:///x", Key: "k"},
		"no address": {URL: "", Key: "k"},
		"a query":    {URL: "https://x.test/?a", Key: "k"},
		"a user":     {URL: "https://u:secret@x.test", Key: "k"},
		"no key":     {URL: "https://x.test"},
		"a line":     {URL: "https://x.test", Key: "k\r\nX-Evil: 1"},
		"no URL":     {URL: "https://u:secret@%zz", Key: "k"},
	} {
		if _, err := management.New(o); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package origin_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/storetest"
)

// externalServer is a web server on this machine that counts its connections. Names lead to it by fakeDNS; its certificate
// is for example.com, for one label below, and for 127.0.0.1.
type externalServer struct {
	*httptest.Server
	opened atomic.Int32
}

func newExternalServer(t *testing.T, start func(*httptest.Server), h http.Handler) *externalServer {
	t.Helper()
	s := &externalServer{Server: httptest.NewUnstartedServer(h)}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.opened.Add(1)
		}
	}
	start(s.Server)
	t.Cleanup(s.Close)
	return s
}

func h2(s *httptest.Server) {
	s.EnableHTTP2 = true
	s.StartTLS()
}

func (s *externalServer) port() string {
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return port
}

func newExternal(t *testing.T, dns fakeDNS, o origin.ExternalOptions) *origin.External {
	t.Helper()
	test := httptest.NewTLSServer(nil) // all have one certificate
	test.Close()
	o.WrapTransport = func(rt http.RoundTripper) http.RoundTripper {
		roots := x509.NewCertPool()
		roots.AddCert(test.Certificate())
		rt.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		return rt
	}
	e, err := origin.NewExternal(o)
	if err != nil {
		t.Fatal(err)
	}
	e.SetResolver(dns.resolver())
	t.Cleanup(e.CloseIdleConnections)
	return e
}

// fakeDNS answers for names with addresses: with the first entry to the first question, and so on; with the last for ever.
type fakeDNS map[string]*answers

type answers struct {
	mu     sync.Mutex
	rounds [][]netip.Addr
}

func at(rounds ...string) *answers {
	a := &answers{}
	for _, round := range rounds {
		var addrs []netip.Addr
		for s := range strings.FieldsSeq(round) {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		a.rounds = append(a.rounds, addrs)
	}
	return a
}

// next goes on to the next round with a question for IPv4 addresses; it is the second of each pair.
func (a *answers) next(v4 bool) []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	round := a.rounds[0]
	if v4 && len(a.rounds) > 1 {
		a.rounds = a.rounds[1:]
	}
	return slices.DeleteFunc(slices.Clone(round), func(addr netip.Addr) bool { return addr.Is4() != v4 })
}

func (d fakeDNS) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go d.serve(server)
		return client, nil
	}}
}

// serve answers DNS as it is spoken over TCP, until the client hangs up.
func (d fakeDNS) serve(conn net.Conn) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		answer := d.answer(question)
		answer = append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func (d fakeDNS) answer(question []byte) []byte {
	const header, typeA, noSuchName = 12, 1, 3
	end := header
	var labels []string
	for n := int(question[end]); n > 0; n = int(question[end]) {
		labels = append(labels, string(question[end+1:end+1+n]))
		end += 1 + n
	}
	qtype := binary.BigEndian.Uint16(question[end+1:])
	end += 5
	answer := append(question[:2:2], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
	answer = append(answer, question[header:end]...)
	known, ok := d[strings.ToLower(strings.Join(labels, "."))]
	if !ok {
		answer[3] |= noSuchName
		return answer
	}
	addrs := known.next(qtype == typeA)
	answer[7] = byte(len(addrs))
	for _, addr := range addrs {
		answer = append(answer, 0xc0, header)
		answer = binary.BigEndian.AppendUint16(answer, qtype)
		answer = append(answer, 0, 1, 0, 0, 0, 0)
		answer = binary.BigEndian.AppendUint16(answer, uint16(addr.BitLen()/8))
		answer = append(answer, addr.AsSlice()...)
	}
	return answer
}

// below is an External store whose keys are paths.
type below struct {
	*origin.External
	base string
}

func (b below) Get(ctx context.Context, key string, opts origin.GetOptions) (*origin.Object, error) {
	return b.External.Get(ctx, b.base+strings.ReplaceAll(url.PathEscape(key), "%2F", "/"), opts)
}

func TestExternalConformance(t *testing.T) {
	for name, character := range map[string]objects{
		"full":          {},
		"no ranges":     {noRanges: true},
		"no size":       {noSize: true},
		"no ETag":       {noETag: true},
		"no conditions": {noCondition: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, redirected := range []bool{false, true} {
				storetest.Run(t, storetest.Harness{
					NoSize: character.noSize, NoETag: character.noETag,
					New: func(t *testing.T, content map[string][]byte) origin.Store {
						server := character
						server.content = content
						behind := newExternalServer(t, h2, server)
						address := "https://cdn.example.com:" + behind.port()
						front := newExternalServer(t, (*httptest.Server).Start, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							if path := r.URL.Path + "/"; strings.Contains(path, "/./") || strings.Contains(path, "/../") {
								http.NotFound(w, r) // the address of a redirect is resolved
								return
							}
							w.Header().Set("Location", address+r.URL.EscapedPath())
							w.WriteHeader(http.StatusFound)
						}))
						e := newExternal(t, fakeDNS{"cdn.example.com": at("127.0.0.1")}, origin.ExternalOptions{
							Hosts: []string{"cdn.example.com:" + behind.port(), front.URL},
						})
						base := address + "/base/"
						if redirected {
							base = front.URL + "/base/"
						}
						return below{e, base}
					},
				})
			}
		})
	}
}

func TestExternalAllows(t *testing.T) {
	e := newExternal(t, nil, origin.ExternalOptions{Hosts: []string{
		"CDN.Example.com.", "*.wild.example.com", "port.example.com:8443", "*.ports.example.com:8443", "http://legacy.example.com",
		"HTTPS://secure.example.com", "http://*.old.example.com:8080", "xn--mnchen-3ya.example", "intranet",
		"10.0.0.5", "[FD00::0001]", "http://10.0.0.6:8080", "[::ffff:10.0.0.8]",
	}})
	for _, address := range []string{
		"https://cdn.example.com/a.zip", "https://CDN.EXAMPLE.COM/a.zip", "https://cdn.example.com./a.zip", "https://cdn.example.com:443/a",
		"https://cdn.example.com:/a", "https://cdn.example.com:0443/a", "HTTPS://cdn.example.com", "https://cdn.example.com?x=/../#y",
		"https://a.wild.example.com/", "https://a.b.c.wild.example.com/", "https://port.example.com:8443/", "https://a.ports.example.com:8443/",
		"http://legacy.example.com/", "http://legacy.example.com:80/", "https://secure.example.com/", "http://a.old.example.com:8080/",
		"https://xn--mnchen-3ya.example/", "https://intranet/a",
		"https://10.0.0.5/a", "https://[fd00::1]/a", "https://[FD00:0::1]:443/a", "http://10.0.0.6:8080/", "https://10.0.0.8/", "https://[::ffff:10.0.0.5]/",
	} {
		if !e.Allows(address) {
			t.Errorf("%s is refused", address)
		}
	}
	for _, address := range []string{
		"", "/a.zip", "//cdn.example.com/a", "cdn.example.com/a", "https:cdn.example.com/a", "https:/cdn.example.com/a", "https:///a", "https://",
		"ftp://cdn.example.com/a", "file:///etc/passwd", "gopher://cdn.example.com/", "data:,a", "javascript:1", "unix:///run/x",
		"http://cdn.example.com/a", "http://cdn.example.com:443/a", "https://cdn.example.com:80/a", "https://cdn.example.com:8443/", "https://cdn.example.com:0/",
		"https://cdn.example.com:66079/", "https://cdn.example.com:x/", "https://cdn.example.com../a",
		"https://a.cdn.example.com/", "https://example.com/", "https://evilcdn.example.com/", "https://cdn.example.com.evil.org/", "https://cdn.example.co/",
		"https://wild.example.com/", "https://.wild.example.com/", "https://evilwild.example.com/", "https://a.wild.example.com:8443/", "http://a.wild.example.com/",
		"https://port.example.com/", "https://a.ports.example.com/", "https://legacy.example.com/", "http://secure.example.com/", "http://a.old.example.com/",
		"https://münchen.example/", "https://m%C3%BCnchen.example/", "https://ⓒdn.example.com/", "https://cdn%2Eexample.com/", "https://cdn。example.com/",
		"https://joe@cdn.example.com/", "https://joe:x@cdn.example.com/", "https://@cdn.example.com/", "https://cdn.example.com@evil.org/", "https://cdn.example.com:443@evil.org/",
		"https://evil.org#@cdn.example.com/", "https://evil.org?@cdn.example.com/", "https://evil.org\\@cdn.example.com/", "https://cdn.example.com\\@evil.org/",
		"https://evil.org\\.wild.example.com/", "https://evil.org/.wild.example.com/", "https://a b.wild.example.com/", "https://evil.org%00.wild.example.com/",
		"https://evil.org\n.wild.example.com/", " https://cdn.example.com/", "https://cdn.example.com/\r\nX: y", "https://cdn.example.com/a?b HTTP/1.1",
		"https://10.0.0.7/", "https://10.0.0.5:8443/", "http://10.0.0.5/", "https://10.0.0.5./", "https://10.5/", "https://0xa.5/", "https://167772165/", "https://012.0.0.5/",
		"https://[fd00::2]/", "https://[fd00::1%25eth0]/", "https://[::ffff:10.0.0.7]/", "https://10.0.0.5.wild.example.org/", "https://127.0.0.1/", "https://localhost/",
	} {
		if e.Allows(address) {
			t.Errorf("%q is allowed", address)
		}
		if _, err := e.Get(t.Context(), address, origin.GetOptions{}); !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("%q: got %v", address, err)
		}
	}
}

func TestNewExternalRefuses(t *testing.T) {
	for host, text := range map[string]string{
		"":                               "no host",
		"https://":                       "no host",
		":8443":                          "no host",
		"*":                              "open proxy",
		"*:8443":                         "open proxy",
		"*.*":                            "open proxy",
		"*.com":                          "two labels",
		"*.":                             "no host",
		"*.10.0.0.5":                     "two labels",
		"*.[fd00::1]":                    "in brackets",
		"a.*.example.com":                "first label",
		"cdn*.example.com":               "first label",
		"*cdn.example.com":               "first label",
		"**.example.com":                 "first label",
		"ftp://cdn.example.com":          "https:// and http://",
		"https://cdn.example.com/":       "list the host alone",
		"cdn.example.com/bundles":        "list the host alone",
		"cdn.example.com?a":              "list the host alone",
		"joe:" + secret + "@example.com": "user or password",
		"cdn.example.com:":               "no port stands",
		"cdn.example.com:0":              "1 to 65535",
		"cdn.example.com:65536":          "1 to 65535",
		"cdn.example.com:https":          "1 to 65535",
		"fd00::1":                        "in brackets",
		"[fd00::1":                       "[fd00::1]:8443",
		"[fd00::1]8443":                  "[fd00::1]:8443",
		"[10.0.0.5]":                     "[fd00::1]:8443",
		"[fe80::1%eth0]":                 "zone",
		"münchen.example":                "punycode",
		"0x7f.1":                         "ends in a number",
		"127.1":                          "ends in a number",
		"10.0.0.256":                     "ends in a number",
		"0.0.0.0":                        "unspecified",
		"[::]:8443":                      "unspecified",
		"224.0.0.1":                      "multicast",
		"[ff02::1]":                      "multicast",
		"255.255.255.255":                "broadcast",
		"cdn .example.com":               "no host name",
		"-cdn.example.com":               "no host name",
		"cdn..example.com":               "no host name",
		"cdn.example.com..":              "no host name",
	} {
		e, err := origin.NewExternal(origin.ExternalOptions{Hosts: []string{"fine.example.com", host}})
		if err == nil || e != nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: got %v, want %q", host, err, text)
		}
	}
	if _, err := origin.NewExternal(origin.ExternalOptions{}); err == nil {
		t.Error("a list of none is taken")
	}
}

// TestExternalRequest has what is sent be what was asked for, and nothing of what only concerns the edge.
func TestExternalRequest(t *testing.T) {
	type request struct{ line, host, header string }
	asked := make(chan request, 1)
	server := newExternalServer(t, h2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Cookie", "Referer", "Authorization"} {
			if r.Header.Get(name) != "" {
				t.Errorf("sends %s: %s", name, r.Header.Get(name))
			}
		}
		asked <- request{r.Method + " " + r.RequestURI, r.Host, r.Header.Get("Accept-Encoding") + " " + r.Header.Get("Range")}
		w.Header().Set("Set-Cookie", "a=b")
		_, _ = io.WriteString(w, "abc")
	}))
	e := newExternal(t, fakeDNS{"cdn.example.com": at("127.0.0.1")}, origin.ExternalOptions{Hosts: []string{"cdn.example.com:" + server.port()}})
	host := "cdn.example.com:" + server.port()
	for key, want := range map[string]string{
		"https://CDN.example.com.:" + server.port() + "/A/b%2Fc%20d+e//./x?sig=a%2Fb+c&&d=;é#frag?x": "/A/b%2Fc%20d+e//./x?sig=a%2Fb+c&&d=;é",
		"https://" + host:          "/",
		"https://" + host + "?":    "/?",
		"https://" + host + "//a":  "//a",
		"https://" + host + "/a b": "/a%20b",
	} {
		for range 2 { // the cookie of the first answer is not sent with the second
			if _, got, err := storetest.Read(t, e, key, origin.GetOptions{Length: 3}); err != nil || string(got) != "abc" {
				t.Fatalf("%s: got %q, %v", key, got, err)
			}
			if got := <-asked; got != (request{"GET " + want, host, "identity bytes=0-2"}) {
				t.Errorf("%s: got %+v", key, got)
			}
		}
	}
	if _, _, err := storetest.Read(t, e, "https://"+host+"/a", origin.GetOptions{HeadOnly: true}); err != nil {
		t.Error(err)
	}
	if got := <-asked; got.line != "HEAD /a" {
		t.Errorf("got %+v", got)
	}
	if got := e.Identity(); got != "external" {
		t.Errorf("identity %q", got)
	}
}

// TestExternalProxy keeps the environment from choosing the address that is connected to.
func TestExternalProxy(t *testing.T) {
	var transport *http.Transport
	_, err := origin.NewExternal(origin.ExternalOptions{
		Hosts: []string{"cdn.example.com"},
		WrapTransport: func(rt http.RoundTripper) http.RoundTripper {
			transport = rt.(*http.Transport)
			return rt
		},
	})
	if err != nil || transport.Proxy != nil || transport.DialTLSContext != nil {
		t.Errorf("got %v, a proxy %v", err, transport.Proxy != nil)
	}
}

func TestExternalRedirects(t *testing.T) {
	var leaked atomic.Int32
	outside := newExternalServer(t, (*httptest.Server).StartTLS, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Add(1) }))
	plain := newExternalServer(t, (*httptest.Server).Start, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Referer() != "" {
			t.Errorf("sends Referer: %s", r.Referer())
		}
		_, _ = io.WriteString(w, "plain")
	}))
	server := newExternalServer(t, h2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Referer() != "" || r.Header.Get("Cookie") != "" || r.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("%s: got %v", r.URL, r.Header)
		}
		w.Header().Set("Set-Cookie", "a=b")
		to, n := r.URL.Query().Get("to"), 0
		if _, err := fmt.Sscanf(r.URL.Path, "/hops/%d", &n); err == nil {
			to = fmt.Sprintf("/hops/%d", n-1)
			if n <= 1 {
				to = "/target"
			}
		}
		switch r.URL.Path {
		case "/target":
			http.ServeContent(w, r, "a.zip", modified, strings.NewReader("abcdef"))
		case "/loop":
			w.Header().Set("Location", r.URL.String())
			w.WriteHeader(http.StatusFound)
		default:
			w.Header().Set("Location", to)
			status, err := strconv.Atoi(r.URL.Path[1:])
			if err != nil {
				status = http.StatusFound
			}
			w.WriteHeader(status)
		}
	}))
	e := newExternal(t, fakeDNS{
		"cdn.example.com": at("127.0.0.1"), "a.example.com": at("127.0.0.1"), "other.example.com": at("127.0.0.1"),
	}, origin.ExternalOptions{Hosts: []string{"cdn.example.com:" + server.port(), "a.example.com:" + server.port(), plain.URL}})
	base := "https://cdn.example.com:" + server.port()

	through := func(path, to string, opts origin.GetOptions) (string, error) {
		_, got, err := storetest.Read(t, e, base+path+"?sig="+secret+"&to="+url.QueryEscape(to), opts)
		return string(got), err
	}
	for _, path := range []string{"/301", "/302", "/303", "/307", "/308"} {
		for _, to := range []string{
			"target", "/target", base + "/target", "https://a.example.com:" + server.port() + "/target?sig=" + secret, "/hops/3", "//cdn.EXAMPLE.com.:" + server.port() + "/target",
		} {
			if got, err := through(path, to, origin.GetOptions{Offset: 2, Length: 2}); err != nil || got != "cd" {
				t.Errorf("%s to %s: got %q, %v", path, to, got, err)
			}
		}
	}
	if got, err := through("/302", plain.URL+"/x", origin.GetOptions{}); err != nil || got != "plain" {
		t.Errorf("to a host listed with http: got %q, %v", got, err)
	}
	if got, err := through("/hops/5", "", origin.GetOptions{}); err != nil || got != "abcdef" {
		t.Errorf("5 hops: got %q, %v", got, err)
	}
	for to, text := range map[string]string{
		outside.URL + "/there": "add 127.0.0.1:" + outside.port() + " to external proxy",
		"https://other.example.com:" + server.port() + "/?" + secret: "other.example.com",
		"http://cdn.example.com:" + server.port() + "/target":        "add http://cdn.example.com:" + server.port() + " to external proxy",
		"//other.example.com/target":                                 "other.example.com",
		"https://joe:" + secret + "@cdn.example.com/":                "user or password",
		"https://169.254.169.254/latest/?" + secret:                  "169.254.169.254",
		"https://127.0.0.1:" + server.port() + "/target":             "127.0.0.1",
		"https://0x7f.1/":        "IP address",
		"ftp://cdn.example.com/": "https://",
		"file:///etc/passwd":     "https://",
		"https://cdn.example.com:" + server.port() + "/%zz" + secret: "not a URL",
		"/loop":   "5 redirects",
		"/hops/5": "5 redirects",
		"":        "status 302", // no Location to speak of
	} {
		got, err := through("/302", to, origin.GetOptions{})
		if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), secret) {
			t.Errorf("to %s: got %q, %v, want %q", to, got, err, text)
		}
	}
	if leaked.Load() > 0 || outside.opened.Load() > 0 {
		t.Error("a host that is not listed was asked")
	}
}

// TestExternalRedirectsElsewhere: whoever asked is told where a host that is listed redirects to, if that is one that is not:
// it may go there by itself. It is not told of what nobody should follow.
func TestExternalRedirectsElsewhere(t *testing.T) {
	redirects := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		location := r.URL.Query().Get("to")
		if r.URL.Path == "/hop" {
			location = "/there?to=" + url.QueryEscape(location)
		}
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusFound)
	})
	outside := newExternalServer(t, (*httptest.Server).Start, redirects)
	plain, server := newExternalServer(t, (*httptest.Server).Start, redirects), newExternalServer(t, h2, redirects)
	e := newExternal(t, fakeDNS{"cdn.example.com": at("127.0.0.1")}, origin.ExternalOptions{Hosts: []string{
		"cdn.example.com:" + server.port(), plain.URL,
	}})
	secure, unlisted := "https://cdn.example.com:"+server.port(), "add %s to external proxy"
	for _, test := range []struct{ from, location, to, text string }{
		{secure, "https://b.s3.example/a%20b/(1).zip?sig=" + secret + "%2F+&x", "same", fmt.Sprintf(unlisted, "b.s3.example")},
		{secure, "//B.s3.example:8443/1.zip?" + secret, "https://B.s3.example:8443/1.zip?" + secret, fmt.Sprintf(unlisted, "b.s3.example:8443")},
		{secure, "https://127.0.0.1:" + server.port() + "/1.zip", "same", fmt.Sprintf(unlisted, "127.0.0.1:"+server.port())},
		{secure, "https://169.254.169.254/latest/", "same", fmt.Sprintf(unlisted, "169.254.169.254")},
		{secure, outside.URL + "/1.zip?" + secret, "", fmt.Sprintf(unlisted, outside.URL)},
		{secure, "http://cdn.example.com/1.zip", "", "http://cdn.example.com"},
		{plain.URL, outside.URL + "/1.zip?" + secret, "same", fmt.Sprintf(unlisted, outside.URL)},
		{plain.URL, strings.Replace(plain.URL, "http:", "https:", 1) + "/1.zip", "same", fmt.Sprintf(unlisted, "127.0.0.1:"+plain.port())},
		{plain.URL, "https://joe:" + secret + "@b.s3.example/", "", "user or password"},
		{plain.URL, "https://0x7f.1/", "", "IP address"},
		{plain.URL, "capgo://b.s3.example/", "", "https://"},
	} {
		if test.to == "same" {
			test.to = test.location
		}
		for _, path := range []string{"/there", "/hop"} {
			for _, opts := range []origin.GetOptions{{}, {Offset: 2, Length: 2, IfMatch: `"e"`}, {HeadOnly: true}} {
				_, err := e.Get(t.Context(), test.from+path+"?to="+url.QueryEscape(test.location), opts)
				if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), secret) {
					t.Errorf("from %s to %s: got %v, want %q", test.from, test.location, err, test.text)
				}
				to := ""
				if redirect, ok := errors.AsType[*origin.RedirectError](err); ok {
					to = redirect.To.String()
				}
				if to != test.to {
					t.Errorf("from %s to %s: told of %q, want %q", test.from, test.location, to, test.to)
				}
			}
		}
	}
	if _, err := e.Get(t.Context(), "https://b.s3.example/1.zip", origin.GetOptions{}); errors.As(err, new(*origin.RedirectError)) {
		t.Errorf("an address that nobody redirects to: %v", err)
	}
	if outside.opened.Load() > 0 {
		t.Error("a host that is not listed was asked")
	}
}

// TestExternalRedirectBody has a redirect with a body that never ends: nobody reads it, so nobody waits for it.
func TestExternalRedirectBody(t *testing.T) {
	for name, start := range map[string]func(*httptest.Server){"h1": (*httptest.Server).StartTLS, "h2": h2} {
		server := newExternalServer(t, start, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/target" {
				_, _ = io.WriteString(w, "abc")
				return
			}
			w.Header().Set("Location", "/target")
			w.WriteHeader(http.StatusFound)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
		e := newExternal(t, nil, origin.ExternalOptions{Hosts: []string{"127.0.0.1:" + server.port()}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		o, err := e.Get(ctx, server.URL+"/", origin.GetOptions{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := io.ReadAll(o.Body); err != nil || string(got) != "abc" {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		_ = o.Body.Close()
		cancel()
	}
}

// TestExternalResolves judges where names lead to.
func TestExternalResolves(t *testing.T) {
	server := newExternalServer(t, h2, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "inside") }))
	port := server.port()
	dns := fakeDNS{
		"named.example.com": at("127.0.0.1"), "wild.example.com": at("127.0.0.1"), "mapped.example.com": at("::ffff:127.0.0.1"),
		"six.example.com": at("::1"), "meta.example.com": at("169.254.169.254"), "meta6.example.com": at("fd00:ec2::254 fe80::1"),
		"private.example.com": at("10.0.0.7"), "nat64.example.com": at("64:ff9b::10.0.0.7"), "zero.example.com": at("0.0.0.0"),
		"both.example.com": at("10.0.0.7 169.254.169.254"),
	}
	e := newExternal(t, dns, origin.ExternalOptions{Hosts: []string{"*.example.com:" + port, "named.example.com:" + port, "meta.example.com:" + port}})
	for name, text := range map[string]string{
		"named": "",
		"wild":  "wild.example.com resolves to 127.0.0.1, a loopback address; list that host by name in external proxy", "mapped": "loopback", "six": "loopback",
		"private": "10.0.0.7, a private address", "nat64": "NAT64 form of 10.0.0.7", "zero": "unspecified", "both": "resolves to",
		"meta": "169.254.169.254, a link-local address; only that very address", "meta6": "resolves to", "missing": "no such host",
	} {
		before := server.opened.Load()
		address := "https://" + name + ".example.com:" + port + "/a?sig=" + secret
		_, got, err := storetest.Read(t, e, address, origin.GetOptions{})
		if text == "" {
			if err != nil || string(got) != "inside" {
				t.Errorf("%s: got %q, %v", name, got, err)
			}
			continue
		}
		if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, text)
		}
		if server.opened.Load() != before {
			t.Errorf("%s: connected", name)
		}
		if !e.Allows(address) {
			t.Errorf("%s: the list refuses it", name)
		}
	}
}

// TestExternalRebinding has a name that leads elsewhere the second time.
func TestExternalRebinding(t *testing.T) {
	server := newExternalServer(t, (*httptest.Server).StartTLS, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "abc") }))
	host := "cdn.example.com:" + server.port()
	dns := fakeDNS{"cdn.example.com": at("127.0.0.1", "169.254.169.254")}
	e := newExternal(t, dns, origin.ExternalOptions{Hosts: []string{host}})
	for range 2 { // the second time over the same connection, which was judged
		if _, got, err := storetest.Read(t, e, "https://"+host+"/", origin.GetOptions{}); err != nil || string(got) != "abc" {
			t.Errorf("first: got %q, %v", got, err)
		}
	}
	e.CloseIdleConnections()
	if _, got, err := storetest.Read(t, e, "https://"+host+"/", origin.GetOptions{}); err == nil || !strings.Contains(err.Error(), "link-local") {
		t.Errorf("second: got %q, %v", got, err)
	}

	// From a public address to a private one, with the store's own dialer, stopped before it connects.
	e = newExternal(t, nil, origin.ExternalOptions{Hosts: []string{"*.example.com"}})
	e.SetResolver(fakeDNS{"a.example.com": at("93.184.216.34", "10.0.0.7"), "mixed.example.com": at("10.0.0.7 93.184.216.34")}.resolver())
	var allowed []string
	errJudged := errors.New("judged")
	dial := func(target string) error {
		d := e.Dialer(target)
		judge := d.ControlContext
		d.ControlContext = func(ctx context.Context, network, address string, _ syscall.RawConn) error {
			if err := judge(ctx, network, address, nil); err != nil {
				return err
			}
			allowed = append(allowed, address)
			return errJudged
		}
		_, err := d.DialContext(t.Context(), "tcp", target)
		return err
	}
	if err := dial("a.example.com:443"); !errors.Is(err, errJudged) {
		t.Errorf("public: got %v", err)
	}
	if err := dial("a.example.com:443"); err == nil || !strings.Contains(err.Error(), "10.0.0.7, a private address") {
		t.Errorf("then private: got %v", err)
	}
	_ = dial("mixed.example.com:443")
	if want := []string{"93.184.216.34:443", "93.184.216.34:443"}; !slices.Equal(allowed, want) {
		t.Errorf("would connect to %v, want %v", allowed, want)
	}
}

// TestExternalNumbers says what Go makes of numbers that C takes for addresses: names that it asks for, or none at all.
func TestExternalNumbers(t *testing.T) {
	resolver := fakeDNS{"0x7f.1": at("93.184.216.34"), "2130706433": at("93.184.216.34")}.resolver()
	for host, want := range map[string]string{"0x7f.1": "93.184.216.34", "2130706433": "", "127.1": "", "0177.0.0.1": "", "127.0.0.01": ""} {
		got, err := resolver.LookupNetIP(t.Context(), "ip4", host)
		if want == "" && err == nil || want != "" && (len(got) != 1 || got[0].Unmap().String() != want) {
			t.Errorf("%s: got %v, %v, want %q", host, got, err, want)
		}
	}
}

func TestExternalAnswers(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 1000)
	for name, start := range map[string]func(*httptest.Server){"h1": (*httptest.Server).StartTLS, "h2": h2} {
		server := newExternalServer(t, start, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/gzip":
				w.Header().Set("Content-Encoding", "gzip")
			case "/denied":
				w.WriteHeader(http.StatusForbidden)
			case "/cut", "/stall":
				w.Header().Set("Content-Length", "1000")
				_, _ = w.Write(content[:500])
				_ = http.NewResponseController(w).Flush()
				if r.URL.Path == "/stall" {
					<-r.Context().Done()
				}
				panic(http.ErrAbortHandler)
			case "/range":
				w.Header().Set("Content-Range", "bytes 1-3/4")
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = io.WriteString(w, "abc")
		}))
		e := newExternal(t, nil, origin.ExternalOptions{Hosts: []string{"127.0.0.1:" + server.port()}, StallTimeout: 50 * time.Millisecond})
		for path, text := range map[string]string{
			"/gzip": "compression", "/denied": "403", "/cut": "", "/stall": "stopped sending", "/range": "bytes 1-3/4",
		} {
			_, got, err := storetest.Read(t, e, server.URL+path+"?sig="+secret, origin.GetOptions{})
			if !errors.Is(err, origin.ErrUnavailable) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), secret) {
				t.Errorf("%s %s: got %d bytes, %v, want %q", name, path, len(got), err, text)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := e.Get(ctx, server.URL+"/", origin.GetOptions{}); !errors.Is(err, context.Canceled) || !errors.Is(err, origin.ErrUnavailable) {
			t.Errorf("%s: cancelled: got %v", name, err)
		}
	}
}

// TestExternalTrust has a server whose certificate is for another name: what is found at an address must prove itself.
func TestExternalTrust(t *testing.T) {
	server := newExternalServer(t, h2, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	host := "cdn.example.org:" + server.port()
	e := newExternal(t, fakeDNS{"cdn.example.org": at("127.0.0.1")}, origin.ExternalOptions{Hosts: []string{host}})
	if _, _, err := storetest.Read(t, e, "https://"+host+"/?"+secret, origin.GetOptions{}); err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), secret) {
		t.Errorf("got %v", err)
	}
}

// TestExternalSetting: errors tell the operator where to list a host.
func TestExternalSetting(t *testing.T) {
	e := newExternal(t, nil, origin.ExternalOptions{Hosts: []string{"cdn.example.com"}, Setting: "allow_host"})
	_, _, err := storetest.Read(t, e, "https://other.example.com/a", origin.GetOptions{})
	if err == nil || !strings.Contains(err.Error(), "add other.example.com to allow_host if it is meant") {
		t.Errorf("got %v", err)
	}
}

func TestExternalConnections(t *testing.T) {
	server := newExternalServer(t, (*httptest.Server).StartTLS, objects{content: map[string][]byte{"a": bytes.Repeat([]byte("x"), 100_000)}})
	e := newExternal(t, nil, origin.ExternalOptions{Hosts: []string{"127.0.0.1:" + server.port()}})
	for range 5 {
		for _, opts := range []origin.GetOptions{{}, {Offset: 5}, {Length: 10}, {HeadOnly: true}, {IfMatch: `"x"`}, {Offset: 1 << 20}} {
			_, _, _ = storetest.Read(t, e, server.URL+"/base/a", opts)
		}
		_, _, _ = storetest.Read(t, e, server.URL+"/base/missing", origin.GetOptions{})
	}
	if n := server.opened.Load(); n != 1 {
		t.Errorf("opened %d connections, want 1", n)
	}
	e.CloseIdleConnections()
	if _, _, err := storetest.Read(t, e, server.URL+"/base/a", origin.GetOptions{}); err != nil || server.opened.Load() != 2 {
		t.Errorf("after closing: %v, %d connections", err, server.opened.Load())
	}
}

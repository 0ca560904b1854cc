package origin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/storetest"
)

// The tests of this file use a stand-in for the service, which plays what a real one does not do on demand. The nested
// module s3conformance has a real one, which checks signatures.

// bucket answers as S3 services do for the bucket "releases", by path style.
type bucket map[string][]byte

func (b bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, ok := strings.CutPrefix(r.URL.Path, "/releases/")
	if !ok {
		writeS3Error(w, r, http.StatusNotFound, "NoSuchBucket", "")
		return
	}
	content, ok := b[key]
	if !ok {
		writeS3Error(w, r, http.StatusNotFound, "NoSuchKey", "")
		return
	}
	if len(content) == 0 && r.Header.Get("Range") != "" { // which Go's server overlooks
		writeS3Error(w, r, http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "")
		return
	}
	objects{content: map[string][]byte{key: content}}.ServeHTTP(w, withPath(r, "/base/"+key))
}

func withPath(r *http.Request, path string) *http.Request {
	r = r.Clone(r.Context())
	r.URL.Path = path
	return r
}

// writeS3Error answers an error as S3 does. It says too much, as some services do: what came with the request.
func writeS3Error(w http.ResponseWriter, r *http.Request, status int, code, extra string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if status != http.StatusNotModified {
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s %s</Message>%s</Error>`,
			code, r.Header.Get("Authorization"), r.Header.Get("X-Amz-Security-Token"), extra)
	}
}

func newS3(t *testing.T, o origin.S3Options) *origin.S3 {
	t.Helper()
	if o.Bucket == "" {
		o.Bucket = "releases"
	}
	if o.AccessKey == "" {
		o.AccessKey, o.SecretKey, o.SessionToken = "access", secret, secret+"-session"
	}
	s, err := origin.NewS3(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.CloseIdleConnections)
	return s
}

// serveS3 returns a store over a server that h answers for.
func serveS3(t *testing.T, h http.HandlerFunc, o origin.S3Options) *origin.S3 {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	o.Endpoint = server.URL
	return newS3(t, o)
}

func TestS3Conformance(t *testing.T) {
	for _, prefix := range []string{"", "folder/below"} {
		t.Run("h1, prefix "+prefix, func(t *testing.T) {
			storetest.Run(t, storetest.Harness{New: func(t *testing.T, content map[string][]byte) origin.Store {
				return serveS3(t, inFolder(prefix, content).ServeHTTP, origin.S3Options{Prefix: prefix})
			}})
		})
	}
	t.Run("h2", func(t *testing.T) {
		storetest.Run(t, storetest.Harness{New: func(t *testing.T, content map[string][]byte) origin.Store {
			server := httptest.NewUnstartedServer(bucket(content))
			server.EnableHTTP2 = true
			server.StartTLS()
			t.Cleanup(server.Close)
			return newS3(t, origin.S3Options{Endpoint: server.URL, WrapTransport: trust(server)})
		}})
	})
}

func inFolder(prefix string, content map[string][]byte) bucket {
	b := make(bucket, len(content))
	for key, c := range content {
		b[strings.TrimPrefix(prefix+"/"+key, "/")] = c
	}
	return b
}

// TestS3Errors: what the settings are to blame for, and what is no answer of an S3 service, never looks like a missing
// object, neither for a GET nor for a HEAD. Each text names what to correct, and nothing that came with the request.
func TestS3Errors(t *testing.T) {
	tests := []struct {
		code   string
		status int
		extra  string // XML
		want   error
		text   string // part of the message
	}{
		{code: "NoSuchKey", status: 404, want: origin.ErrNotFound},
		{code: "KeyTooLongError", status: 400, want: origin.ErrNotFound},
		{code: "PreconditionFailed", status: 412, want: origin.ErrChanged},
		{code: "NotModified", status: 304, want: origin.ErrNotModified},
		{code: "InvalidRange", status: 416, want: origin.ErrRange},

		{code: "InvalidAccessKeyId", status: 403, text: "correct access_key"},
		{code: "SignatureDoesNotMatch", status: 403, text: "correct secret_key"},
		{code: "ExpiredToken", status: 400, text: "renew access_key, secret_key and session_token"},
		{code: "InvalidToken", status: 400, text: "correct access_key, secret_key and session_token"},
		{code: "RequestTimeTooSkewed", status: 403, text: "set this machine's clock"},
		{code: "MissingSecurityHeader", status: 400, text: "correct endpoint"},
		{code: "NoSuchBucket", status: 404, text: "no bucket releases"},
		{code: "InvalidBucketName", status: 400, text: "no bucket releases"},
		{code: "AllAccessDisabled", status: 403, text: "closed the bucket releases"},
		{code: "PermanentRedirect", status: 301, text: "correct region, endpoint"},
		{code: "PermanentRedirect", status: 301, extra: "<Region>eu-north-1</Region>", text: "set region eu-north-1"},
		{code: "TemporaryRedirect", status: 307, text: "correct region, endpoint"},
		{code: "AuthorizationHeaderMalformed", status: 400, extra: "<Region>eu-north-1</Region>", text: "in region eu-north-1, not us-east-1; set region eu-north-1"},
		{code: "AuthorizationHeaderMalformed", status: 400, extra: "<Region>us-east-1</Region>", text: "correct region, endpoint, or an access key"},
		{code: "AuthorizationHeaderMalformed", status: 400, extra: "<Region>a b</Region>", text: "correct region, endpoint, or an access key"},
		{code: "AccessDenied", status: 403, text: "grant them s3:ListBucket"},
		{code: "InvalidObjectState", status: 403, text: "storage class"},
		{code: "NoSuchVersion", status: 404, text: "NoSuchVersion (status 404)"},
		{code: "InternalError", status: 500, text: "InternalError (status 500)"},
		{code: "SlowDown", status: 503, text: "SlowDown (status 503)"},
		{code: "what is <b/>this", status: 400, text: "an error without a code (status 400)"},
	}
	for _, tt := range tests {
		for _, headOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s%s, head %v", tt.code, tt.extra, headOnly), func(t *testing.T) {
				if tt.want == nil {
					tt.want = origin.ErrUnavailable
				}
				var asked atomic.Int32
				s := serveS3(t, func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					writeS3Error(w, r, tt.status, tt.code, tt.extra)
				}, origin.S3Options{})
				_, _, err := storetest.Read(t, s, "a", origin.GetOptions{HeadOnly: headOnly})
				judge(t, err, tt.want, tt.text)
				if n := asked.Load(); n != 1 && tt.want != origin.ErrRange {
					t.Errorf("asked %d times, but a store does not retry", n)
				}
			})
		}
	}
}

func judge(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want %v with %q", err, want, text)
	}
	if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "Signature=") {
		t.Errorf("%v tells what came with the request", err)
	}
	if strings.Count(err.Error(), origin.ErrUnavailable.Error()) > 1 {
		t.Errorf("%v says it twice", err)
	}
}

// TestS3Answers has answers that no S3 service gives.
func TestS3Answers(t *testing.T) {
	const stamp = "Sun, 01 Nov 2026 12:00:00 GMT"
	tests := []struct {
		name   string
		status int
		header http.Header
		opts   origin.GetOptions
		text   string
	}{
		{name: "another server's 404", status: 404, text: "correct endpoint"},
		{name: "another server's 403", status: 403, text: "correct endpoint"},
		{name: "a page", status: 200, text: "correct endpoint"},
		{name: "a redirect", status: 302, header: http.Header{"Location": {"http://127.0.0.1:1/"}}, text: "redirects"},
		{name: "a gateway's 502", status: 502, text: "status 502"},
		{name: "too many requests", status: 429, text: "status 429"},
		{name: "no content", status: 204, text: "status 204"},
		{name: "accepted", status: 202, header: http.Header{"Content-Type": {"text/html"}}, text: "status 202"},
		{name: "compressed", status: 200, header: http.Header{"Content-Encoding": {"gzip"}, "Last-Modified": {stamp}}, text: "stored with Content-Encoding"},
		{name: "no length", status: 200, header: http.Header{"Transfer-Encoding": {"chunked"}, "Last-Modified": {stamp}}, text: "no Content-Length"},
		{
			name: "another range", status: 206, opts: origin.GetOptions{Offset: 2, Length: 3},
			header: http.Header{"Content-Range": {"bytes 3-5/100"}, "Last-Modified": {stamp}}, text: "bytes 3-5/100",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serveS3(t, func(w http.ResponseWriter, _ *http.Request) {
				maps.Copy(w.Header(), tt.header)
				w.WriteHeader(tt.status)
				if tt.status != http.StatusNoContent {
					_, _ = io.WriteString(w, "<p>welcome</p>")
				}
			}, origin.S3Options{})
			for range 2 { // the first leaves no wrong belief behind
				_, _, err := storetest.Read(t, s, "a", tt.opts)
				judge(t, err, origin.ErrUnavailable, tt.text)
			}
		})
	}
}

// TestS3StoredUpload has a service that takes how an object was uploaded for how it is stored.
func TestS3StoredUpload(t *testing.T) {
	s := serveS3(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "aws-chunked")
		bucket{"a": []byte("content")}.ServeHTTP(w, r)
	}, origin.S3Options{})
	if _, got, err := storetest.Read(t, s, "a", origin.GetOptions{Offset: 2, Length: 3}); err != nil || string(got) != "nte" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestS3NoKey: what no object can be called is missing, without a request.
func TestS3NoKey(t *testing.T) {
	s := serveS3(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.URL) }, origin.S3Options{Prefix: "folder"})
	for _, key := range []string{"", "a/..", "../a", strings.Repeat("x", 1018), "a\xff"} {
		if _, _, err := storetest.Read(t, s, key, origin.GetOptions{}); !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("%q: got %v", key, err)
		}
	}
}

func TestS3HeadBehindEnd(t *testing.T) {
	s := serveS3(t, bucket{"a": []byte("content"), "empty": {}}.ServeHTTP, origin.S3Options{})
	for _, key := range []string{"a", "empty"} {
		if _, _, err := storetest.Read(t, s, key, origin.GetOptions{HeadOnly: true, Offset: 7}); !errors.Is(err, origin.ErrRange) {
			t.Errorf("%s: got %v", key, err)
		}
	}
}

// TestS3Denied follows what "access denied" means: at first one of two things, after a read a missing object, after the
// keys were refused one of two things again.
func TestS3Denied(t *testing.T) {
	const lacks = "User: arn:aws:iam::1:user/edge is not authorized to perform: "
	s := serveS3(t, func(w http.ResponseWriter, r *http.Request) {
		switch key := strings.TrimPrefix(r.URL.Path, "/releases/"); key {
		case "a", "unchanged":
			if key == "unchanged" {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			bucket{"a": []byte("content")}.ServeHTTP(w, r)
		case "expired":
			writeS3Error(w, r, http.StatusBadRequest, "ExpiredToken", "")
		case "moved":
			writeS3Error(w, r, http.StatusNotFound, "NoSuchBucket", "")
		case "busy":
			writeS3Error(w, r, http.StatusBadRequest, "Whatever", "")
		case "missing by name":
			writeS3Error(w, r, http.StatusForbidden, "AccessDenied", "<Message>"+lacks+"s3:ListBucket on resource</Message>")
		case "forbidden":
			writeS3Error(w, r, http.StatusForbidden, "AccessDenied", "<Message>"+lacks+"kms:Decrypt on resource</Message>")
		default:
			writeS3Error(w, r, http.StatusForbidden, "AccessDenied", "")
		}
	}, origin.S3Options{})
	for i, step := range []struct {
		key  string
		want error
		text string
	}{
		{"missing", origin.ErrUnavailable, "grant them s3:GetObject"},
		{"missing by name", origin.ErrUnavailable, "grant them s3:ListBucket"},
		{"a", nil, ""},
		{"missing", origin.ErrNotFound, ""},
		{"missing by name", origin.ErrNotFound, ""},
		{"forbidden", origin.ErrUnavailable, "grant them kms:Decrypt"},
		{"busy", origin.ErrUnavailable, ""},
		{"missing", origin.ErrNotFound, ""},
		{"expired", origin.ErrUnavailable, ""},
		{"missing", origin.ErrUnavailable, "grant them s3:ListBucket"},
		{"unchanged", origin.ErrNotModified, ""},
		{"missing", origin.ErrNotFound, ""},
		{"moved", origin.ErrUnavailable, ""},
		{"missing", origin.ErrUnavailable, "grant them s3:ListBucket"},
	} {
		for _, headOnly := range []bool{true, false} {
			_, _, err := storetest.Read(t, s, step.key, origin.GetOptions{HeadOnly: headOnly})
			if !errors.Is(err, step.want) || err != nil && !strings.Contains(err.Error(), step.text) {
				t.Errorf("step %d, %s: got %v, want %v with %q", i, step.key, err, step.want, step.text)
			}
		}
	}
}

// TestS3Requests looks at where requests go, and what they are signed for.
func TestS3Requests(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		t.Setenv(name, "")
	}
	const aws = "s3.dualstack."
	tests := []struct {
		name string
		o    origin.S3Options
		env  string // AWS_REGION
		want string
		zone string // region signed for
	}{
		{"Amazon", origin.S3Options{Region: "eu-north-1"}, "", "https://releases." + aws + "eu-north-1.amazonaws.com/a%20b", "eu-north-1"},
		{"Amazon by default", origin.S3Options{}, "", "https://releases." + aws + "us-east-1.amazonaws.com/a%20b", "us-east-1"},
		{"Amazon by environment", origin.S3Options{}, "eu-west-3", "https://releases." + aws + "eu-west-3.amazonaws.com/a%20b", "eu-west-3"},
		{
			"Amazon by endpoint",
			origin.S3Options{Endpoint: "https://s3.eu-west-1.amazonaws.com"},
			"eu-west-3",
			"https://releases." + aws + "eu-west-1.amazonaws.com/a%20b", "eu-west-1",
		},
		{"Amazon, path style", origin.S3Options{PathStyle: true}, "", "https://" + aws + "us-east-1.amazonaws.com/releases/a%20b", "us-east-1"},
		{"dots in the bucket", origin.S3Options{Bucket: "my.releases"}, "", "https://" + aws + "us-east-1.amazonaws.com/my.releases/a%20b", "us-east-1"},
		{"another service", origin.S3Options{Endpoint: "https://S3.example.com/"}, "eu-west-3", "https://s3.example.com/releases/a%20b", "us-east-1"},
		{"its region", origin.S3Options{Endpoint: "https://s3.example.com:443", Region: "auto"}, "", "https://s3.example.com/releases/a%20b", "auto"},
		{"an address", origin.S3Options{Endpoint: "http://[::1]:9000", Prefix: "/x+/"}, "", "http://[::1]:9000/releases/x%2B/a%20b", "us-east-1"},
		{"Google", origin.S3Options{Endpoint: "https://storage.googleapis.com"}, "", "https://releases.storage.googleapis.com/a%20b", "us-east-1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("AWS_REGION", tt.env)
			var asked []*http.Request
			tt.o.WrapTransport = func(http.RoundTripper) http.RoundTripper {
				return roundTrip(func(r *http.Request) (*http.Response, error) {
					asked = append(asked, r)
					w := httptest.NewRecorder()
					bucket{"a": []byte("content")}.ServeHTTP(w, withPath(r, "/releases/a"))
					return w.Result(), nil
				})
			}
			s := newS3(t, tt.o)
			if _, got, err := storetest.Read(t, s, "a b", origin.GetOptions{}); err != nil || string(got) != "content" {
				t.Fatalf("got %q, %v", got, err)
			}
			if len(asked) != 1 || asked[0].URL.String() != tt.want {
				t.Fatalf("asked %d times, for %v, want %s", len(asked), asked[0].URL, tt.want)
			}
			header := asked[0].Header
			if !strings.Contains(header.Get("Authorization"), "/"+tt.zone+"/s3/aws4_request") {
				t.Errorf("signed as %s, want region %s", header.Get("Authorization"), tt.zone)
			}
			if header.Get("X-Amz-Security-Token") != secret+"-session" || header.Get("Accept-Encoding") != "identity" {
				t.Errorf("sent %v", header)
			}
		})
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestS3Redirect: signed requests go to the endpoint only.
func TestS3Redirect(t *testing.T) {
	var asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		s := serveS3(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", other.URL+"/there")
			writeS3Error(w, r, status, "TemporaryRedirect", "")
		}, origin.S3Options{})
		_, _, err := storetest.Read(t, s, "a", origin.GetOptions{})
		judge(t, err, origin.ErrUnavailable, "correct region, endpoint")
	}
	if asked.Load() > 0 {
		t.Error("the other host was asked")
	}
}

func TestS3Cut(t *testing.T) {
	content := bytes.Repeat([]byte("capgo"), 20_000)
	for _, n := range []int{0, 1, len(content) / 2, len(content) - 1} {
		for _, opts := range []origin.GetOptions{{}, {Offset: 10}, {Length: int64(len(content))}} {
			s := serveS3(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Last-Modified", modified.Format(http.TimeFormat))
				cut(content, n, true, opts.Offset > 0).ServeHTTP(w, r)
			}, origin.S3Options{})
			_, got, err := storetest.Read(t, s, "a", opts)
			if !errors.Is(err, origin.ErrUnavailable) || errors.Is(err, io.EOF) || len(got) > n {
				t.Errorf("cut at %d, %+v: got %d bytes, %v", n, opts, len(got), err)
			}
		}
	}
}

// TestS3Stall has bodies that bring nothing any more: those of objects, and those of errors, which the client reads.
func TestS3Stall(t *testing.T) {
	for name, status := range map[string]int{"an object": 200, "an error": 403} {
		t.Run(name, func(t *testing.T) {
			s := serveS3(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000")
				w.Header().Set("Last-Modified", modified.Format(http.TimeFormat))
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "<Error>")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}, origin.S3Options{StallTimeout: 50 * time.Millisecond})
			_, _, err := storetest.Read(t, s, "a", origin.GetOptions{})
			judge(t, err, origin.ErrUnavailable, "stopped sending")
		})
	}
}

func TestS3Cancelled(t *testing.T) {
	s := serveS3(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("Last-Modified", modified.Format(http.TimeFormat))
		_, _ = io.WriteString(w, "abc")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, origin.S3Options{})
	ctx, cancel := context.WithCancel(t.Context())
	o, err := s.Get(ctx, "a", origin.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(o.Body, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := o.Body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) || !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("body: got %v", err)
	}
	if err := o.Body.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "a", origin.GetOptions{}); !errors.Is(err, context.Canceled) || !errors.Is(err, origin.ErrUnavailable) {
		t.Errorf("get: got %v", err)
	}
}

// TestS3Unreachable: the text says what to correct, and is not the one of the client, which has the whole address.
func TestS3Unreachable(t *testing.T) {
	plain := httptest.NewServer(bucket{})
	defer plain.Close()
	for name, tt := range map[string]struct{ endpoint, text string }{
		"nobody there": {"http://127.0.0.1:1", "127.0.0.1:1"},
		"no TLS":       {strings.Replace(plain.URL, "http://", "https://", 1), "correct endpoint to begin with http://"},
		"hangs up":     {rawServer(t, ""), "closed the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := storetest.Read(t, newS3(t, origin.S3Options{Endpoint: tt.endpoint}), "folder/object", origin.GetOptions{})
			judge(t, err, origin.ErrUnavailable, tt.text)
			if strings.Contains(err.Error(), "folder") || strings.Contains(err.Error(), "issue") {
				t.Errorf("got %v", err)
			}
		})
	}
	s := newS3(t, origin.S3Options{Endpoint: "https://s3.example.invalid", WrapTransport: func(http.RoundTripper) http.RoundTripper {
		return roundTrip(func(*http.Request) (*http.Response, error) {
			return nil, &net.DNSError{Err: "no such host", Name: "s3.example.invalid", IsNotFound: true}
		})
	}})
	_, _, err := storetest.Read(t, s, "a", origin.GetOptions{})
	judge(t, err, origin.ErrUnavailable, "no such host; correct endpoint, or region")
}

// TestS3Connections counts connections. Errors and conditions must not cost one.
func TestS3Connections(t *testing.T) {
	var opened atomic.Int32
	server := httptest.NewUnstartedServer(bucket{"a": bytes.Repeat([]byte("x"), 100_000), "empty": {}})
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	s := newS3(t, origin.S3Options{Endpoint: server.URL})
	o, _, err := storetest.Read(t, s, "a", origin.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, opts := range []origin.GetOptions{{}, {Offset: 5}, {Length: 10}, {HeadOnly: true}, {IfNoneMatch: o.ETag}, {IfMatch: `"x"`}, {Offset: 1 << 20}} {
		for _, key := range []string{"a", "empty", "missing"} {
			_, _, _ = storetest.Read(t, s, key, opts)
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("opened %d connections, want 1", n)
	}
	s.CloseIdleConnections()
	if _, _, err := storetest.Read(t, s, "a", origin.GetOptions{}); err != nil || opened.Load() != 2 {
		t.Errorf("after closing idle connections: %v, %d connections", err, opened.Load())
	}
}

func TestS3Identity(t *testing.T) {
	for want, o := range map[string]origin.S3Options{
		"s3 https://s3.amazonaws.com releases":              {},
		"s3 https://s3.amazonaws.com releases mobile":       {Prefix: "mobile"},
		"s3 http://s3.example.com releases mobile/app two":  {Prefix: "/mobile/app two/", Endpoint: "http://S3.Example.com:80/"},
		"s3 http://s3.example.com:443 releases":             {Endpoint: "http://s3.example.com:443", Prefix: "/"},
		"s3 https://[fd00::1] releases":                     {Endpoint: "https://[fd00::1]:443"},
		"s3 https://s3.example.com:9000 releases":           {Endpoint: "https://s3.example.com:9000", AccessKey: "other", SecretKey: "other"},
		"s3 https://s3.eu-central-1.amazonaws.com releases": {Endpoint: "https://s3.eu-central-1.amazonaws.com:", Region: "eu-central-1"},
	} {
		if got := newS3(t, o).Identity(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestNewS3Refuses(t *testing.T) {
	for name, tt := range map[string]struct {
		o    origin.S3Options
		text string
	}{
		"no bucket":             {origin.S3Options{}, "bucket is missing"},
		"a path as bucket":      {origin.S3Options{Bucket: "releases/mobile"}, "prefix"},
		"capitals":              {origin.S3Options{Bucket: "Releases"}, "lower-case"},
		"too short":             {origin.S3Options{Bucket: "ab"}, "3 to 63"},
		"an address as bucket":  {origin.S3Options{Bucket: "10.0.0.1"}, "no bucket name"},
		"no URL":                {origin.S3Options{Bucket: "releases", Endpoint: "https://u:" + secret + "@a b"}, "not a URL"},
		"no scheme":             {origin.S3Options{Bucket: "releases", Endpoint: "s3.example.com"}, "http://"},
		"scheme of another":     {origin.S3Options{Bucket: "releases", Endpoint: "s3://" + secret}, "http://"},
		"no host":               {origin.S3Options{Bucket: "releases", Endpoint: "https://:9000"}, "no host"},
		"keys in the endpoint":  {origin.S3Options{Bucket: "releases", Endpoint: "https://u:" + secret + "@example.com"}, "access_key"},
		"path in the endpoint":  {origin.S3Options{Bucket: "releases", Endpoint: "https://example.com/releases"}, "no path"},
		"query in the endpoint": {origin.S3Options{Bucket: "releases", Endpoint: "https://example.com?x"}, "no query"},
		"a host like no other":  {origin.S3Options{Bucket: "releases", Endpoint: "https://_a_"}, "not one of an S3 service"},
		"no region":             {origin.S3Options{Bucket: "releases", Region: "eu central"}, "eu-central-1"},
		"prefix with dots":      {origin.S3Options{Bucket: "releases", Prefix: "a/../b"}, "prefix"},
		"access key alone":      {origin.S3Options{Bucket: "releases", AccessKey: "a"}, "secret_key"},
		"secret key alone":      {origin.S3Options{Bucket: "releases", SecretKey: secret}, "access_key"},
		"session token alone":   {origin.S3Options{Bucket: "releases", SessionToken: secret}, "access_key"},
		"a line end in a key":   {origin.S3Options{Bucket: "releases", AccessKey: "a", SecretKey: secret + "\n"}, "secret_key holds"},
	} {
		s, err := origin.NewS3(tt.o)
		if err == nil || s != nil || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v, want %q", name, err, tt.text)
		}
	}
}

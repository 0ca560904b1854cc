package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// withoutKeys empties the environment of what keys are found by.
func withoutKeys(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// fakeRole is a machine's role: it gives keys that last for a time, or fails.
type fakeRole struct {
	credentials.Provider
	asked int
	lasts time.Duration
	err   error
}

func (r *fakeRole) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	r.asked++
	if err := cc.Context.Err(); err != nil {
		return credentials.Value{}, err
	}
	value := credentials.Value{AccessKeyID: fmt.Sprint("key-", r.asked), SecretAccessKey: "secret", SignerType: credentials.SignatureV4}
	if r.lasts > 0 {
		value.Expiration = time.Now().Add(r.lasts)
	}
	return value, r.err
}

// TestFoundKeysSchedule: keys are asked for again before they expire, those that are still good outlast a failure, and a
// machine without a role is not asked with every request.
func TestFoundKeysSchedule(t *testing.T) {
	withoutKeys(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "")
	synctest.Test(t, func(t *testing.T) {
		role := &fakeRole{lasts: time.Hour}
		keys := credentials.New(&foundKeys{role: role})
		for i, step := range []struct {
			wait  time.Duration
			err   error // of the role from now on
			want  string
			asked int // so far
		}{
			{0, nil, "key-1", 1},
			{47 * time.Minute, nil, "key-1", 1},
			{2 * time.Minute, nil, "key-2", 2},
			{49 * time.Minute, errors.New("down"), "key-2", 3},
			{30 * time.Second, errors.New("down"), "key-2", 3},
			{31 * time.Second, errors.New("down"), "key-2", 4},
			{10 * time.Minute, errors.New("down"), "", 5},
			{5 * time.Second, errors.New("down"), "", 5},
			{6 * time.Second, errors.New("down"), "", 6},
			{11 * time.Second, nil, "key-7", 7},
		} {
			time.Sleep(step.wait)
			role.err = step.err
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // the request the keys were first needed for may be gone
			value, err := keys.GetWithContext(&credentials.CredContext{Context: ctx})
			if value.AccessKeyID != step.want || role.asked != step.asked || (err == nil) != (step.want != "") {
				t.Errorf("step %d: got %q, %v, after asking %d times; want %q, %d times", i, value.AccessKeyID, err, role.asked, step.want, step.asked)
			}
			if err != nil && (!errors.Is(err, errNoKeys) || !strings.Contains(err.Error(), "down")) {
				t.Errorf("step %d: got %v", i, err)
			}
		}
	})
}

func TestFoundKeysWithoutExpiry(t *testing.T) {
	withoutKeys(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "")
	synctest.Test(t, func(t *testing.T) {
		role := new(fakeRole)
		keys := credentials.New(&foundKeys{role: role})
		for _, want := range []string{"key-1", "key-1", "key-2"} {
			if value, err := keys.GetWithContext(nil); err != nil || value.AccessKeyID != want {
				t.Errorf("got %q, %v, want %q", value.AccessKeyID, err, want)
			}
			time.Sleep(31 * time.Minute)
		}
	})
}

// signers serves a bucket with one object, and tells by which keys it was asked for last.
func signers(t *testing.T, refuse *atomic.Value) (endpoint string, last *atomic.Value) {
	t.Helper()
	last = new(atomic.Value)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, key, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		key, _, _ = strings.Cut(key, "/")
		last.Store(key + " " + r.Header.Get("X-Amz-Security-Token"))
		if refuse.Load() == key {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<Error><Code>ExpiredToken</Code></Error>")
			return
		}
		http.ServeContent(w, r, "a.zip", time.Unix(1, 0), strings.NewReader("content"))
	}))
	t.Cleanup(server.Close)
	return server.URL, last
}

func TestS3Keys(t *testing.T) {
	withoutKeys(t)
	var refuse atomic.Value
	endpoint, last := signers(t, &refuse)
	var asked atomic.Int32
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "role-token" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"AccessKeyId": fmt.Sprint("role-", asked.Add(1)), "SecretAccessKey": "s", "Token": "t", "Expiration": time.Now().Add(time.Hour), "Code": "Success",
		})
	}))
	t.Cleanup(role.Close)
	get := func(t *testing.T, s *S3) error {
		t.Helper()
		o, err := s.Get(t.Context(), "a", GetOptions{})
		if err != nil {
			return err
		}
		return o.Body.Close()
	}
	store := func(t *testing.T, o S3Options) *S3 {
		t.Helper()
		o.Bucket, o.Endpoint = "releases", endpoint
		s, err := NewS3(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.CloseIdleConnections)
		return s
	}
	t.Run("none", func(t *testing.T) {
		if err := get(t, store(t, S3Options{})); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errNoKeys) || last.Load() != nil {
			t.Errorf("got %v, asked by %v", err, last.Load())
		}
	})
	t.Run("half of the environment's", func(t *testing.T) {
		for set, lacking := range map[string]string{"AWS_ACCESS_KEY_ID": "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY": "AWS_ACCESS_KEY_ID"} {
			t.Run(set, func(t *testing.T) {
				t.Setenv(set, "hunter2")
				err := get(t, store(t, S3Options{}))
				if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "without "+lacking) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("got %v", err)
				}
			})
		}
	})
	t.Run("role", func(t *testing.T) {
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
		if err := get(t, store(t, S3Options{})); !errors.Is(err, errNoKeys) || !strings.Contains(err.Error(), "403") {
			t.Errorf("a role that is refused: got %v", err)
		}
		t.Setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "role-token")
		s := store(t, S3Options{})
		for range 2 {
			if err := get(t, s); err != nil || last.Load() != "role-1 t" {
				t.Errorf("got %v, signed by %v", err, last.Load())
			}
		}
		refuse.Store("role-1")
		if err := get(t, s); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "renew AWS_ACCESS_KEY_ID") {
			t.Errorf("keys that expired too soon: got %v", err)
		}
		if err := get(t, s); err != nil || last.Load() != "role-2 t" {
			t.Errorf("got %v, signed by %v", err, last.Load())
		}
	})
	t.Run("environment", func(t *testing.T) {
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
		t.Setenv("AWS_ACCESS_KEY_ID", "environment")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
		t.Setenv("AWS_SESSION_TOKEN", "session")
		if err := get(t, store(t, S3Options{})); err != nil || last.Load() != "environment session" {
			t.Errorf("got %v, signed by %v", err, last.Load())
		}
		if err := get(t, store(t, S3Options{AccessKey: "own", SecretKey: "secret"})); err != nil || last.Load() != "own " {
			t.Errorf("configured keys: got %v, signed by %v", err, last.Load())
		}
	})
}

// TestS3Proxy: the metadata service of a cloud is not behind a proxy. A process looks at its proxies once, so that another
// one looks at them here.
func TestS3Proxy(t *testing.T) {
	const child = "CAPGO_EDGE_TEST_PROXY"
	if os.Getenv(child) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestS3Proxy$")
		cmd.Env = append(os.Environ(), child+"=1", "HTTP_PROXY=http://gateway.example.com", "http_proxy=http://gateway.example.com", "NO_PROXY=", "no_proxy=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	for address, want := range map[string]bool{
		"http://169.254.169.254/latest": false, "http://[fe80::1]/": false, "http://s3.example.com/": true, "http://10.0.0.1/": true,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if proxy, err := s3Proxy(req); (proxy != nil) != want || err != nil {
			t.Errorf("%s: by %v, %v", address, proxy, err)
		}
	}
}

// Package s3conformance holds the S3 origin to the conformance suite, and to its table of errors, against a real S3
// server in this process, which checks signatures. It is a module of its own, so that the product does not depend on
// that server.
//
//	go test ./...
//
// It says that it needs updates when the product's go.mod was changed: go mod tidy, here too.
package s3conformance

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"

	"github.com/capgo-edge/capgo-edge/origin"
)

const (
	accessKey = "conformance"
	secretKey = "conformancesecret"
	region    = "eu-central-1"

	// guest owns no bucket.
	guestKey    = "guest"
	guestSecret = "guestsecret"
)

// endpoint is that of the server. There can be one in a process.
var endpoint string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "s3conformance")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	ctx, cancel := context.WithCancel(context.Background())
	stopped, err := serve(ctx, dir)
	if err != nil {
		cancel()
		return fail(err)
	}
	code := m.Run()
	cancel()
	if err := <-stopped; err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, dir string) (<-chan error, error) {
	objects, attributes, accounts := filepath.Join(dir, "objects"), filepath.Join(dir, "attributes"), filepath.Join(dir, "accounts")
	for _, d := range []string{objects, attributes, accounts} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	sidecar, err := meta.NewSideCar(attributes) // not every file system has extended attributes
	if err != nil {
		return nil, err
	}
	backend, err := posix.New(objects, sidecar, posix.PosixOpts{SideCarDir: attributes, Concurrency: 16})
	if err != nil {
		return nil, err
	}
	users, err := auth.New(&auth.Opts{Dir: accounts, RootAccount: auth.Account{Access: accessKey, Secret: secretKey, Role: auth.RoleAdmin}})
	if err != nil {
		return nil, err
	}
	if err := users.CreateAccount(auth.Account{Access: guestKey, Secret: guestSecret, Role: auth.RoleUser}); err != nil {
		return nil, err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	stopped := make(chan error, 1)
	go func() {
		stopped <- embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
			RootUserAccess: accessKey, RootUserSecret: secretKey, IAMService: users, Region: region, Ports: []string{address},
			MaxConnections: 1000, MaxRequests: 1000, MultipartMaxParts: 10000, Quiet: true, KeepAlive: true, HealthPath: "/health",
		})
	}()
	endpoint = "http://" + address
	return stopped, waitFor(endpoint+"/health", stopped)
}

// freeAddress picks a port. Another process may take it before the server does, which then fails to start.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

func waitFor(address string, stopped <-chan error) error {
	for began := time.Now(); time.Since(began) < 30*time.Second; {
		select {
		case err := <-stopped:
			return fmt.Errorf("the server ended: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
		if resp, err := http.Get(address); err == nil {
			return resp.Body.Close()
		}
	}
	return fmt.Errorf("no answer from %s", address)
}

var buckets atomic.Int32

// newBucket makes a bucket with the objects, and returns the options of a store that can read it.
func newBucket(t *testing.T, objects map[string][]byte) origin.S3Options {
	t.Helper()
	client := owner(t)
	bucket := fmt.Sprintf("bucket-%d", buckets.Add(1))
	if err := client.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{Region: region}); err != nil {
		t.Fatal(err)
	}
	for key, content := range objects {
		_, err := client.PutObject(t.Context(), bucket, key, bytes.NewReader(content), int64(len(content)), minio.PutObjectOptions{
			DisableContentSha256: true, // signed in chunks, an empty object leaves bytes behind that the server takes for a request
		})
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
	}
	return origin.S3Options{Endpoint: endpoint, Bucket: bucket, Region: region, AccessKey: accessKey, SecretKey: secretKey}
}

// owner is a client that may do everything.
func owner(t *testing.T) *minio.Client {
	t.Helper()
	client, err := minio.New(endpoint[len("http://"):], &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: region})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func newS3(t *testing.T, o origin.S3Options) *origin.S3 {
	t.Helper()
	s, err := origin.NewS3(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.CloseIdleConnections)
	return s
}

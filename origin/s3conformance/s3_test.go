package s3conformance

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/capgo-edge/capgo-edge/origin"
	"github.com/capgo-edge/capgo-edge/origin/storetest"
)

func TestConformance(t *testing.T) {
	for _, prefix := range []string{"", "releases/mobile app+1%"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			storetest.Run(t, storetest.Harness{New: func(t *testing.T, objects map[string][]byte) origin.Store {
				below := make(map[string][]byte, len(objects))
				for key, content := range objects {
					if prefix != "" {
						key = prefix + "/" + key
					}
					below[key] = content
				}
				o := newBucket(t, below)
				o.Prefix = prefix
				return newS3(t, o)
			}})
		})
	}
}

// TestErrors: what is wrong with the settings never looks like a missing object, for a GET as for a HEAD.
func TestErrors(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	good := newBucket(t, map[string][]byte{"a": []byte("content")})
	tests := []struct {
		name string
		set  func(o *origin.S3Options)
		key  string
		want error
		text []string // parts of the message
	}{
		{"right", func(*origin.S3Options) {}, "a", nil, nil},
		{"path style", func(o *origin.S3Options) { o.PathStyle = true }, "a", nil, nil},
		{"missing key", func(*origin.S3Options) {}, "b", origin.ErrNotFound, nil},
		{"missing prefix", func(o *origin.S3Options) { o.Prefix = "none" }, "a", origin.ErrNotFound, nil},
		{
			"wrong secret key", func(o *origin.S3Options) { o.SecretKey = "hunter2secret" }, "a",
			origin.ErrUnavailable,
			[]string{"correct secret_key", "SignatureDoesNotMatch"},
		},
		{
			"wrong access key", func(o *origin.S3Options) { o.AccessKey = "somebody" }, "a",
			origin.ErrUnavailable,
			[]string{"correct access_key", "InvalidAccessKeyId"},
		},
		{
			"no keys", func(o *origin.S3Options) { o.AccessKey, o.SecretKey = "", "" }, "a",
			origin.ErrUnavailable,
			[]string{"set access_key and secret_key"},
		},
		{
			"missing bucket", func(o *origin.S3Options) { o.Bucket = "no-such-bucket" }, "a",
			origin.ErrUnavailable,
			[]string{"no bucket no-such-bucket", "NoSuchBucket"},
		},
		{
			"wrong region", func(o *origin.S3Options) { o.Region = "us-west-2" }, "a",
			origin.ErrUnavailable,
			[]string{"not us-west-2", "set region " + region, "AuthorizationHeaderMalformed"},
		},
		{
			"keys of somebody else", func(o *origin.S3Options) { o.AccessKey, o.SecretKey = guestKey, guestSecret }, "a",
			origin.ErrUnavailable,
			[]string{"s3:GetObject", "s3:ListBucket", "AccessDenied"},
		},
	}
	for _, tt := range tests {
		for _, headOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, head %v", tt.name, headOnly), func(t *testing.T) {
				o := good
				tt.set(&o)
				_, _, err := storetest.Read(t, newS3(t, o), tt.key, origin.GetOptions{HeadOnly: headOnly})
				if !errors.Is(err, tt.want) || errors.Is(err, origin.ErrNotFound) != (tt.want == origin.ErrNotFound) {
					t.Fatalf("got %v, want %v", err, tt.want)
				}
				if err != nil {
					check(t, err.Error(), tt.text, o)
				}
			})
		}
	}
}

func check(t *testing.T, message string, parts []string, o origin.S3Options) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(message, part) {
			t.Errorf("%q lacks %q", message, part)
		}
	}
	for _, secret := range []string{o.AccessKey, o.SecretKey} {
		if secret != "" && strings.Contains(message, secret) {
			t.Errorf("%q tells %q", message, secret)
		}
	}
}

// TestReadWithoutList has keys that may read but not list, as is usual: what a missing object is told from is an object
// that was read.
func TestReadWithoutList(t *testing.T) {
	o := newBucket(t, map[string][]byte{"a": []byte("content"), "private/b": []byte("content")})
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["` + guestKey + `"]},` +
		`"Action":["s3:GetObject"],"Resource":["arn:aws:s3:::` + o.Bucket + `/a"]}]}`
	if err := owner(t).SetBucketPolicy(t.Context(), o.Bucket, policy); err != nil {
		t.Fatal(err)
	}
	o.AccessKey, o.SecretKey = guestKey, guestSecret
	s := newS3(t, o)
	for _, step := range []struct {
		key  string
		want error
	}{{"missing", origin.ErrUnavailable}, {"a", nil}, {"missing", origin.ErrNotFound}, {"private/b", origin.ErrNotFound}, {"a", nil}} {
		if _, _, err := storetest.Read(t, s, step.key, origin.GetOptions{}); !errors.Is(err, step.want) {
			t.Errorf("%s: got %v, want %v", step.key, err, step.want)
		}
	}
}

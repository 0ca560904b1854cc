package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// S3 is a Store over a bucket of Amazon S3, or of any service that speaks its protocol.
//
// What it says of a missing object can be relied on: keys, bucket, region or a clock that are wrong never look like a
// missing object. Its errors say which setting to correct, and hold nothing of what the service or the operator wrote
// that might be secret.
type S3 struct {
	client   minio.Core
	send     *s3Transport
	keys     *credentials.Credentials
	settings s3Settings

	// readable says that an object was read with the keys in use. Only then does "access denied" mean a missing object:
	// services answer so where the keys may not list the bucket.
	readable atomic.Bool
}

// S3Options configure an S3 store.
type S3Options struct {
	// Bucket is the name of the bucket.
	Bucket string
	// Region is the bucket's. Default: the one an endpoint of Amazon names. Otherwise us-east-1, which most other services
	// take for any; without Endpoint, AWS_REGION or AWS_DEFAULT_REGION go before it.
	Region string
	// Endpoint is the http or https address of the service, without the bucket. Default: Amazon S3.
	Endpoint string
	// Prefix is a folder in the bucket: objects are read below it.
	Prefix string
	// AccessKey and SecretKey sign requests. Without them, keys are looked for where Amazon's own tools look: in the
	// environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), then the role that the machine, container
	// or pod has. That is done by the first Get.
	AccessKey, SecretKey string
	// SessionToken belongs to temporary keys.
	SessionToken string
	// PathStyle has the bucket in the path of addresses, always. Otherwise it stands in the host where the service is
	// Amazon's, Google's or Alibaba's (but for a bucket with dots over https, which no certificate covers), and in the
	// path everywhere else.
	PathStyle bool
	// StallTimeout ends a request whose body brings nothing for so long. Default: 30 s.
	StallTimeout time.Duration
	// WrapTransport, if set, wraps the transport, for tracing.
	WrapTransport func(http.RoundTripper) http.RoundTripper
}

const (
	awsEndpoint     = "https://s3.amazonaws.com"
	defaultS3Region = "us-east-1"
	maxS3Key        = 1024 // bytes
)

// s3Settings are the options that errors speak of.
type s3Settings struct {
	bucket, endpoint, region string
	prefix                   string // "" or ends in a slash
	ownKeys                  bool   // keys are configured, not found
}

// NewS3 returns the store over a bucket. It does not ask the service yet.
func NewS3(o S3Options) (*S3, error) {
	if err := checkBucket(o.Bucket); err != nil {
		return nil, err
	}
	endpoint, err := parseEndpoint(o.Endpoint)
	if err != nil {
		return nil, err
	}
	region, err := o.region(endpoint)
	if err != nil {
		return nil, err
	}
	prefix := strings.Trim(o.Prefix, "/")
	if prefix != "" && !isS3Key(prefix) {
		return nil, fmt.Errorf("the prefix %q cannot be part of an object's key; write it like releases/mobile", o.Prefix)
	} else if prefix != "" {
		prefix += "/"
	}
	keys, err := o.keys()
	if err != nil {
		return nil, err
	}
	s := &S3{
		send:     newS3Transport(o.StallTimeout, o.WrapTransport),
		keys:     keys,
		settings: s3Settings{o.Bucket, endpoint.String(), region, prefix, o.AccessKey != ""},
	}
	client, err := minio.NewCore(endpoint.Host, &minio.Options{
		Creds: keys, Secure: endpoint.Scheme == "https", Transport: s.send,
		Region: region, BucketLookup: o.lookup(), // a region that is set costs no request to find it
		MaxRetries: 1, // who calls a Store knows whether a second try is worth it
	})
	if err != nil {
		return nil, fmt.Errorf("the endpoint is not one of an S3 service: %w", err)
	}
	s.client = *client
	return s, nil
}

// checkBucket holds a name to the rules of S3, which other services share.
func checkBucket(bucket string) error {
	switch {
	case bucket == "":
		return errors.New("the bucket is missing")
	case strings.Contains(bucket, "/"):
		return fmt.Errorf("the bucket %q must be a name alone; a folder in it is the prefix, and the service's address the endpoint", bucket)
	case s3utils.CheckValidBucketNameStrict(bucket) != nil:
		return fmt.Errorf("%q is no bucket name: 3 to 63 lower-case letters, digits, hyphens and dots, a letter or digit first and last", bucket)
	}
	return nil
}

// parseEndpoint reads the service's address, in the one form that tells it from others.
func parseEndpoint(endpoint string) (*url.URL, error) {
	if endpoint == "" {
		endpoint = awsEndpoint
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return nil, errors.New("the endpoint is not a URL") // the parse error repeats it, password and all
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("the endpoint must begin with http:// or https://")
	case u.Hostname() == "":
		return nil, errors.New("the endpoint names no host")
	case u.User != nil:
		return nil, errors.New("the endpoint must hold no keys; set them by access_key and secret_key")
	case strings.Trim(u.Path, "/") != "":
		return nil, errors.New("the endpoint must have no path; the bucket is an option of its own, and a folder in it is the prefix")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("the endpoint must have no query and no fragment")
	}
	host := strings.ToLower(u.Host)
	if port := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]; u.Port() == "" || ":"+u.Port() == port {
		host = strings.TrimSuffix(strings.TrimSuffix(host, port), ":")
	}
	return &url.URL{Scheme: u.Scheme, Host: host}, nil
}

var regionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*$`)

func (o *S3Options) region(endpoint *url.URL) (string, error) {
	region := o.Region
	if region == "" {
		region = s3utils.GetRegionFromURL(*endpoint)
	}
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if region == "" && o.Endpoint == "" {
			region = os.Getenv(name)
		}
	}
	if region == "" {
		region = defaultS3Region
	}
	if !regionName.MatchString(region) {
		return "", fmt.Errorf("%q is no region; write it like eu-central-1", region)
	}
	return region, nil
}

func (o *S3Options) lookup() minio.BucketLookupType {
	if o.PathStyle {
		return minio.BucketLookupPath
	}
	return minio.BucketLookupAuto
}

// Identity implements Store.
func (s *S3) Identity() string {
	return strings.TrimSuffix("s3 "+s.settings.endpoint+" "+s.settings.bucket+" "+strings.TrimSuffix(s.settings.prefix, "/"), " ")
}

// CloseIdleConnections closes connections that no request uses. The store stays usable.
func (s *S3) CloseIdleConnections() { s.send.connections.CloseIdleConnections() }

// isS3Key reports that an object can be called so, and asked for by a URL.
func isS3Key(key string) bool {
	return isPath(key) && strings.TrimSpace(key) != "" && len(key) <= maxS3Key && utf8.ValidString(key)
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	if !isPath(key) || !isS3Key(s.settings.prefix+key) {
		return nil, ErrNotFound
	}
	if opts.HeadOnly {
		return s.head(ctx, s.settings.prefix+key, opts)
	}
	return s.get(ctx, s.settings.prefix+key, opts)
}

func (s *S3) get(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	body, _, header, err := s.client.GetObject(ctx, s.settings.bucket, key, s3Conditions(opts))
	if err != nil {
		return nil, s.failure(err)
	}
	object, err := newS3Object(header, body, opts)
	if err != nil {
		return nil, errors.Join(err, body.Close())
	}
	s.readable.Store(true)
	return object, nil
}

// head asks for one byte instead of none. The answer to a HEAD has no body to tell a missing object from a missing bucket,
// and wrong keys from a key that must not be listed.
func (s *S3) head(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	byteOnly := opts
	byteOnly.HeadOnly, byteOnly.Offset, byteOnly.Length = false, 0, 1
	o, err := s.get(ctx, key, byteOnly)
	if errors.Is(err, ErrRange) { // an empty object has no first byte
		byteOnly.Length = 0
		o, err = s.get(ctx, key, byteOnly)
	}
	if err != nil {
		return nil, err
	}
	_, _ = io.CopyN(io.Discard, o.Body, 1) // read, it leaves the connection usable
	err = o.Body.Close()
	if opts.Offset > 0 && opts.Offset >= o.Size {
		return nil, errors.Join(ErrRange, err)
	}
	o.Body = emptyBody{}
	return o, err
}

// s3Conditions are the headers that an HTTP store would send.
func s3Conditions(opts GetOptions) minio.GetObjectOptions {
	header := make(http.Header)
	header.Set("Accept-Encoding", "identity")
	setConditions(header, opts)
	var o minio.GetObjectOptions
	for name := range header {
		o.Set(name, header.Get(name))
	}
	return o
}

// newS3Object turns an answer into an Object. The client lets only 200 and 206 through.
func newS3Object(header http.Header, body io.ReadCloser, opts GetOptions) (*Object, error) {
	size, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64)
	if err != nil {
		return nil, unavailable("it tells no Content-Length, which S3 services do; correct endpoint, or what stands before the service")
	}
	switch encoding := header.Get("Content-Encoding"); encoding {
	case "", "identity":
	case "aws-chunked": // how it was uploaded; some services keep that as if it were how it is stored
		header.Del("Content-Encoding")
	default:
		return nil, unavailable("the object is stored with Content-Encoding %q; upload it without", encoding)
	}
	resp := &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, Header: header, Body: body, ContentLength: size}
	if header.Get("Content-Range") != "" {
		resp.StatusCode = http.StatusPartialContent
	}
	return newObject(resp, opts)
}

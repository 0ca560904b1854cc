package caddymodule

import (
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/capgo-edge/capgo-edge/origin"
)

// S3Origin reads manifests and bundles from a bucket of Amazon S3, or of any service that speaks its protocol.
//
// The keys need s3:GetObject on the objects. With s3:ListBucket on the bucket the service also says that an object is
// missing; without, it says "access denied", which counts as missing as soon as some object was read.
type S3Origin struct {
	// Bucket is the name of the bucket.
	Bucket string `json:"bucket,omitempty"`
	// Region is the bucket's. Default: the one that an endpoint of Amazon names. Otherwise, without an endpoint, AWS_REGION
	// or AWS_DEFAULT_REGION of the environment; else us-east-1, which most other services take for any.
	Region string `json:"region,omitempty"`
	// Endpoint is the address of the service, http or https, without the bucket. Default: Amazon S3, in the region.
	Endpoint string `json:"endpoint,omitempty"`
	// Prefix is a folder in the bucket that manifests and bundles are below. Default: none.
	Prefix string `json:"prefix,omitempty"`
	// AccessKey is the id of the key that requests are signed with. Write it as {env.NAME} or {file./path}. Default: the
	// environment's (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), else the keys of the role that the
	// machine, container or pod has. Files of Amazon's tools in a home directory are not read.
	AccessKey string `json:"access_key,omitempty"`
	// SecretKey is the secret of AccessKey: set both or neither. Write it as {env.NAME} or {file./path}.
	SecretKey string `json:"secret_key,omitempty"`
	// SessionToken belongs to keys that are temporary. Default: none. As they expire, a role is better.
	SessionToken string `json:"session_token,omitempty"`
	// PathStyle has the bucket stand in the path of addresses, always. Default: it stands in the host at Amazon, Google and
	// Alibaba (but for a bucket with dots over https, which no certificate covers), and in the path at all others.
	PathStyle bool `json:"path_style,omitempty"`
}

// CaddyModule implements caddy.Module.
func (S3Origin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "capgo_edge.origins.s3", New: func() caddy.Module { return new(S3Origin) }}
}

// Store implements Origin.
func (o *S3Origin) Store() (origin.Store, error) {
	expanded := *o
	for _, s := range expanded.settings() {
		var err error
		if *s.value, err = expand("origin s3: "+s.name, *s.value); err != nil {
			return nil, err
		}
	}
	return expanded.store()
}

func (o *S3Origin) store() (origin.Store, error) {
	store, err := origin.NewS3(origin.S3Options{
		Bucket: o.Bucket, Region: o.Region, Endpoint: o.Endpoint, Prefix: o.Prefix,
		AccessKey: o.AccessKey, SecretKey: o.SecretKey, SessionToken: o.SessionToken, PathStyle: o.PathStyle,
	})
	if err != nil {
		return nil, fmt.Errorf("origin s3: %w", err)
	}
	return store, nil
}

// s3Setting is an option that is text. What a placeholder stands for is unknown at first; until then its example does.
type s3Setting struct {
	name    string
	value   *string
	example string
}

func (o *S3Origin) settings() []s3Setting {
	return []s3Setting{
		{"bucket", &o.Bucket, "bucket"},
		{"region", &o.Region, "us-east-1"},
		{"endpoint", &o.Endpoint, "https://s3.example.com"},
		{"prefix", &o.Prefix, "folder"},
		{"access_key", &o.AccessKey, "key"},
		{"secret_key", &o.SecretKey, "key"},
		{"session_token", &o.SessionToken, "token"},
	}
}

// check is what NewS3 says of the options, as far as it can be known before placeholders have values.
func (o *S3Origin) check() error {
	known := *o
	for _, s := range known.settings() {
		if err := checkPlaceholders("origin s3: "+s.name, *s.value); err != nil {
			return err
		}
		if strings.Contains(*s.value, "{") {
			*s.value = s.example
		}
	}
	_, err := known.store()
	return err
}

// UnmarshalCaddyfile reads:
//
//	s3 <bucket> {
//		region        <region>
//		endpoint      <url>
//		prefix        <folder>
//		access_key    <key>
//		secret_key    <key>
//		session_token <token>
//		path_style
//	}
func (o *S3Origin) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the kind
	if err := oneArgument(d, &o.Bucket); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return atLine(d, err)
	}
	seen, line := once{}, *d
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := seen.check(d); err != nil {
			return err
		}
		name := d.Val()
		if err := o.unmarshalOption(d, name); err != nil {
			return err
		}
		if name == "access_key" || name == "secret_key" || name == "session_token" {
			line = *d // what lacks is missed here, rather than where the block ends
		}
	}
	return atLine(&line, o.check())
}

func (o *S3Origin) unmarshalOption(d *caddyfile.Dispenser, name string) error {
	if name == "path_style" {
		o.PathStyle = true
		return noMoreArguments(d)
	}
	// The option is judged alone, at its line; what belongs together, at the end of the block.
	alone := S3Origin{Bucket: "bucket", AccessKey: "key", SecretKey: "key"}
	own, others := o.settings()[1:], alone.settings()[1:]
	for i, s := range own {
		if s.name != name {
			continue
		}
		if err := oneArgument(d, s.value); err != nil {
			return err
		}
		*others[i].value = *s.value
		return atLine(d, alone.check())
	}
	return unknown(d, "region, endpoint, prefix, access_key, secret_key, session_token, path_style")
}

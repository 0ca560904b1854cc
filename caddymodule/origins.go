package caddymodule

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/capgo-edge/capgo-edge/origin"
)

// Origin is a guest module in the namespace capgo_edge.origins: a kind of storage that holds manifests and bundles.
type Origin interface {
	caddy.Module
	// Store returns the storage. It is called once, after Provision, and must not touch the storage yet.
	Store() (origin.Store, error)
}

// FileOrigin reads manifests and bundles from a directory of this machine.
type FileOrigin struct {
	// Dir is the directory. It may be a link: when that is switched to another directory, the edge follows. Links within
	// it must stay within it.
	Dir string `json:"dir,omitempty"`
}

// CaddyModule implements caddy.Module.
func (FileOrigin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "capgo_edge.origins.file", New: func() caddy.Module { return new(FileOrigin) }}
}

// Store implements Origin.
func (o *FileOrigin) Store() (origin.Store, error) {
	dir, err := expand("origin file", o.Dir)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return nil, fmt.Errorf("origin file: the directory is missing")
	}
	return origin.NewFile(dir)
}

// HTTPOrigin reads manifests and bundles from a web server.
type HTTPOrigin struct {
	// BaseURL is the address that object keys are appended to, http or https. Redirects are followed on the same host only.
	BaseURL string `json:"base_url,omitempty"`
	// Headers are sent with each request, for example an authorization. Write secrets as {env.NAME} or {file./path}. "Host"
	// names another host to the server. Those that the edge sets itself cannot be set: Accept-Encoding, Connection,
	// Content-Length, Range, Transfer-Encoding, and those of conditions, If-Match and the like.
	Headers http.Header `json:"headers,omitempty"`
}

// CaddyModule implements caddy.Module.
func (HTTPOrigin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "capgo_edge.origins.http", New: func() caddy.Module { return new(HTTPOrigin) }}
}

// Store implements Origin.
func (o *HTTPOrigin) Store() (origin.Store, error) {
	base, err := expand("origin http", o.BaseURL)
	if err != nil {
		return nil, err
	}
	if err := checkHeaderNames(o.Headers, originHeaders); err != nil {
		return nil, err
	}
	header, err := expandHeaders(o.Headers)
	if err != nil {
		return nil, err
	}
	if err := checkHeaderValues(header); err != nil {
		return nil, err
	}
	store, err := origin.NewHTTP(origin.HTTPOptions{BaseURL: base, Header: header})
	if err != nil {
		return nil, notBaseURL(o.BaseURL, err)
	}
	return store, nil
}

// check is what Store says of the options, as far as it can be known before placeholders have values.
func (o *HTTPOrigin) check() error {
	if err := checkPlaceholders("origin http", o.BaseURL); err != nil {
		return err
	}
	if !strings.Contains(o.BaseURL, "{") {
		if _, err := origin.NewHTTP(origin.HTTPOptions{BaseURL: o.BaseURL}); err != nil {
			return notBaseURL(o.BaseURL, err)
		}
	}
	return checkHeaderNames(o.Headers, originHeaders)
}

// notBaseURL is the error for a base address, of which it shows what is written: its placeholders may stand for secrets.
func notBaseURL(configured string, err error) error {
	return fmt.Errorf("origin http: %q: %w", withoutSecrets(configured), err)
}

// expand fills in {env.*} and {file.*}. What else stands in braces is left as it is, {app_id} for one, but a placeholder
// of a request has no value here.
func expand(what, value string) (string, error) {
	if err := checkPlaceholders(what, value); err != nil {
		return "", err
	}
	expanded, err := caddy.NewReplacer().ReplaceOrErr(value, true, false)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return expanded, nil
}

func checkPlaceholders(what, value string) error {
	_, behind, found := strings.Cut(value, "{http.")
	if !found {
		return nil
	}
	name, _, closed := strings.Cut(behind, "}")
	if !closed {
		name = "..." // what stands around a placeholder may be secret
	}
	return fmt.Errorf("%s: {http.%s} is a placeholder of a request, which has no value here; note that a Caddyfile turns "+
		"{file.name} into one: give a file's full path, {file./path/name}, or use {env.NAME}", what, name)
}

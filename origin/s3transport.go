package origin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// s3Transport is what the S3 client sends by. The client reads the bodies of errors by itself, so they are watched for
// stalls down here.
type s3Transport struct {
	connections *http.Transport
	next        http.RoundTripper // connections, maybe wrapped
	stall       time.Duration
}

func newS3Transport(stall time.Duration, wrap func(http.RoundTripper) http.RoundTripper) *s3Transport {
	if stall <= 0 {
		stall = 30 * time.Second
	}
	t := &s3Transport{connections: newTransport(s3Proxy, newDialer().DialContext), stall: stall}
	t.next = t.connections
	if wrap != nil {
		t.next = wrap(t.connections)
	}
	return t
}

// s3Proxy is the environment's, save for addresses that only this machine can reach: those it is told its role by.
func s3Proxy(req *http.Request) (*url.URL, error) {
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && ip.IsLinkLocalUnicast() {
		return nil, nil
	}
	return http.ProxyFromEnvironment(req)
}

// errHungUp stands for an EOF, which the client would replace by a text with the whole address.
var errHungUp = errors.New("it closed the connection without an answer")

// RoundTrip implements http.RoundTripper.
func (t *s3Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		if strings.Contains(err.Error(), "EOF") {
			return nil, errHungUp
		}
		return nil, err
	}
	resp.Body = newWatchedBody(resp.Body, t.stall, cancel)
	if resp.StatusCode/100 == 2 && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		// The client may take these for success without a body, and does not close the one they have.
		return nil, errors.Join(fmt.Errorf("it answers status %d, as no S3 service does; correct endpoint", resp.StatusCode), resp.Body.Close())
	}
	return resp, nil
}

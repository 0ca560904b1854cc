package caddymodule

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Sign has the edge hand out addresses that end: a download needs one from a recent answer.
type Sign struct {
	// Secret is what addresses are signed with; make one with "openssl rand -hex 32", and write it as {env.NAME} or
	// {file./path}. Sites that phones may change between need the same.
	Secret string `json:"secret,omitempty"`
	// OldSecret is a further secret whose signatures are still taken, so that the secret can be changed: put the old one
	// here until the addresses signed with it have ended.
	OldSecret string `json:"old_secret,omitempty"`
	// TTL is how long an address is good for at the least; the expiry is rounded up, by a quarter at the most, so that
	// answers need not be signed one by one. Downloads that began in time end in peace. At least 1s.
	TTL caddy.Duration `json:"ttl,omitempty"`
}

const (
	// goodSecret is the least length of a secret that nobody guesses.
	goodSecret = 16
	minSignTTL = time.Second
	// clockSkew is how far the clocks of two sites may be apart.
	clockSkew = 5 * time.Minute
)

func (s *Sign) check() error {
	switch {
	case s.Secret == "":
		return errors.New("sign: the secret is missing")
	case time.Duration(s.TTL) < minSignTTL:
		return fmt.Errorf("sign: the time to live must be at least %s", minSignTTL)
	}
	return nil
}

// signer signs addresses of objects and judges the signatures of requests.
type signer struct {
	secrets [][]byte // the first signs
	ttl     time.Duration
}

// newSigner expands the placeholders of s.
func newSigner(s *Sign) (*signer, error) {
	expanded := *s
	var err error
	if expanded.Secret, err = expand("sign", s.Secret); err != nil {
		return nil, err
	}
	if expanded.OldSecret, err = expand("sign", s.OldSecret); err != nil {
		return nil, err
	}
	if err := expanded.check(); err != nil {
		return nil, err
	}
	out := &signer{secrets: [][]byte{[]byte(expanded.Secret)}, ttl: time.Duration(s.TTL)}
	if expanded.OldSecret != "" {
		out.secrets = append(out.secrets, []byte(expanded.OldSecret))
	}
	return out, nil
}

// isWeak reports whether somebody may guess the secret that signs.
func (s *signer) isWeak() bool { return len(s.secrets[0]) < goodSecret }

// expiry is when addresses signed now end. It is the same for a quarter of their time.
func (s *signer) expiry(now time.Time) int64 {
	step := max(int64(s.ttl/time.Second/4), 1)
	end := now.Add(s.ttl).Unix()
	return (end + step - 1) / step * step
}

// suffix appends the parameters that sign the address of a key.
func (s *signer) suffix(dst []byte, key string, expiry int64) []byte {
	dst = append(dst, "&expires="...)
	dst = strconv.AppendInt(dst, expiry, 10)
	dst = append(dst, "&sig="...)
	return base64.RawURLEncoding.AppendEncode(dst, signature(s.secrets[0], key, expiry))
}

func signature(secret []byte, key string, expiry int64) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(key))
	mac.Write([]byte{'\n'})
	mac.Write(strconv.AppendInt(nil, expiry, 10))
	return mac.Sum(nil)
}

// errUnsigned says that an address is not signed, or not by us; errExpired that it has ended.
var (
	errUnsigned = errors.New("the signature of this address is missing or wrong")
	errExpired  = errors.New("this address has expired")
)

// verify judges the query of a request for a key.
func (s *signer) verify(query url.Values, key string, now time.Time) error {
	expiry, err := strconv.ParseInt(query.Get("expires"), 10, 64)
	if err != nil {
		return errUnsigned
	}
	given, err := base64.RawURLEncoding.DecodeString(query.Get("sig"))
	if err != nil {
		return errUnsigned
	}
	for _, secret := range s.secrets {
		if hmac.Equal(given, signature(secret, key, expiry)) {
			if now.Unix() > expiry+int64(clockSkew/time.Second) {
				return errExpired
			}
			return nil
		}
	}
	return errUnsigned
}

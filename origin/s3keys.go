package origin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// keys are those configured, else those that will be found when first needed.
func (o *S3Options) keys() (*credentials.Credentials, error) {
	for _, key := range []struct{ name, value string }{
		{"access_key", o.AccessKey}, {"secret_key", o.SecretKey}, {"session_token", o.SessionToken},
	} {
		if strings.ContainsFunc(key.value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return nil, fmt.Errorf("%s holds a blank, a line end or what is not ASCII, which no key does", key.name)
		}
	}
	switch {
	case o.AccessKey != "" && o.SecretKey != "":
		return credentials.NewStaticV4(o.AccessKey, o.SecretKey, o.SessionToken), nil
	case o.AccessKey != "":
		return nil, errors.New("access_key is set without secret_key; set both, or neither to use the environment's or the machine's role")
	case o.SecretKey != "":
		return nil, errors.New("secret_key is set without access_key; set both, or neither to use the environment's or the machine's role")
	case o.SessionToken != "":
		return nil, errors.New("session_token is set without access_key and secret_key, which it belongs to; set all three")
	}
	return credentials.New(&foundKeys{role: new(credentials.IAM)}), nil
}

const (
	roleTimeout   = 5 * time.Second
	foundKeysLast = time.Hour        // where nothing says when they expire
	roleRetry     = time.Minute      // while older keys are still good
	noKeysLast    = 10 * time.Second // so that a machine without a role does not wait for it with each request
)

// errNoKeys is that nothing signs requests. They are not sent unsigned: whether that is allowed, "access denied" could
// not tell.
var errNoKeys = errors.New("there are no keys to sign requests with: set access_key and secret_key, or AWS_ACCESS_KEY_ID and " +
	"AWS_SECRET_ACCESS_KEY in the environment, or give the machine a role; a bucket that is open to all is read by an http origin")

// foundKeys looks for keys in the environment, then asks for those of the role that the machine, container or pod has.
// Its caller, credentials.Credentials, holds a lock around each call.
type foundKeys struct {
	role  credentials.Provider
	value credentials.Value
	err   error
	next  time.Time // when to look again
}

// IsExpired implements credentials.Provider. After a failure its caller would take false for "the old ones are still good".
func (k *foundKeys) IsExpired() bool { return k.err != nil || !time.Now().Before(k.next) }

// Retrieve implements credentials.Provider.
func (k *foundKeys) Retrieve() (credentials.Value, error) { return k.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext implements credentials.Provider. The keys are for all requests, so that it does not end with
// the one it came with.
func (k *foundKeys) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	now := time.Now()
	if k.err != nil && now.Before(k.next) {
		return credentials.Value{}, k.err
	}
	value, err := environmentKeys()
	if err == nil && value.AccessKeyID == "" {
		value, err = k.roleKeys(cc)
	}
	switch {
	case err == nil && value.Expiration.IsZero():
		k.value, k.err, k.next = value, nil, now.Add(foundKeysLast)
	case err == nil: // well before they expire
		k.value, k.err, k.next = value, nil, now.Add(value.Expiration.Sub(now)*4/5)
	case now.Before(k.value.Expiration):
		k.next = now.Add(min(roleRetry, k.value.Expiration.Sub(now)))
	default:
		k.value, k.err, k.next = credentials.Value{}, err, now.Add(noKeysLast)
	}
	return k.value, k.err
}

func environmentKeys() (credentials.Value, error) {
	value, err := new(credentials.EnvAWS).RetrieveWithCredContext(nil)
	switch {
	case err != nil:
		return credentials.Value{}, fmt.Errorf("keys of the environment: %w", err)
	case value.AccessKeyID != "" && value.SecretAccessKey == "":
		return credentials.Value{}, errors.New("the environment has AWS_ACCESS_KEY_ID without AWS_SECRET_ACCESS_KEY; set both, or neither")
	case value.AccessKeyID == "" && value.SecretAccessKey != "":
		return credentials.Value{}, errors.New("the environment has AWS_SECRET_ACCESS_KEY without AWS_ACCESS_KEY_ID; set both, or neither")
	}
	return value, nil
}

func (k *foundKeys) roleKeys(cc *credentials.CredContext) (credentials.Value, error) {
	if !roleAllowed() {
		return credentials.Value{}, errNoKeys
	}
	detached := credentials.CredContext{Context: context.Background()}
	if cc != nil {
		detached.Client, detached.Endpoint = cc.Client, cc.Endpoint
		if cc.Context != nil {
			detached.Context = context.WithoutCancel(cc.Context)
		}
	}
	ctx, cancel := context.WithTimeout(detached.Context, roleTimeout)
	defer cancel()
	detached.Context = ctx
	value, err := k.role.RetrieveWithCredContext(&detached)
	switch {
	case err != nil:
		return credentials.Value{}, fmt.Errorf("%w (asked for the machine's role: %w)", errNoKeys, publicError(err))
	case value.AccessKeyID == "" || value.SecretAccessKey == "":
		return credentials.Value{}, fmt.Errorf("%w (the machine's role has none)", errNoKeys)
	}
	return value, nil
}

// roleAllowed obeys the switch by which Amazon's tools are told that the machine has no metadata service.
func roleAllowed() bool {
	for _, name := range []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return !strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true")
}

package origin

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"

	"github.com/minio/minio-go/v7"
)

// failure turns an error of the client into one of this package. The texts hold no more of the answer than what is known
// to be a name: what else stands in it, a service may have copied from the request.
func (s *S3) failure(err error) error {
	answer, ok := errors.AsType[minio.ErrorResponse](err)
	if !ok {
		return s.unreachable(err)
	}
	switch answer.StatusCode {
	case 0: // made up by the client
		return unavailable("what %s answers lacks what S3 services tell of an object; correct endpoint", s.settings.endpoint)
	case http.StatusNotModified:
		s.readable.Store(true)
		return ErrNotModified
	case http.StatusPreconditionFailed:
		return ErrChanged
	case http.StatusRequestedRangeNotSatisfiable:
		return ErrRange
	}
	if answer.XMLName.Local == "" {
		return s.notS3(answer.StatusCode)
	}
	if text := s.wrongKeys(answer.Code); text != "" {
		s.keys.Expire() // found keys may have been replaced by now
		s.readable.Store(false)
		return unavailable("%s (%s)", text, answer.Code)
	}
	if text := s.wrongPlace(answer); text != "" {
		s.readable.Store(false)
		return unavailable("%s (%s)", text, answer.Code)
	}
	switch answer.Code {
	case "NoSuchKey", "KeyTooLongError":
		return ErrNotFound
	case "AccessDenied":
		return s.denied(answer)
	case "InvalidObjectState":
		return unavailable("the object is in an archive; keep manifests and bundles in a storage class that can be read at once")
	}
	return unavailable("it answers %s (status %d)", codeName(answer.Code), answer.StatusCode)
}

// unreachable is an error that came without an answer.
func (s *S3) unreachable(err error) error {
	if errors.Is(err, errNoKeys) {
		s.readable.Store(false)
	}
	err = publicError(err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case errors.Is(err, ErrUnavailable): // the body of an error stalled, or was cut
		return err
	case errors.Is(err, http.ErrSchemeMismatch):
		return unavailable("%s speaks no TLS; correct endpoint to begin with http://", s.settings.endpoint)
	case isDNS && dns.IsNotFound:
		return unavailable("%w; correct endpoint, or region", err)
	}
	return unavailable("%w", err)
}

// notS3 is an answer that no S3 service gave, as it does not say in XML what is wrong: a gateway's before it, or that of
// another kind of server. Whether the object exists, it does not know.
func (s *S3) notS3(status int) error {
	switch {
	case status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout:
		return unavailable("it answers status %d", status)
	case status/100 == 3:
		return unavailable("%s redirects (status %d), which is not followed; correct region, or endpoint", s.settings.endpoint, status)
	}
	return unavailable("it answers status %d without an error of S3; correct endpoint (%s) if that is no S3 service", status, s.settings.endpoint)
}

// wrongKeys says what has to be corrected where the service does not take the request for one of a user it knows. The
// codes are Amazon's, and those that other services have for the same.
func (s *S3) wrongKeys(code string) string {
	id, signing, temporary := "access_key", "secret_key", "access_key, secret_key and session_token"
	if !s.settings.ownKeys {
		id = "AWS_ACCESS_KEY_ID in the environment, or the machine's role"
		signing = "AWS_SECRET_ACCESS_KEY in the environment"
		temporary = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN in the environment, or the machine's role"
	}
	switch code {
	case "InvalidAccessKeyId", "InvalidAccessKey", "InvalidClientTokenId", "UnrecognizedClientException", "Unauthorized":
		return "the service does not know the access key; correct " + id
	case "SignatureDoesNotMatch":
		return "the signature does not match; correct " + signing + ", or endpoint if something before the service changes requests"
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired":
		return "the temporary keys have expired; renew " + temporary
	case "InvalidToken", "InvalidTokenId", "InvalidSecurity":
		return "the session token is not that of the keys; correct " + temporary
	case "RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture":
		return "the clocks of this machine and of the service differ too much; set this machine's clock, best by NTP"
	case "MissingSecurityHeader", "MissingAuthenticationToken", "InvalidRequestSignature":
		return "the service does not see the signature; correct endpoint if something before the service takes headers away"
	}
	return ""
}

// wrongPlace says what has to be corrected where the service has no such bucket, or not there.
func (s *S3) wrongPlace(answer minio.ErrorResponse) string {
	switch answer.Code {
	case "NoSuchBucket", "InvalidBucketName":
		return fmt.Sprintf("%s has no bucket %s; correct its name, or endpoint", s.settings.endpoint, s.settings.bucket)
	case "AllAccessDisabled", "AccountProblem", "NotSignedUp", "UserSuspended":
		return fmt.Sprintf("the service has closed the bucket %s or its account; ask the service", s.settings.bucket)
	case "PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed", "InvalidRegion", "IncorrectEndpoint",
		"IllegalLocationConstraintException":
		if answer.Region == s.settings.region || !regionName.MatchString(answer.Region) {
			return fmt.Sprintf("the bucket is not in region %s, or not at %s; correct region, endpoint, or an access key of another service",
				s.settings.region, s.settings.endpoint)
		}
		return fmt.Sprintf("the bucket is in region %s, not %s; set region %[1]s", answer.Region, s.settings.region)
	}
	return ""
}

var deniedAction = regexp.MustCompile(`not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)`)

// denied judges a bare "access denied". Amazon also says which permission is lacking, and that is s3:ListBucket if the
// object is missing.
func (s *S3) denied(answer minio.ErrorResponse) error {
	if action := deniedAction.FindStringSubmatch(answer.Message); action != nil && action[1] != "s3:ListBucket" {
		return unavailable("the keys must not read the object; grant them %s on it (AccessDenied)", action[1])
	}
	if s.readable.Load() {
		return ErrNotFound
	}
	return unavailable("access is denied. Either the keys must not read the bucket %s: grant them s3:GetObject on its objects. "+
		"Or the object is missing, and they must not know: grant them s3:ListBucket on the bucket, "+
		"so that missing can be told from forbidden (AccessDenied)", s.settings.bucket)
}

var errorCode = regexp.MustCompile(`^[A-Za-z0-9.]{1,64}$`)

// codeName is an error code, if it looks like one.
func codeName(code string) string {
	if errorCode.MatchString(code) {
		return code
	}
	return "an error without a code"
}

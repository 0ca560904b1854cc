package resolver

import (
	"encoding/base64"
	"testing"
	"time"
)

func jwt(payload string) string {
	return "eyJhbGciOiJIUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestExpiryOf(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Unix()
	tests := []struct {
		name, url     string
		expires       int64
		known, signed bool
	}{
		{"plain", "https://a/z", 0, false, false},
		{"official", officialZip, 0, false, false},
		{"query of no meaning", "https://a/z?a=b&&=&se=2026-01-02", 0, false, false},
		{"S3", presigned, at + 3600, true, true},
		{"S3, lower case", "https://a/z?x-amz-date=20260102T030405Z&x-amz-expires=60&x-amz-signature=s", at + 60, true, true},
		{"S3 without a date", "https://a/z?X-Amz-Expires=60&X-Amz-Signature=s", 0, false, true},
		{"S3 with an odd date", "https://a/z?X-Amz-Expires=60&X-Amz-Date=20261302T030405Z&X-Amz-Signature=s", 0, false, true},
		{"S3 with an odd life", "https://a/z?X-Amz-Expires=9223372036854775807&X-Amz-Date=20260102T030405Z&X-Amz-Signature=s", 0, false, true},
		{"S3, version 2", "https://a/z?AWSAccessKeyId=k&Expires=1767323045&Signature=s", at, true, true},
		{"Google", "https://a/z?X-Goog-Date=20260102T030405Z&X-Goog-Expires=60&X-Goog-Signature=s", at + 60, true, true},
		{"Alibaba", "https://a/z?x-oss-date=20260102T030405Z&x-oss-expires=60&x-oss-signature=s", at + 60, true, true},
		{"CloudFront, fixed policy", "https://a/z?Expires=1767323045&Signature=s&Key-Pair-Id=k", at, true, true},
		{"CloudFront, own policy", "https://a/z?Policy=e30_&Signature=s&Key-Pair-Id=k", 0, false, true},
		{"Azure", "https://a/z?sv=2024-01-01&st=2026-01-01&se=2026-01-02T03%3A04%3A05Z&sr=b&sp=r&sig=s", at, true, true},
		{"Azure, day", "https://a/z?sv=2024-01-01&se=2026-01-02&sig=s", at - 3*3600 - 4*60 - 5, true, true},
		{"Azure, minute", "https://a/z?sv=2024-01-01&se=2026-01-02T03:04Z&sig=s", at - 5, true, true},
		{"Azure, fraction", "https://a/z?sv=2024-01-01&se=2026-01-02T03:04:05.123Z&sig=s", at, true, true},
		{"Azure, odd", "https://a/z?sv=2024-01-01&se=2026/01/02&sig=s", 0, false, true},
		{"Azure, stored policy", "https://a/z?sv=2024-01-01&si=p&sig=s", 0, false, true},
		{"Supabase", "https://a/z?token=" + jwt(`{"url":"b/z","iat":1,"exp":1767323045}`), at, true, true},
		{"token with a fraction", "https://a/z?token=" + jwt(`{"exp":1767323045.7}`), at, true, true},
		{"token without an end", "https://a/z?token=" + jwt(`{"exp":"soon"}`), 0, false, true},
		{"token that is none", "https://a/z?token=" + jwt(`[]`), 0, false, false},
		{"token for good, as Firebase's", "https://a/z?alt=media&token=5c2ca1b3-a8ba", 0, false, false},
		{"this edge", "https://a/z?key=c&expires=1767323045&sig=s", at, true, true},
		{"milliseconds", "https://a/z?exp=1767323045000", at, true, false},
		{"no number", "https://a/z?exp=tomorrow&expires=-1", 0, false, false},
		{"the first counts", "https://a/z?exp=2000&expires=1000&token=" + jwt(`{"exp":3000}`), 1000, true, true},
		{"fragment", "https://a/z#?exp=2000", 0, false, false},
		{"no address", "%zz?exp=%zz&%zz", 0, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			expires, known, signed := ExpiryOf(tt.url)
			if expires != tt.expires || known != tt.known || signed != tt.signed {
				t.Errorf("got %d, known %t, signed %t", expires, known, signed)
			}
		})
	}
}

func TestDaysSince1970(t *testing.T) {
	for day := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC); day.Year() < 2405; day = day.AddDate(0, 0, 1) {
		if got, want := timeOfDigits(day.Format("20060102150405")), day.Unix(); got != want {
			t.Fatalf("%s: got %d, want %d", day.Format(time.DateOnly), got, want)
		}
	}
}

func TestStableURL(t *testing.T) {
	tests := []struct{ name, url, want string }{
		{"plain", "https://a/z", "https://a/z"},
		{"fragment", "https://a/z#x", "https://a/z"},
		{"S3", presigned, "https://b.s3.test/o/1.0.1.zip?x-id=GetObject"},
		{"Google", "https://a/z?X-Goog-Date=1&generation=5&X-Goog-Signature=s", "https://a/z?generation=5"},
		{"Azure", "https://a/z?sv=1&se=2&sp=r&sig=s&snapshot=4", "https://a/z?snapshot=4"},
		{"names of Azure's that are another's", "https://a/z?st=1&sp=2&sv=3", "https://a/z?st=1&sp=2&sv=3"},
		{"device", "https://a/z?key=c&device_id=d", "https://a/z?key=c"},
		{"all gone", "https://a/z?expires=1&sig=2", "https://a/z"},
		{"Alibaba", "https://a/z?x-oss-date=1&x-oss-process=doc%2Fconvert&x-oss-signature=s", "https://a/z?x-oss-process=doc%2Fconvert"},
		{"token that is made anew", "https://a/z?token=" + jwt(`{"exp":1,"iat":2,"nbf":3,"device_id":"d"}`), "https://a/z"},
		// The digest was computed without this package.
		{"token of an object", "https://a/z?b=c&token=" + jwt(`{"url":"b/z","iat":2}`), "https://a/z?b=c&token=6b3329a75a42f73fdc8160ebafd60cd490f9aacbf78eb475d418666e531449b3"},
		{"token for good", "https://a/z?alt=media&token=5c2c", "https://a/z?alt=media&token=5c2c"},
		{"Azure's names without its signature", "https://a/z?se=1&se=2&sv=3", "https://a/z?se=1&se=2&sv=3"},
		{"Azure's names, one of them twice", "https://a/z?se=1&se=2&sv=3&sig=4", "https://a/z"},
		{"written as it was", "https://a/z?b=%2f&a=+&&x-amz-date=1", "https://a/z?b=%2f&a=+&"},
	}
	for _, tt := range tests {
		if got := stableURL(tt.url); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Where a token is all that tells objects apart, it counts (protocol 7: presigned addresses).
func TestStableToken(t *testing.T) {
	tests := []struct {
		name, a, b string // the tokens of two addresses
		same       bool
	}{
		{"made anew", jwt(`{"file":"1","iat":1,"exp":2,"nbf":3}`), jwt(`{"file":"1","iat":4,"exp":5,"nbf":6}`), true},
		{"signed anew", jwt(`{"file":"1"}`), jwt(`{"file":"1"}`) + "x", true},
		{"for another device", jwt(`{"file":"1","device_id":"a"}`), jwt(`{"file":"1","device_id":"b"}`), true},
		{"another order", jwt(`{"file":"1","aud":"x"}`), jwt(`{"aud": "x", "file": "1"}`), true},
		{"id beside a claim", jwt(`{"file":"1","jti":"a"}`), jwt(`{"file":"1","jti":"b"}`), true},
		{"another file", jwt(`{"file":"ios/2.zip","exp":1}`), jwt(`{"file":"android/2.zip","exp":1}`), false},
		{"claims that run into each other", jwt(`{"a":1,"b":2}`), jwt(`{"a":12}`), false},
		{"nothing but an id", jwt(`{"jti":"a","exp":1}`), jwt(`{"jti":"b","exp":1}`), false},
		{"opaque", "4bd2f1", "4bd2f2", false},
		{"opaque, of three parts", "a.b.c", "a.b.d", false},
		{"none", "", jwt(`{"file":"1"}`), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := stableURL("https://a/download?token="+tt.a), stableURL("https://a/download?token="+tt.b)
			if (a == b) != tt.same {
				t.Errorf("%s and %s", a, b)
			}
		})
	}
}

func FuzzExpiryOf(f *testing.F) {
	for _, url := range []string{presigned, officialZip, "https://a/z?sv=1&se=2026-01-02T03:04:05.1Z&sig=s", "https://a/z?token=" + jwt(`{"exp":1,"jti":"1"}`), "?sv&&se=0000-00-:0&sig", "?sv&sig&se&se"} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		if expires, known, _ := ExpiryOf(url); known != (expires > 0) {
			t.Fatalf("got %d, known %t", expires, known)
		}
		if once := stableURL(url); stableURL(once) != once {
			t.Fatalf("%q, then %q", once, stableURL(once))
		}
	})
}

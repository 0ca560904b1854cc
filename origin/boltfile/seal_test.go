package boltfile

import (
	"bytes"
	"testing"
)

// FuzzUnseal: what was sealed comes back, and nothing else does.
func FuzzUnseal(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), byte(3))
	f.Fuzz(func(t *testing.T, key, value []byte, at byte) {
		sealed := Seal(key, bytes.Clone(value))
		if got, ok := Unseal(key, sealed); !ok || string(got) != string(value) {
			t.Fatalf("%q, %v", got, ok)
		}
		sealed[int(at)%len(sealed)] ^= 1
		if _, ok := Unseal(key, sealed); ok {
			t.Fatal("a changed row is taken for what was written")
		}
	})
}

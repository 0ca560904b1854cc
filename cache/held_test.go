package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// lateVerifier refuses after so many bytes, or at the end.
type lateVerifier struct {
	left  int
	told  int // calls of Verify
	atEnd error
}

func (v *lateVerifier) Write(p []byte) (int, error) {
	if v.left -= len(p); v.left < 0 {
		return 0, errors.New("too much of it")
	}
	return len(p), nil
}

func (v *lateVerifier) Verify() error {
	v.told++
	return v.atEnd
}

func TestHeldBody(t *testing.T) {
	for _, size := range []int{0, 1, heldBack, heldBack + 1, 300 << 10} {
		body := bytes.Repeat([]byte("x"), size)
		right := Expect{Covers: StoredDigest, SHA256: sha256.Sum256(body)}
		wrong := Expect{Covers: StoredDigest}
		for _, told := range []int64{int64(size), -1} {
			for _, tt := range []struct {
				name   string
				reader io.Reader
				expect *Expect
				err    error
			}{
				{"right", bytes.NewReader(body), &right, nil},
				{"right byte by byte", iotest.OneByteReader(bytes.NewReader(body)), &right, nil},
				{"wrong", bytes.NewReader(body), &wrong, ErrMismatch},
				{"cut", io.MultiReader(bytes.NewReader(body[:size/2]), iotest.ErrReader(errDown)), &right, errDown},
			} {
				h := newHeldBody(io.NopCloser(tt.reader), told, tt.expect)
				awaited := h.await()
				got, err := io.ReadAll(h)
				if !errors.Is(err, tt.err) || !bytes.HasPrefix(body, got) || err == nil && len(got) != size {
					t.Errorf("%d bytes, %s: %d bytes, %v", size, tt.name, len(got), err)
				}
				if err != nil && len(got) > max(0, size-heldBack) {
					t.Errorf("%d bytes, %s: %d bytes went out", size, tt.name, len(got))
				}
				if err != nil && len(got) == 0 && awaited == nil {
					t.Errorf("%d bytes, %s: it was awaited in vain", size, tt.name)
				}
			}
		}
	}
}

// TestHeldBodyVerifier: a verifier is told of the end exactly once.
func TestHeldBodyVerifier(t *testing.T) {
	for _, tt := range []struct {
		name string
		v    *lateVerifier
		read int64
		err  error
	}{
		{"right", &lateVerifier{left: 1 << 20}, 1 << 20, nil},
		{"refused on the way", &lateVerifier{left: 100 << 10}, 1 << 20, ErrMismatch},
		{"refused at the end", &lateVerifier{left: 1 << 20, atEnd: errInvalid}, 1 << 20, errInvalid},
		{"left early", &lateVerifier{left: 1 << 20}, 10, nil},
	} {
		expect := &Expect{Covers: DecodedDigest, New: func(*Expect) Verifier { return tt.v }}
		h := newHeldBody(io.NopCloser(bytes.NewReader(make([]byte, 200<<10))), 200<<10, expect)
		if _, err := io.CopyN(io.Discard, h, tt.read); !errors.Is(err, tt.err) && !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err := h.Close(); err != nil || tt.v.told != 1 {
			t.Errorf("%s: told %d times, %v", tt.name, tt.v.told, err)
		}
	}
}

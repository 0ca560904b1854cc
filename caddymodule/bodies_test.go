package caddymodule

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestBodyMemory: a body takes memory as it arrives, and a small one exactly what it needs.
func TestBodyMemory(t *testing.T) {
	tests := []struct {
		name            string
		announced, sent int
		most            int
		ok              bool
	}{
		{"a check", 700, 700, 701, true},
		{"the largest that is taken in one piece", firstBody - 1, firstBody - 1, firstBody, true},
		{"a batch", 60_000, 60_000, 64 << 10, true},
		{"announced and not sent", 200_000, 1, firstBody, false},
		{"announced and sent in part", 200_000, 20_000, 32 << 10, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := io.MultiReader(strings.NewReader(strings.Repeat("x", tt.sent)), failingReader{})
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/stats", body)
			r.ContentLength = int64(tt.announced)
			got, ok := readBody(httptest.NewRecorder(), r, nil, 1<<20)
			if ok != tt.ok || len(got) != tt.sent || cap(got) > tt.most {
				t.Errorf("%v, %d bytes, memory for %d", ok, len(got), cap(got))
			}
		})
	}
}

// failingReader is a connection that breaks.
type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

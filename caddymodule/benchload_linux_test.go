package caddymodule_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestLoad is no test but the load of .ci/bench-objects for large objects in clear text: it asks for CAPGO_EDGE_LOAD over
// CAPGO_EDGE_LOAD_CONNECTIONS connections for CAPGO_EDGE_LOAD_TIME. wrk reads 8 KiB at a time, so that three quarters of
// the machine are wrk's; here the kernel throws a body away without copying it (recv with MSG_TRUNC), so that what is
// measured is the server.
func TestLoad(t *testing.T) {
	address := os.Getenv("CAPGO_EDGE_LOAD")
	if address == "" {
		t.Skip("CAPGO_EDGE_LOAD is not set: this runs only in .ci/bench-objects")
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	connections, err := strconv.Atoi(os.Getenv("CAPGO_EDGE_LOAD_CONNECTIONS"))
	if err != nil {
		t.Fatal(err)
	}
	long, err := time.ParseDuration(os.Getenv("CAPGO_EDGE_LOAD_TIME"))
	if err != nil {
		t.Fatal(err)
	}
	var total traffic
	failed := make(chan error, connections)
	began := time.Now()
	for range connections {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(began.Add(long)); err != nil {
			t.Fatal(err)
		}
		go func() {
			failed <- total.run(conn.(*net.TCPConn), "GET "+u.Path+" HTTP/1.1\r\nHost: "+u.Host+"\r\n\r\n")
		}()
	}
	broken := 0
	for range connections {
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
			broken++
		}
	}
	// As wrk's report in the script has it.
	fmt.Printf("result %d %d %d %d\n", total.requests.Load(), total.bytes.Load(), time.Since(began).Microseconds(), broken)
}

type traffic struct{ requests, bytes atomic.Int64 }

// run asks until the connection's deadline.
func (l *traffic) run(conn *net.TCPConn, request string) error {
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20) // nothing is ever written behind the header, so it takes no memory
	for {
		if _, err := io.WriteString(conn, request); err != nil {
			return err
		}
		left, err := l.header(conn, buf[:4096])
		for left > 0 && err == nil {
			var n int
			if n, err = discard(raw, buf[:min(int64(len(buf)), left)]); n == 0 && err == nil {
				err = io.ErrUnexpectedEOF
			}
			left -= int64(n)
			l.bytes.Add(int64(n))
		}
		if err != nil {
			return err
		}
		l.requests.Add(1)
	}
}

// header reads to the end of a header, and tells how much of the body is still to come.
func (l *traffic) header(conn net.Conn, buf []byte) (int64, error) {
	for have := 0; ; {
		n, err := conn.Read(buf[have:])
		if err != nil {
			return 0, err
		}
		have += n
		l.bytes.Add(int64(n))
		end := bytes.Index(buf[:have], []byte("\r\n\r\n"))
		if end < 0 {
			continue
		}
		if !bytes.HasPrefix(buf, []byte("HTTP/1.1 200 ")) {
			return 0, fmt.Errorf("the server says %q", buf[:end])
		}
		_, after, _ := bytes.Cut(buf[:end+2], []byte("\r\nContent-Length: "))
		digits, _, _ := bytes.Cut(after, []byte("\r\n"))
		length, err := strconv.ParseInt(string(digits), 10, 64)
		return length - int64(have-end-4), err
	}
}

// discard receives up to len(p) bytes and throws them away.
func discard(raw syscall.RawConn, p []byte) (n int, err error) {
	waited := raw.Read(func(fd uintptr) bool {
		for {
			n, _, err = syscall.Recvfrom(int(fd), p, syscall.MSG_TRUNC)
			if !errors.Is(err, syscall.EINTR) {
				return !errors.Is(err, syscall.EAGAIN)
			}
		}
	})
	return max(n, 0), errors.Join(waited, err)
}

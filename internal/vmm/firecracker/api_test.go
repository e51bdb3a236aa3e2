package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vmm"
)

// serve answers on a Unix socket in dir in place of Firecracker.
func serve(t *testing.T, dir, name string, handle func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				handle(c)
			}()
		}
	}()
}

func TestAPIErrors(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, apiSocket))
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		switch r.URL.Path {
		case "/fine":
			w.WriteHeader(http.StatusNoContent)
		case "/fault":
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"fault_message":"unknown field\n  at line 1"}`)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })

	c := newAPIClient(dir, make(chan struct{}))
	defer c.close()
	if err := c.do(t.Context(), put("/fine", struct{}{})); err != nil {
		t.Error(err)
	}
	err = c.do(t.Context(), put("/fine", 1), put("/fault", 2), put("/never", 3))
	if !errors.Is(err, errAPI) || !strings.HasSuffix(err.Error(), "PUT /fault: firecracker refused: unknown field at line 1") {
		t.Error(err)
	}
	if last := asked[len(asked)-1]; last != "PUT /fault" {
		t.Errorf("went on after a failure, to %s", last)
	}
	if err := c.do(t.Context(), put("/other", 1)); !errors.Is(err, errAPI) || !strings.Contains(err.Error(), "500") {
		t.Error(err)
	}
}

func TestAPIWithoutFirecracker(t *testing.T) {
	done := make(chan struct{})
	close(done)
	c := newAPIClient(t.TempDir(), done)
	defer c.close()
	if err := c.do(t.Context(), put("/fine", 1)); !errors.Is(err, vmm.ErrExited) {
		t.Error(err)
	}
	alive := newAPIClient(t.TempDir(), make(chan struct{}))
	defer alive.close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := alive.do(ctx, put("/fine", 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestDialVsock(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		want         error // nil: it connects
	}{
		{"accepted", "OK 1073741824\nhello", nil},
		{"refused", "", errRefused},
		{"half an answer", "OK 107", errRefused},
		{"not a number", "OK x\n", errAnswer},
		{"something else", "NO 1\n", errAnswer},
		{"endless", strings.Repeat("OK", 100), errAnswer},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			asked := make(chan string, 1)
			serve(t, dir, paths.VsockName, func(conn net.Conn) {
				line, _ := readLine(conn)
				asked <- line
				_, _ = io.WriteString(conn, c.answer)
			})
			conn, err := dialVsock(t.Context(), dir, 1024)
			if line := <-asked; line != "CONNECT 1024" {
				t.Errorf("asked %q", line)
			}
			if c.want != nil {
				if !errors.Is(err, c.want) {
					t.Errorf("%v, not %v", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			// Not a byte of what follows is lost.
			if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// A guest that says nothing is left when the caller's time is over.
func TestDialVsockSilent(t *testing.T) {
	dir := t.TempDir()
	serve(t, dir, paths.VsockName, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	cause := fmt.Errorf("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, cause)
	defer cancel()
	if _, err := dialVsock(ctx, dir, 1024); !errors.Is(err, cause) {
		t.Error(err)
	}
}

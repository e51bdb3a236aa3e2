package term

import (
	"context"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

func openPTY(t *testing.T) (control, tty *os.File) {
	t.Helper()
	control, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo terminal here: %v", err)
	}
	t.Cleanup(func() {
		_ = tty.Close()
		_ = control.Close()
	})
	return control, tty
}

func localFlags(t *testing.T, f *os.File) uint32 {
	t.Helper()
	a, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return a.Lflag
}

func isRaw(t *testing.T, f *os.File) bool {
	t.Helper()
	return localFlags(t, f)&(unix.ECHO|unix.ICANON|unix.ISIG) == 0
}

func TestOfTellsTerminalsFromOtherStreams(t *testing.T) {
	_, tty := openPTY(t)
	if _, ok := Of(tty); !ok {
		t.Error("a pseudo terminal is not taken for a terminal")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	for _, s := range []any{null, (*os.File)(nil), strings.NewReader(""), nil} {
		if _, ok := Of(s); ok {
			t.Errorf("%T is taken for a terminal", s)
		}
	}
}

func TestWatchReportsTheSizeAndItsChanges(t *testing.T) {
	control, tty := openPTY(t)
	if err := pty.Setsize(control, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
		t.Fatal(err)
	}
	term, _ := Of(tty)
	ctx, cancel := context.WithCancel(t.Context())
	sizes := make(chan Size, 4)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		term.Watch(ctx, func(s Size) { sizes <- s })
	}()
	if got := receive(t, sizes); got != (Size{24, 80}) {
		t.Fatalf("first size is %v", got)
	}
	if err := pty.Setsize(control, &pty.Winsize{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	// The kernel signals only the terminal's own session; the test stands in.
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, sizes); got != (Size{50, 132}) {
		t.Fatalf("second size is %v", got)
	}
	cancel()
	receive(t, ended)
}

func TestRawMakesKeysBytesUntilRestored(t *testing.T) {
	control, tty := openPTY(t)
	term, _ := Of(tty)
	got := make(chan string, 1)
	go func() { // a Read that began before raw mode did
		b := make([]byte, 1)
		n, _ := io.ReadFull(tty, b)
		got <- string(b[:n])
	}()
	restore, err := term.Raw()
	if err != nil {
		t.Fatal(err)
	}
	if !isRaw(t, tty) {
		t.Fatal("the terminal is not raw")
	}
	if _, err := control.Write([]byte{3}); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	if s := receive(t, got); s != "\x03" {
		t.Fatalf("Ctrl-C arrives as %q", s)
	}
	for range 2 {
		if err := restore(); err != nil {
			t.Fatal(err)
		}
	}
	if isRaw(t, tty) {
		t.Fatal("still raw after restore")
	}
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	panic("unreachable")
}

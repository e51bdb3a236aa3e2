package supervisor

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/fcvm/fcvm/internal/agentclient"
)

// What comes after one start has ended is the next one's, and so is the size of
// the terminal.
func TestInputGoesFromStartToStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		sizes := make(chan agentclient.Size)
		in := newInput(Stdio{In: r, Resize: sizes})
		want := func(from io.Reader, text string) {
			t.Helper()
			b := make([]byte, 2) // less than comes at a time
			var got string
			for len(got) < len(text) {
				n, err := from.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				got += string(b[:n])
			}
			if got != text {
				t.Errorf("read %q, want %q", got, text)
			}
		}
		over := make(chan struct{})
		first, its := in.until(over)
		sizes <- agentclient.Size{Rows: 24, Cols: 80}
		if s := <-its; s.Rows != 24 {
			t.Errorf("size %v", s)
		}
		go func() { _, _ = io.WriteString(w, "first") }()
		want(first, "first")
		waiting := make(chan error, 1)
		go func() { _, err := first.Read(make([]byte, 1)); waiting <- err }()
		synctest.Wait()
		close(over)
		if err := <-waiting; !errors.Is(err, io.EOF) {
			t.Errorf("at the end of the first: %v", err)
		}
		go func() {
			_, _ = io.WriteString(w, "second")
			_ = w.Close()
		}()
		synctest.Wait()
		if n, err := first.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("after the end of the first: %d bytes, %v", n, err)
		}
		second, its := in.until(make(chan struct{}))
		if s := <-its; s.Cols != 80 {
			t.Errorf("size of the second %v", s)
		}
		want(second, "second")
		if _, err := second.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("at stdin's end: %v", err)
		}
		close(sizes)
	})
	if r, s := newInput(Stdio{}).until(nil); r != nil || s != nil {
		t.Errorf("without stdin: %v, %v", r, s)
	}
}

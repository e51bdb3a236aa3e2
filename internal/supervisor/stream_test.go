package supervisor

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// What one connection has not taken, the next one gets, whole and in order.
func TestInputGoesOnOverConnections(t *testing.T) {
	src, w := io.Pipe()
	i := newInput(src)
	first := i.next()
	write := func(text string) {
		t.Helper()
		if _, err := w.Write([]byte(text)); err != nil {
			t.Error(err)
		}
	}
	go write("abcdef")
	b := make([]byte, 2)
	if n, err := first.Read(b); n != 2 || err != nil || string(b) != "ab" {
		t.Fatalf("%d, %v, %q", n, err, b)
	}
	second := i.next()
	if n, err := first.Read(b); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the first one goes on: %d, %v", n, err)
	}
	waits := make(chan error)
	go func() {
		all, err := io.ReadAll(second)
		if string(all) != "cdefghi" {
			err = errors.Join(err, errors.New(string(all)))
		}
		waits <- err
	}()
	write("ghi")
	_ = w.Close()
	if err := <-waits; err != nil {
		t.Error(err)
	}
	if n, err := i.next().Read(b); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if newInput(nil).next() != nil {
		t.Error("no input has a reader")
	}
}

// A connection that waits for input when it is lost takes none of it.
func TestInputThatNobodyReads(t *testing.T) {
	src, w := io.Pipe()
	i := newInput(src)
	first := i.next()
	ended := make(chan error)
	go func() {
		_, err := first.Read(make([]byte, 8))
		ended <- err
	}()
	second := i.next()
	if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the first one: %v", err)
	}
	go func() {
		_, _ = io.Copy(w, strings.NewReader("all of it"))
		_ = w.Close()
	}()
	if all, err := io.ReadAll(second); err != nil || string(all) != "all of it" {
		t.Errorf("%q, %v", all, err)
	}
}

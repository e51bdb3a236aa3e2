package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestWriteOutput(t *testing.T) {
	dir := t.TempDir()
	hello := func(w io.Writer) error {
		_, err := io.WriteString(w, "hello")
		return err
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("what was there before"), 0o644); err != nil {
		t.Fatal(err)
	}
	bad := errors.New("bad")
	if err := writeOutput(file, 0o600, func(w io.Writer) error { return errors.Join(hello(w), bad) }); !errors.Is(err, bad) {
		t.Error(err)
	}
	if b, _ := os.ReadFile(file); string(b) != "what was there before" {
		t.Errorf("%q", b)
	}
	if err := writeOutput(file, 0o600, hello); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(file); string(b) != "hello" {
		t.Errorf("%q", b)
	}
	if err := writeOutput(dir, 0o600, hello); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
}

// What is no regular file stays what it is: once /dev/null was replaced.
func TestWriteOutputToDevice(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "null")
	if err := os.Symlink(os.DevNull, link); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		b, _ := os.ReadFile(pipe)
		got <- string(b)
	}()
	for path, kind := range map[string]os.FileMode{link: os.ModeSymlink, pipe: os.ModeNamedPipe} {
		err := writeOutput(path, 0o600, func(w io.Writer) error {
			_, err := io.WriteString(w, "hello")
			return err
		})
		if st, statErr := os.Lstat(path); err != nil || statErr != nil || st.Mode().Type() != kind {
			t.Errorf("%s: %v, %v, %v", path, err, st, statErr)
		}
	}
	if s := <-got; s != "hello" {
		t.Errorf("through the pipe: %q", s)
	}
}

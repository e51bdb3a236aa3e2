package treecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What a stream begins with is chosen by whoever asks for it.
func TestOnlyTheNameThatWasAskedFor(t *testing.T) {
	for name, tc := range map[string]struct {
		begins tar.Header
		asked  string
	}{
		"another file":                {reg(".bashrc"), "/report.txt"},
		"another directory":           {dir(".ssh/"), "/report.txt"},
		"contents":                    {dir("./"), "/report.txt"},
		"a file for contents":         {reg(".bashrc"), "/data/."},
		"a directory for contents":    {dir(".ssh/"), "/data/."},
		"another file, path with a /": {reg(".bashrc"), "/report.txt/"},
	} {
		t.Run(name, func(t *testing.T) {
			dst := t.TempDir()
			err := Unpack(Local{}, bytes.NewReader(archive(t, tc.begins)), dst, UnpackOptions{Name: Name(tc.asked)})
			if got := list(t, dst); !errors.Is(err, ErrStream) || got != "" {
				t.Errorf("%v, and it has written %s", err, got)
			}
		})
	}
}

// A device or a FIFO is named to be written to, not to be replaced.
func TestNothingReplacesADevice(t *testing.T) {
	src := tree(t, "fifo", "dir/")
	dst := t.TempDir()
	fifo := filepath.Join(dst, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"/fifo": fifo, "/fifo ": dst, "/dir": fifo, "/dir/.": fifo} {
		err := copyTree(src+strings.TrimSpace(from), to, UnpackOptions{})
		if !errors.Is(err, ErrPlace) || !strings.Contains(err.Error(), fifo+" must be a directory or a regular file") {
			t.Errorf("%s to %s: %v", from, to, err)
		}
	}
	if fi, err := os.Lstat(fifo); err != nil || fi.Mode()&fs.ModeNamedPipe == 0 {
		t.Errorf("it is gone: %v", err)
	}
}

func TestSocketsAreNoSource(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", dir+"/s") //nolint:noctx // it does not wait
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := Open(Local{}, dir+"/s", PackOptions{}); err == nil || !strings.Contains(err.Error(), "s is a socket") {
		t.Errorf("got %v", err)
	}
	dst := t.TempDir()
	if err := copyTree(dir+"/.", dst, UnpackOptions{}); err != nil || list(t, dst) != "" {
		t.Errorf("in a directory: %v, %s", err, list(t, dst))
	}
}

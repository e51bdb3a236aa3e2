package treecopy

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A file may grow behind a hole at its end while it is looked at.
func TestExtentsOfAFileThatGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const size = 1 << 20
	_, err = f.WriteAt([]byte("begin"), 0)
	if _, end := f.WriteAt([]byte("more"), 2*size); errors.Join(err, end) != nil {
		t.Fatal(err, end)
	}
	extents, ok := dataExtents(f, size)
	if !ok || len(extents) == 0 {
		t.Skip("no holes on this file system")
	}
	for _, e := range extents {
		if e.len <= 0 || e.off+e.len > size {
			t.Errorf("%d bytes at %d, of a file of %d", e.len, e.off, size)
		}
	}
}

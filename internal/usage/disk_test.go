package usage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestDiskIsWhatRemovingWouldFree(t *testing.T) {
	dir := t.TempDir()
	inside, outside := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	const size = 1 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i)
	}
	err := errors.Join(
		os.Mkdir(inside, 0o700),
		os.WriteFile(filepath.Join(inside, "data"), data, 0o600),
		os.WriteFile(filepath.Join(inside, "hole"), nil, 0o600),
		os.Truncate(filepath.Join(inside, "hole"), 1<<40),
		os.Link(filepath.Join(inside, "data"), filepath.Join(inside, "again")), // the same bytes
		os.WriteFile(outside, data, 0o600),
		os.Link(outside, filepath.Join(inside, "linked")), // they stay
		os.Symlink(outside, filepath.Join(inside, "symlink")),
	)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Disk(inside); err != nil || n < size || n > size+256<<10 {
		t.Errorf("%d bytes, %v; want about %d", n, err, size)
	}
	if all, allocated, err := File(filepath.Join(inside, "hole")); all != 1<<40 || allocated > 64<<10 || err != nil {
		t.Errorf("a hole: %d, %d, %v", all, allocated, err)
	}
	if n, err := Disk(filepath.Join(dir, "nothing")); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
	if _, _, err := File(filepath.Join(dir, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

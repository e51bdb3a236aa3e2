package usage

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// blockSize is the unit of st_blocks (stat(2)), bytes.
const blockSize = 512

// File returns a file's size with and without its holes, bytes.
func File(path string) (size, allocated int64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Size, st.Blocks * blockSize, nil
}

// Disk returns what would be free if path and all below it were removed,
// bytes: holes take nothing, and a file that has another name elsewhere stays.
// What goes away meanwhile counts as nothing.
func Disk(path string) (int64, error) {
	type node struct{ dev, ino uint64 }
	type linked struct{ names, links, bytes int64 }
	var total int64
	many := map[node]*linked{}
	err := filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Nlink == 1 {
			total += st.Blocks * blockSize
			return nil
		}
		n := node{st.Dev, st.Ino}
		if many[n] == nil {
			many[n] = &linked{links: int64(st.Nlink), bytes: st.Blocks * blockSize}
		}
		many[n].names++
		return nil
	})
	for _, l := range many {
		if l.names == l.links {
			total += l.bytes
		}
	}
	return total, err
}

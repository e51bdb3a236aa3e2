package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// Contents tells apart what was in a disk at one time and at another. It costs next
// to nothing to know, however large the disk is.
type Contents struct {
	Size  int64 `json:"size"`           // bytes
	Stamp Stamp `json:"stamp,omitzero"` // of a file
	// Head is of a block device, which no time says when it was written: the digest
	// of its beginning, where ext4 counts what is done to it.
	Head string `json:"head,omitempty"`
}

// headSize is how much of a block device counts as its beginning, bytes.
const headSize = 64 << 10

// ContentsOf looks at a disk, a file or block device.
func ContentsOf(path string) (Contents, error) {
	f, err := os.Open(path)
	if err != nil {
		return Contents{}, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return Contents{}, err
	}
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode().IsRegular() {
		return Contents{Size: fi.Size(), Stamp: Stamp{Inode: sys.Ino, MTime: fi.ModTime().UTC().Truncate(time.Nanosecond)}}, nil
	}
	h := sha256.New()
	if _, err := io.CopyN(h, f, headSize); err != nil && !errors.Is(err, io.EOF) {
		return Contents{}, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	return Contents{Size: size, Head: hex.EncodeToString(h.Sum(nil))}, err
}

func (c Contents) equal(o Contents) bool {
	return c.Size == o.Size && c.Stamp.equal(o.Stamp) && c.Head == o.Head
}

// elsewhere is what can be known on another host of a disk that is brought there:
// its file is another one, and has the time of this if it was copied so.
func (c Contents) elsewhere() Contents {
	c.Stamp.Inode = 0
	return c
}

// CheckDisks says whether what is in the disks that lie outside of the snapshot is
// what its guest remembers of them. The error wraps ErrMismatch and names the disk.
func (m *Manifest) CheckDisks() error {
	for _, d := range m.Disks {
		if d.Path == "" || d.Contents == (Contents{}) {
			continue
		}
		now, err := ContentsOf(d.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s: its disk %s is gone", ErrMismatch, m.Title(), d.Path)
		}
		if err != nil {
			return fmt.Errorf("look at a disk of snapshot %s: %w", m.Title(), err)
		}
		was, hint := d.Contents, "take the snapshot again"
		if m.Imported {
			now, was, hint = now.elsewhere(), was.elsewhere(), "bring the disk here as it was, with its time (rsync -t, cp -p)"
		}
		if !now.equal(was) {
			return fmt.Errorf("%w: %s: its disk %s was written since, and the guest remembers what was in it before\nhint: %s",
				ErrMismatch, m.Title(), d.Path, hint)
		}
	}
	return nil
}

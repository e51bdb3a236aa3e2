// Package rootfs makes the disks that a VM starts from: an image's layers
// merged into one read-only ext4 file, the guest root from one tar stream,
// and empty scratch disks. Nothing needs root, nothing is unpacked on the
// host: names, owners and modes of an image exist only inside the ext4 file.
//
// Layers are read twice. The first time their headers make the merged tree,
// in memory, while the bytes are checked against their digests; the second
// time the files that are left in the tree go straight into the ext4 file,
// which is written once.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Sentinel errors of this package.
var (
	// ErrCorrupt: an archive is truncated, damaged or not what its digest says.
	ErrCorrupt = errors.New("archive is corrupt")
	// ErrUnsafe: an archive names something outside of the tree, or loops.
	ErrUnsafe = errors.New("archive is not safe to unpack")
	// ErrTooLarge: an archive is over one of the Limits.
	ErrTooLarge = errors.New("archive is too large")
	// ErrNoSpace: the file system that holds the disk is full.
	ErrNoSpace = errors.New("no space left on disk")
)

// Limits bound what an archive may unpack to. The zero value stands for
// DefaultLimits, field by field.
type Limits struct {
	Bytes   int64 // of all regular files
	Entries int   // of all layers together
	Name    int   // bytes of one path
	Xattrs  int   // bytes of one file's extended attributes; ext4 holds about one block
	Strings int64 // bytes of all names, link targets and extended attributes, which are kept in memory
}

// DefaultLimits is far above what images have, and below what hurts a host.
var DefaultLimits = Limits{Bytes: 64 << 30, Entries: 2_000_000, Name: 4096, Xattrs: 4096, Strings: 512 << 20}

func (l Limits) orDefault() Limits {
	d := DefaultLimits
	if l.Bytes > 0 {
		d.Bytes = l.Bytes
	}
	if l.Entries > 0 {
		d.Entries = l.Entries
	}
	if l.Name > 0 {
		d.Name = l.Name
	}
	if l.Xattrs > 0 {
		d.Xattrs = l.Xattrs
	}
	if l.Strings > 0 {
		d.Strings = l.Strings
	}
	return d
}

// Layer is one layer of an image: a tar archive, plain or compressed with
// gzip or zstd.
type Layer struct {
	Name   string // for messages
	DiffID string // "sha256:…" of the uncompressed archive; empty: not checked
	// Open returns the layer's bytes from the start. It is called twice. A
	// reader that checks the bytes returns its error in place of io.EOF.
	Open func() (io.ReadCloser, error)
}

// noSpace turns a full disk into ErrNoSpace that says where.
func noSpace(err error, dir string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %s is full: free some, or choose another place with --data-dir (%w)", ErrNoSpace, dir, err)
	}
	return err
}

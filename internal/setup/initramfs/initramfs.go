// Package initramfs writes cpio archives of the "newc" format, from which the
// kernel unpacks its first root file system:
// https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
//
// Archives are not compressed: under emulation the kernel decompresses more
// slowly than it reads.
package initramfs

import (
	"fmt"
	"io"
	"os"
)

// File types and permissions, as in stat(2).
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

// Writer writes one archive. Parents must be written before their children.
type Writer struct {
	w   io.Writer
	ino uint32
	err error
}

// NewWriter returns a writer of an archive to w; Close ends it.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Dir adds a directory.
func (w *Writer) Dir(name string, perm os.FileMode) error {
	return w.entry(name, modeDir|uint32(perm.Perm()), 0, 0, nil)
}

// File adds a regular file.
func (w *Writer) File(name string, perm os.FileMode, data []byte) error {
	return w.entry(name, modeFile|uint32(perm.Perm()), 0, 0, data)
}

// Char adds a character device.
func (w *Writer) Char(name string, perm os.FileMode, major, minor uint32) error {
	return w.entry(name, modeChar|uint32(perm.Perm()), major, minor, nil)
}

// Close writes the trailer. It does not close what it wrote to.
func (w *Writer) Close() error { return w.entry("TRAILER!!!", 0, 0, 0, nil) }

func (w *Writer) entry(name string, mode, major, minor uint32, data []byte) error {
	if w.err != nil {
		return w.err
	}
	w.ino++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		w.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	for _, b := range [][]byte{[]byte(header), pad(len(header)), data, pad(len(data))} {
		if _, err := w.w.Write(b); err != nil {
			w.err = fmt.Errorf("write initramfs: %w", err)
			return w.err
		}
	}
	return nil
}

// pad fills up to a multiple of four bytes.
func pad(n int) []byte { return make([]byte, -n&3) }

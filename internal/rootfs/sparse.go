package rootfs

import (
	"bytes"
	"io"
	"os"
)

const blockSize = 4096

var zeroBlock [blockSize]byte

// sparseWriter writes to a file and leaves blocks of zeros out, as holes. It
// relies on the file being empty at first.
type sparseWriter struct {
	f   *os.File
	off int64
	end int64 // of all that was written or left out
	max int64 // of what is in the file: beyond it all is zero
}

func (w *sparseWriter) Read(p []byte) (int, error) {
	n, err := w.f.ReadAt(p, w.off)
	if err == io.EOF && w.off+int64(n) < w.end { // a hole at the end of the file
		m := int(min(int64(len(p)), w.end-w.off))
		clear(p[n:m])
		n, err = m, nil
	}
	w.off += int64(n)
	return n, err
}

func (w *sparseWriter) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += w.off
	case io.SeekEnd:
		off += w.end
	}
	if off < 0 {
		return 0, os.ErrInvalid
	}
	w.off = off
	w.end = max(w.end, off)
	return off, nil
}

func (w *sparseWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		// A run of blocks that are all data, or all holes.
		run, hole := 0, false
		for done+run < len(p) {
			n := min(len(p)-done-run, int(blockSize-(w.off+int64(run))%blockSize))
			zero := w.off+int64(run) >= w.max && bytes.Equal(p[done+run:done+run+n], zeroBlock[:n])
			if run > 0 && zero != hole {
				break
			}
			hole, run = zero, run+n
		}
		if !hole {
			if _, err := w.f.WriteAt(p[done:done+run], w.off); err != nil {
				return done, err
			}
			w.max = max(w.max, w.off+int64(run))
		}
		w.off += int64(run)
		w.end = max(w.end, w.off)
		done += run
	}
	return done, nil
}

// finish gives the file its full size.
func (w *sparseWriter) finish() error { return w.f.Truncate(w.end) }

package memserver

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrMemory: a snapshot's memory file cannot be used, or not any more.
var ErrMemory = errors.New("the snapshot's memory cannot be read")

// maxMemory bounds the size of a memory file, bytes: all sets of pages have one
// bit for each.
const maxMemory = 1 << 42

// memory is a snapshot's memory file. It is read with pread(2), never mapped:
// a file that is cut off under a mapping ends the process that looks.
type memory struct {
	f     *os.File
	page  int64 // size of this system's pages, bytes
	size  int64
	mtime time.Time
	data  bitmap // pages that are not holes
}

func openMemory(path string) (*memory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMemory, err)
	}
	m := &memory{f: f, page: int64(os.Getpagesize())}
	if err := m.look(); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s: %w", ErrMemory, path, err)
	}
	return m, nil
}

func (m *memory) close() error { return m.f.Close() }

// look finds out about size and holes.
func (m *memory) look() error {
	st, err := m.f.Stat()
	if err != nil {
		return err
	}
	m.size, m.mtime = st.Size(), st.ModTime()
	switch {
	case !st.Mode().IsRegular():
		return errors.New("it is no regular file")
	case m.size == 0 || m.size%m.page != 0 || m.size > maxMemory:
		return fmt.Errorf("a size of %d bytes is not that of a guest's memory", m.size)
	}
	m.data = newBitmap(int(m.size / m.page))
	for off := int64(0); off < m.size; {
		start, err := m.f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // all the rest is a hole
		}
		end := m.size
		switch {
		case errors.Is(err, unix.EINVAL):
			start = off // a file system that knows no holes
		case err != nil:
			return err
		default:
			if end, err = m.f.Seek(start, unix.SEEK_HOLE); err != nil {
				return err
			}
		}
		for p := start / m.page; p*m.page < min(end, m.size); p++ {
			m.data.set(int(p))
		}
		off = end
	}
	return nil
}

// read fills b from off on. What it has read is what was there when the file was
// opened only if check finds no change afterwards.
func (m *memory) read(b []byte, off int64) error {
	_, err := m.f.ReadAt(b, off)
	switch {
	case errors.Is(err, io.EOF):
		return cmp.Or(m.check(), fmt.Errorf("%w: it ends at an offset below %d", ErrMemory, off+int64(len(b))))
	case err != nil:
		return fmt.Errorf("%w: %w", ErrMemory, err)
	}
	return nil
}

// check fails when the file has changed since it was opened. That it has been
// deleted changes nothing.
func (m *memory) check() error {
	st, err := m.f.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrMemory, err)
	case st.Size() != m.size:
		return fmt.Errorf("%w: the file was changed while it was in use: it has %d bytes instead of %d", ErrMemory, st.Size(), m.size)
	case !st.ModTime().Equal(m.mtime):
		return fmt.Errorf("%w: the file was changed while it was in use", ErrMemory)
	}
	return nil
}

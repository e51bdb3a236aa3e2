// Package atomicfile writes files that are there whole or not at all. Until it
// is committed a file has no name (open(2), O_TMPFILE), so that a process that is
// killed leaves nothing: not beside the file, and not in a directory for
// temporary files.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// File is being written. It ends with Commit or Discard.
type File struct {
	*os.File
	path string
	temp string // its name, where the file system knows only files with one
}

// Create begins a file that will be at path, with permissions less those of the
// umask.
func Create(path string, perm os.FileMode) (*File, error) {
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(perm.Perm()))
	if err == nil {
		return &File{File: os.NewFile(uintptr(fd), path), path: path}, nil
	}
	// EISDIR is the answer of kernels and file systems that take O_TMPFILE for
	// O_DIRECTORY.
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &os.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	return createNamed(path, perm)
}

// createNamed is Create where a file has a name from the start: a killed process
// leaves it behind.
func createNamed(path string, perm os.FileMode) (*File, error) {
	for try := 0; ; try++ {
		temp := tempName(path)
		f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_RDWR, perm)
		if err == nil {
			return &File{File: f, path: path, temp: temp}, nil
		}
		if !errors.Is(err, os.ErrExist) || try == maxTries {
			return nil, err
		}
	}
}

// maxTries bounds the search for a name that nobody has.
const maxTries = 100

func tempName(path string) string {
	var b [8]byte
	_, _ = unix.Getrandom(b[:], 0) // at worst the name is taken
	return filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%x", filepath.Base(path), b))
}

// Commit writes the file to the disk, puts it in its place, instead of what is
// there, and closes it.
func (f *File) Commit() error {
	if err := f.Sync(); err != nil {
		f.Discard()
		return err
	}
	return f.CommitSoon()
}

// CommitSoon is Commit that leaves it to the kernel when the file is written to the
// disk. For all processes it is there whole or not at all; when the host loses its
// power meanwhile, it may be there empty.
func (f *File) CommitSoon() error {
	var err error
	if f.temp == "" {
		err = f.link()
	}
	if err == nil {
		err = os.Rename(f.temp, f.path)
	}
	if err != nil {
		f.Discard()
		return err
	}
	f.temp = ""
	return f.Close()
}

// link gives the file a name: link(2) replaces nothing, so it is not the one
// that it will have.
func (f *File) link() error {
	from := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	for try := 0; ; try++ {
		temp := tempName(f.path)
		err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			f.temp = temp
			return nil
		}
		if !errors.Is(err, unix.EEXIST) || try == maxTries {
			return &os.LinkError{Op: "link", Old: from, New: temp, Err: err}
		}
	}
}

// Discard drops the file. After Commit it does nothing.
func (f *File) Discard() {
	if f.temp != "" {
		_ = os.Remove(f.temp)
		f.temp = ""
	}
	_ = f.Close()
}

// Write makes a file of data, and replaces what is at path.
func Write(path string, data []byte, perm os.FileMode) error {
	f, err := begin(path, data, perm)
	if err != nil {
		return err
	}
	return f.Commit()
}

// WriteSoon is Write that does not wait for the disk (CommitSoon).
func WriteSoon(path string, data []byte, perm os.FileMode) error {
	f, err := begin(path, data, perm)
	if err != nil {
		return err
	}
	return f.CommitSoon()
}

func begin(path string, data []byte, perm os.FileMode) (*File, error) {
	f, err := Create(path, perm)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(data); err != nil {
		f.Discard()
		return nil, err
	}
	return f, nil
}

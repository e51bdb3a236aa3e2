package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxText bounds a file like /etc/passwd of a container, bytes.
const maxText = 4 << 20

// tree is a directory in which paths are resolved as a process sees them whose
// root it is: links of any kind lead to somewhere inside of it, and those of
// /proc that lead elsewhere are refused (openat2(2), RESOLVE_IN_ROOT).
type tree struct{ dir *os.File }

func openTree(path string) (*tree, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &tree{os.NewFile(uintptr(fd), path)}, nil
}

func (t *tree) close() error { return t.dir.Close() }

// open opens a file of the tree; errors name it as the tree does. It does not
// wait for somebody at the other end of a FIFO.
func (t *tree) open(path string, flags int) (*os.File, error) {
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	for {
		fd, err := unix.Openat2(int(t.dir.Fd()), path, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // something was renamed meanwhile
		default:
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// read reads a small regular file. One that is not there is empty.
func (t *tree) read(path string) ([]byte, error) {
	f, err := t.open(path, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	return readSmall(f, path)
}

func readSmall(f *os.File, path string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxText {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxText)
	}
	return b, nil
}

// rewrite changes the text of a small regular file in place, so that it stays
// the same file where it is mounted elsewhere. What is not there, or is
// something else, a link among them, is left as it is.
func (t *tree) rewrite(path string, edit func(string) string) error {
	// A device or a FIFO is not opened just to find out that it is one.
	place, err := t.open(path, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = place.Close() }()
	if fi, err := place.Stat(); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	old, err := readPlace(place, path)
	if err != nil {
		return err
	}
	text := edit(string(old))
	if text == string(old) {
		return nil
	}
	f, err := reopen(place, path, os.O_WRONLY)
	if err != nil {
		return err
	}
	// Written before it is cut: who reads meanwhile finds no empty file.
	if _, err = f.WriteString(text); err == nil {
		err = f.Truncate(int64(len(text)))
	}
	return errors.Join(err, f.Close())
}

// readPlace reads a file that was opened with O_PATH.
func readPlace(place *os.File, path string) ([]byte, error) {
	f, err := reopen(place, path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readSmall(f, path)
}

// reopen opens the very file that was opened with O_PATH.
func reopen(place *os.File, path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", place.Fd()), flags, 0)
	var p *os.PathError
	if errors.As(err, &p) {
		p.Path = path
	}
	return f, err
}

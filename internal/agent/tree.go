package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxAccounts bounds /etc/passwd and /etc/group of a container, bytes.
const maxAccounts = 4 << 20

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
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxAccounts {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxAccounts)
	}
	return b, nil
}

package share

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/sftp"
)

// beneath is how every path of a guest's is resolved.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// resolveTries is how often a look-up is tried that others disturb by renaming.
const resolveTries = 100

// clean turns a path of a guest's into one below the root, "." for the root
// itself. An honest client sends none that has to be refused.
func (s *Share) clean(path string) (string, error) {
	path = strings.Trim(path, "/")
	if path == "" || path == "." {
		return ".", nil
	}
	if strings.ContainsRune(path, 0) {
		return "", unix.EINVAL
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." {
			return "", unix.EINVAL
		}
	}
	if s.only != "" {
		if path != FileName {
			return "", unix.ENOENT
		}
		return s.only, nil
	}
	return path, nil
}

// openAt opens a path below a directory.
func openAt(dir int, path string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: beneath}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	for range resolveTries {
		fd, err := unix.Openat2(dir, path, &how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		return fd, err
	}
	return -1, unix.EAGAIN
}

// find opens what a path names, a link itself and not where it leads, for
// nothing but to name it.
func (s *Share) find(path string) (int, error) {
	path, err := s.clean(path)
	if err != nil {
		return -1, err
	}
	return openAt(int(s.root.Fd()), path, unix.O_PATH, 0)
}

// parent opens the directory of what a path names, which need not exist.
func (s *Share) parent(path string) (dir int, name string, err error) {
	if path, err = s.clean(path); err != nil {
		return -1, "", err
	}
	if path == "." {
		return -1, "", unix.EBUSY
	}
	above, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		above, name = path[:i], path[i+1:]
	}
	dir, err = openAt(int(s.root.Fd()), above, unix.O_PATH|unix.O_DIRECTORY, 0)
	return dir, name, err
}

// magic names an open file, so that calls which take a path can be told of it,
// and of no other.
func magic(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// check refuses changes to what is shared for reading, and to the directory
// around the one file that is shared.
func (s *Share) check(names bool) error {
	if s.o.ReadOnly {
		return unix.EROFS
	}
	if names && s.only != "" {
		return unix.EPERM
	}
	return nil
}

// open opens a regular file.
func (s *Share) open(path string, flags uint32, a *sftp.Attrs) (int, error) {
	how := unix.O_RDONLY
	switch {
	case flags&sftp.FlagWrite == 0:
	case flags&sftp.FlagRead != 0:
		how = unix.O_RDWR
	default:
		how = unix.O_WRONLY
	}
	if flags&sftp.FlagAppend != 0 {
		how |= unix.O_APPEND
	}
	if flags&sftp.FlagTrunc != 0 {
		how |= unix.O_TRUNC
	}
	if how&^unix.O_APPEND != unix.O_RDONLY || flags&sftp.FlagCreate != 0 {
		if err := s.check(false); err != nil {
			return -1, err
		}
	}
	if flags&sftp.FlagCreate == 0 || s.only != "" {
		return s.openThere(path, how)
	}
	for range resolveTries {
		fd, err := s.create(path, how&^unix.O_TRUNC, a)
		if flags&sftp.FlagExcl != 0 || !errors.Is(err, unix.EEXIST) {
			return fd, err
		}
		fd, err = s.openThere(path, how)
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// openThere opens a file that exists, once it is known to be one.
func (s *Share) openThere(path string, how int) (int, error) {
	at, err := s.find(path)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(at) }()
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return -1, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return unix.Open(magic(at), how|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	case unix.S_IFDIR:
		return -1, unix.EISDIR
	}
	return -1, unix.EACCES
}

// create makes a file that must not exist. Its mode is set once it is there: this
// process's umask is not the guest's.
func (s *Share) create(path string, how int, a *sftp.Attrs) (int, error) {
	dir, name, err := s.parent(path)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := openAt(dir, name, how|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return -1, err
	}
	mode := uint32(0o644)
	if a.Flags&sftp.AttrMode != 0 {
		mode = a.Mode & 0o1777
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (s *Share) openDir(path string) (int, error) {
	path, err := s.clean(path)
	if err != nil {
		return -1, err
	}
	return openAt(int(s.root.Fd()), path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

func (s *Share) mkdir(path string, a *sftp.Attrs) error {
	return s.inParent(path, func(dir int, name string) error {
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return err
		}
		fd, err := openAt(dir, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		mode := uint32(0o755)
		if a.Flags&sftp.AttrMode != 0 {
			mode = a.Mode & 0o3777
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			mode |= st.Mode & unix.S_ISGID // of the directory above
		}
		return unix.Chmod(magic(fd), mode)
	})
}

// inParent does something to a name.
func (s *Share) inParent(path string, do func(dir int, name string) error) error {
	if err := s.check(true); err != nil {
		return err
	}
	dir, name, err := s.parent(path)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	return do(dir, name)
}

// inParents does something to two names.
func (s *Share) inParents(from, to string, do func(fromDir int, fromName string, toDir int, toName string) error) error {
	return s.inParent(from, func(fromDir int, fromName string) error {
		return s.inParent(to, func(toDir int, toName string) error { return do(fromDir, fromName, toDir, toName) })
	})
}

func (s *Share) remove(path string, flags int) error {
	return s.inParent(path, func(dir int, name string) error { return unix.Unlinkat(dir, name, flags) })
}

func (s *Share) rename(from, to string, flags uint) error {
	return s.inParents(from, to, func(fromDir int, fromName string, toDir int, toName string) error {
		return unix.Renameat2(fromDir, fromName, toDir, toName, flags)
	})
}

func (s *Share) link(from, to string) error {
	return s.inParents(from, to, func(fromDir int, fromName string, toDir int, toName string) error {
		return unix.Linkat(fromDir, fromName, toDir, toName, 0)
	})
}

func (s *Share) symlink(target, path string) error {
	return s.inParent(path, func(dir int, name string) error { return unix.Symlinkat(target, dir, name) })
}

func (s *Share) readlink(path string) (string, error) {
	fd, err := s.find(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, sftp.MaxPath+1)
	n, err := unix.Readlinkat(fd, "", b)
	if errors.Is(err, unix.ENOENT) { // as it says of what is no link
		err = unix.EINVAL
	}
	return string(b[:max(n, 0)]), err
}

func (s *Share) stat(path string) (sftp.Attrs, error) {
	fd, err := s.find(path)
	if err != nil {
		return sftp.Attrs{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	return s.fstat(fd)
}

func (s *Share) fstat(fd int) (sftp.Attrs, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return sftp.Attrs{}, err
	}
	return s.attrs(&st), nil
}

func (s *Share) attrs(st *unix.Stat_t) sftp.Attrs {
	uid, gid := s.ids.toGuest(st.Uid, st.Gid)
	return sftp.Attrs{
		Flags: sftp.AttrSize | sftp.AttrOwner | sftp.AttrMode | sftp.AttrTimes,
		Size:  uint64(st.Size), UID: uid, GID: gid, Mode: st.Mode,
		Atime: seconds(st.Atim.Sec), Mtime: seconds(st.Mtim.Sec),
	}
}

// seconds is the nearest time that the format has: from 1970 to 2106.
func seconds(unixTime int64) uint32 { return uint32(min(max(unixTime, 0), math.MaxUint32)) }

// set changes the attributes of an open file, of whatever kind.
func (s *Share) set(fd int, a *sftp.Attrs) error {
	if err := s.check(false); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if s.only != "" && kind == unix.S_IFDIR {
		return unix.EPERM // the directory is not shared
	}
	if a.Flags&sftp.AttrSize != 0 {
		if kind != unix.S_IFREG {
			return unix.EINVAL
		}
		// An open file may have become one that could not be opened now.
		err := unix.Ftruncate(fd, int64(a.Size))
		if errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL) {
			err = unix.Truncate(magic(fd), int64(a.Size))
		}
		if err != nil {
			return err
		}
	}
	if a.Flags&sftp.AttrOwner != 0 {
		uid, gid, err := s.ids.toHost(a.UID, a.GID, &st)
		if err == nil {
			err = unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
		}
		if err != nil {
			return err
		}
	}
	if a.Flags&sftp.AttrMode != 0 {
		mode := a.Mode & 0o1777
		if kind == unix.S_IFDIR {
			mode = a.Mode & 0o3777
		}
		if kind == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if err := unix.Chmod(magic(fd), mode); err != nil {
			return err
		}
	}
	if a.Flags&sftp.AttrTimes != 0 {
		times := []unix.Timespec{{Sec: int64(a.Atime)}, {Sec: int64(a.Mtime)}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, magic(fd), times, 0)
	}
	return nil
}

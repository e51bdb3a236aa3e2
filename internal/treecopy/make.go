package treecopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// make makes one entry in dir. Nothing here follows a link at the end of a
// name: what is in the way is removed, and the new one must be the first.
func (u *unpacker) make(dir *os.Root, name, full string, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return u.mkdir(dir, name, full, h)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.file(dir, name, h)
	case tar.TypeLink:
		return u.link(dir, name, h)
	case tar.TypeSymlink:
		if err := remove(dir, name); err != nil {
			return err
		}
		if err := dir.Symlink(h.Linkname, name); err != nil {
			return err
		}
		if u.o.Archive {
			if err := dir.Lchown(name, h.Uid, h.Gid); err != nil {
				return permission(err)
			}
		}
		return setTimes(dir, name, h.ModTime)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return u.node(dir, name, full, h)
	}
	return u.skip(full, fmt.Sprintf("it is of the unknown type %q", h.Typeflag))
}

// file writes a regular file. One that did not come in full is taken back.
func (u *unpacker) file(dir *os.Root, name string, h *tar.Header) error {
	if err := remove(dir, name); err != nil {
		return err
	}
	f, err := dir.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err = u.fill(f, h); err == nil {
		err = u.finish(f, h)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = dir.Remove(name)
		return err
	}
	return setTimes(dir, name, h.ModTime)
}

// node makes what is neither file, directory nor link. A device is one of the
// machine's own, so it takes somebody who means it.
func (u *unpacker) node(dir *os.Root, name, full string, h *tar.Header) error {
	mode := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
	if mode != unix.S_IFIFO && (!u.o.Archive || os.Geteuid() != 0) {
		return u.skip(full, "it is a device: copy it with -a, as root")
	}
	if err := remove(dir, name); err != nil {
		return err
	}
	err := at(dir, func(fd int) error {
		return unix.Mknodat(fd, name, mode|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	})
	if err != nil {
		return &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	if u.o.Archive {
		if err := dir.Lchown(name, h.Uid, h.Gid); err != nil {
			return permission(err)
		}
	}
	if err := dir.Chmod(name, u.mode(h)); err != nil {
		return err
	}
	return setTimes(dir, name, h.ModTime)
}

// finish gives a file or a directory its owner, extended attributes and mode, in
// this order: a change of the owner clears some of both, and what cannot be
// written takes no attributes of an ordinary user's.
func (u *unpacker) finish(f *os.File, h *tar.Header) error {
	if u.o.Archive {
		if err := f.Chown(h.Uid, h.Gid); err != nil {
			return permission(err)
		}
	}
	if u.o.Xattrs {
		if err := writeXattrs(f, h); err != nil {
			return err
		}
	}
	return f.Chmod(u.mode(h))
}

// writeXattrs gives a file or a directory the extended attributes that the stream
// has for it.
func writeXattrs(f *os.File, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), name, []byte(value), 0); err != nil {
			return fmt.Errorf("set the extended attribute %s: %w", name, err)
		}
	}
	return nil
}

// mode leaves out what makes a program act as its owner, unless the owner is
// kept as well: it would be the caller.
func (u *unpacker) mode(h *tar.Header) fs.FileMode {
	m := h.FileInfo().Mode()
	keep := fs.ModePerm
	if m.IsDir() {
		keep |= fs.ModeSticky
	}
	if u.o.Archive {
		keep |= fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
	}
	return m & keep
}

func timespecs(t time.Time) []unix.Timespec {
	if t.Unix() < 0 || t.IsZero() {
		t = time.Unix(0, 0)
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return []unix.Timespec{ts, ts}
}

// setTimes does not follow a link.
func setTimes(dir *os.Root, name string, t time.Time) error {
	err := at(dir, func(fd int) error {
		return unix.UtimesNanoAt(fd, name, timespecs(t), unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		return &os.PathError{Op: "set the time", Path: name, Err: err}
	}
	return nil
}

// linkAt is a hard link between two directories; neither name is followed.
func linkAt(from *os.Root, old string, to *os.Root, name string) error {
	err := at(from, func(fromFD int) error {
		return at(to, func(toFD int) error { return unix.Linkat(fromFD, old, toFD, name, 0) })
	})
	if err != nil {
		return &os.LinkError{Op: "link", Old: old, New: name, Err: err}
	}
	return nil
}

// at calls f with the descriptor of a directory, for what os.Root has no
// method for. The names that it is used with are single ones.
func at(dir *os.Root, f func(fd int) error) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return f(int(d.Fd()))
}

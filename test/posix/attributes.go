package posix

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func chmod(d string) error {
	return first(write(d+"/f", ""), os.Chmod(d+"/f", 0o751), mode(d+"/f", 0o751), os.Chmod(d+"/f", 0), mode(d+"/f", 0))
}

func chmodSticky(d string) error {
	m := 0o777 | os.ModeSticky
	return first(os.Mkdir(d+"/a", 0o700), os.Chmod(d+"/a", m), mode(d+"/a", m|os.ModeDir))
}

func chmodSetuid(d string) error {
	m := 0o755 | os.ModeSetuid
	return first(write(d+"/f", ""), os.Chmod(d+"/f", m), mode(d+"/f", m))
}

func umask(d string) error {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	err := first(os.WriteFile(d+"/f", nil, 0o666), os.Mkdir(d+"/a", 0o777))
	return first(err, mode(d+"/f", 0o600), mode(d+"/a", 0o700|os.ModeDir))
}

func chown(d string) error {
	if err := first(write(d+"/f", ""), os.Chown(d+"/f", 1234, 4321)); err != nil {
		return err
	}
	st, err := stat(d + "/f")
	if err == nil && (st.Uid != 1234 || st.Gid != 4321) {
		err = fmt.Errorf("%d:%d", st.Uid, st.Gid)
	}
	return err
}

func lchown(d string) error {
	if err := first(write(d+"/f", ""), os.Symlink("f", d+"/l"), os.Lchown(d+"/l", 1234, 4321)); err != nil {
		return err
	}
	f, err := stat(d + "/f")
	l, lErr := stat(d + "/l")
	if err = first(err, lErr); err == nil && (f.Uid == 1234 || l.Uid != 1234) {
		err = fmt.Errorf("file %d, link %d", f.Uid, l.Uid)
	}
	return err
}

func times(d string, at, mt time.Time) error {
	if err := first(write(d+"/f", "x"), os.Chtimes(d+"/f", at, mt)); err != nil {
		return err
	}
	st, err := stat(d + "/f")
	if err == nil && (time.Unix(st.Atim.Unix()) != at || time.Unix(st.Mtim.Unix()) != mt) {
		err = fmt.Errorf("%v and %v", st.Atim, st.Mtim)
	}
	return err
}

func utimesSeconds(d string) error {
	return times(d, time.Unix(1_000_000_000, 0), time.Unix(2_000_000_000, 0))
}

func utimesNanos(d string) error {
	return times(d, time.Unix(1_000_000_000, 123_456_789), time.Unix(2_000_000_000, 1))
}

func fsyncFile(d string) error {
	f, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return first(err, f.Sync(), unix.Fdatasync(int(f.Fd())), f.Close())
}

func fsyncDirectory(d string) error {
	f, err := os.Open(d)
	if err != nil {
		return err
	}
	return first(f.Sync(), f.Close())
}

func mmapShared(d string) error {
	if err := write(d+"/f", "0123456789"); err != nil {
		return err
	}
	f, err := os.OpenFile(d+"/f", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	m, err := unix.Mmap(int(f.Fd()), 0, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	m[3] = 'x'
	return first(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m), reads(d+"/f", "012x456789"))
}

func mkfifo(d string) error {
	return first(unix.Mkfifo(d+"/p", 0o600), mode(d+"/p", 0o600|os.ModeNamedPipe))
}

func mknod(d string) error {
	// Containers may make it, and not use it.
	return first(unix.Mknod(d+"/n", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), mode(d+"/n", 0o600|os.ModeDevice|os.ModeCharDevice))
}

func socket(d string) error {
	l, err := net.Listen("unix", d+"/s")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("unix", d+"/s")
	if err != nil {
		return err
	}
	return c.Close()
}

func fallocate(d string) error {
	f, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.Fallocate(int(f.Fd()), 0, 0, 1<<20)
}

func tmpfile(d string) error {
	fd, err := unix.Open(d, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func xattrs(d string) error {
	if err := first(write(d+"/f", ""), unix.Setxattr(d+"/f", "user.test", []byte("value"), 0)); err != nil {
		return err
	}
	b := make([]byte, 16)
	n, err := unix.Getxattr(d+"/f", "user.test", b)
	if err == nil && string(b[:n]) != "value" {
		err = fmt.Errorf("%q", b[:n])
	}
	return err
}

func flock(d string) error {
	a, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	b, err := os.Open(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	return first(unix.Flock(int(a.Fd()), unix.LOCK_EX), is(unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK))
}

func recordLocks(d string) error {
	a, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	b, err := os.OpenFile(d+"/f", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 5}
	return first(unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &lock), is(unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &lock), unix.EAGAIN, unix.EACCES))
}

func statfs(d string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(d, &st); err != nil {
		return err
	}
	if st.Blocks == 0 || st.Bavail > st.Blocks || st.Bsize == 0 {
		return fmt.Errorf("%+v", st)
	}
	return nil
}

package posix

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func renameReplace(d string) error {
	_, gone := os.Stat(d + "/a")
	_ = gone
	err := first(write(d+"/a", "a"), write(d+"/b", "b"), os.Rename(d+"/a", d+"/b"), reads(d+"/b", "a"))
	_, gone = os.Stat(d + "/a")
	return first(err, is(gone, syscall.ENOENT))
}

func renameEmpty(d string) error {
	return first(os.Mkdir(d+"/a", 0o700), write(d+"/a/f", "x"), os.Mkdir(d+"/b", 0o700), syscall.Rename(d+"/a", d+"/b"), reads(d+"/b/f", "x"))
}

func renameNotEmpty(d string) error {
	return first(os.Mkdir(d+"/a", 0o700), os.Mkdir(d+"/b", 0o700), write(d+"/b/f", "x"), is(syscall.Rename(d+"/a", d+"/b"), syscall.ENOTEMPTY, syscall.EEXIST), reads(d+"/b/f", "x"))
}

func renameInto(d string) error {
	return first(os.MkdirAll(d+"/a/b", 0o700), is(syscall.Rename(d+"/a", d+"/a/b/c"), syscall.EINVAL))
}

func renameKind(d string) error {
	return first(write(d+"/f", ""), os.Mkdir(d+"/a", 0o700), is(syscall.Rename(d+"/f", d+"/a"), syscall.EISDIR), is(syscall.Rename(d+"/a", d+"/f"), syscall.ENOTDIR))
}

func renameOpen(d string) error {
	f, err := os.Create(d + "/a")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := os.Rename(d+"/a", d+"/b"); err != nil {
		return err
	}
	_, err = f.WriteString("after")
	return first(err, f.Sync(), reads(d+"/b", "after"))
}

func renameSame(d string) error {
	return first(write(d+"/a", "x"), os.Link(d+"/a", d+"/b"), syscall.Rename(d+"/a", d+"/b"), reads(d+"/a", "x"), reads(d+"/b", "x"))
}

func linkContent(d string) error {
	return first(write(d+"/a", "x"), os.Link(d+"/a", d+"/b"), write(d+"/b", "y"), reads(d+"/a", "y"), os.Remove(d+"/a"), reads(d+"/b", "y"))
}

func linkCount(d string) error {
	if err := first(write(d+"/a", "x"), os.Link(d+"/a", d+"/b")); err != nil {
		return err
	}
	st, err := stat(d + "/a")
	if err == nil && st.Nlink != 2 {
		err = fmt.Errorf("%d links", st.Nlink)
	}
	return err
}

func linkInode(d string) error {
	if err := first(write(d+"/a", "x"), os.Link(d+"/a", d+"/b")); err != nil {
		return err
	}
	a, err := stat(d + "/a")
	b, bErr := stat(d + "/b")
	if err = first(err, bErr); err == nil && a.Ino != b.Ino {
		err = fmt.Errorf("inodes %d and %d", a.Ino, b.Ino)
	}
	return err
}

func linkExists(d string) error {
	return first(write(d+"/a", ""), write(d+"/b", ""), is(os.Link(d+"/a", d+"/b"), syscall.EEXIST))
}

func symlink(d string) error {
	if err := first(write(d+"/a", "x"), os.Symlink("a", d+"/l"), reads(d+"/l", "x")); err != nil {
		return err
	}
	to, err := os.Readlink(d + "/l")
	if err == nil && to != "a" {
		err = fmt.Errorf("it leads to %q", to)
	}
	return err
}

func symlinkLoop(d string) error {
	_, err := os.Open(d + "/l")
	_ = err
	if err := first(os.Symlink("m", d+"/l"), os.Symlink("l", d+"/m")); err != nil {
		return err
	}
	_, err = os.Open(d + "/l")
	return is(err, syscall.ELOOP)
}

func symlinkDangling(d string) error {
	if err := os.Symlink("none", d+"/l"); err != nil {
		return err
	}
	_, err := os.Stat(d + "/l")
	return first(is(err, syscall.ENOENT), write(d+"/l", "made"), reads(d+"/none", "made"))
}

func symlinkLstat(d string) error {
	if err := os.Symlink("target", d+"/l"); err != nil {
		return err
	}
	fi, err := os.Lstat(d + "/l")
	if err == nil && (fi.Mode().Type() != os.ModeSymlink || fi.Size() != 6) {
		err = fmt.Errorf("%v of %d bytes", fi.Mode(), fi.Size())
	}
	return err
}

func symlinkBytes(d string) error {
	target := "/\xff\x01 :\n" + strings.Repeat("x", 1000)
	if err := os.Symlink(target, d+"/l"); err != nil {
		return err
	}
	to, err := os.Readlink(d + "/l")
	if err == nil && to != target {
		err = fmt.Errorf("it leads to %.20q", to)
	}
	return err
}

func namesBytes(d string) error {
	names := []string{"\xff\xfe", "a\nb", " ", "\x01", "ä", "-rf", "a:b", `\`, "*"}
	for _, n := range names {
		if err := first(write(d+"/"+n, n), reads(d+"/"+n, n)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(d)
	if err == nil && len(entries) != len(names) {
		err = fmt.Errorf("%d of %d names", len(entries), len(names))
	}
	return err
}

func nameLong(d string) error {
	name := d + "/" + strings.Repeat("n", 255)
	return first(write(name, "x"), reads(name, "x"))
}

func nameTooLong(d string) error {
	return is(write(d+"/"+strings.Repeat("n", 256), ""), syscall.ENAMETOOLONG)
}

func namesMany(d string) error {
	const n = 300
	for i := range n {
		if err := write(fmt.Sprintf("%s/%d", d, i), ""); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(d)
	if err == nil && len(entries) != n {
		err = fmt.Errorf("%d names of %d", len(entries), n)
	}
	return err
}

func readdirRemoval(d string) error {
	for i := range 100 {
		if err := write(fmt.Sprintf("%s/%d", d, i), ""); err != nil {
			return err
		}
	}
	return first(os.RemoveAll(d), os.Mkdir(d, 0o700))
}

func renameNoReplace(d string) error {
	return first(write(d+"/a", "a"), write(d+"/b", "b"), is(unix.Renameat2(unix.AT_FDCWD, d+"/a", unix.AT_FDCWD, d+"/b", unix.RENAME_NOREPLACE), unix.EEXIST),
		unix.Renameat2(unix.AT_FDCWD, d+"/a", unix.AT_FDCWD, d+"/c", unix.RENAME_NOREPLACE))
}

func renameExchange(d string) error {
	return first(write(d+"/a", "a"), write(d+"/b", "b"), unix.Renameat2(unix.AT_FDCWD, d+"/a", unix.AT_FDCWD, d+"/b", unix.RENAME_EXCHANGE), reads(d+"/a", "b"))
}

func mtimeDirectory(d string) error {
	before, err := os.Stat(d)
	if err != nil {
		return err
	}
	time.Sleep(soon)
	if err := write(d+"/f", ""); err != nil {
		return err
	}
	after, err := os.Stat(d)
	if err == nil && !after.ModTime().After(before.ModTime()) {
		err = fmt.Errorf("%v, then %v", before.ModTime(), after.ModTime())
	}
	return err
}

func mtimeFile(d string) error {
	if err := write(d+"/f", "a"); err != nil {
		return err
	}
	before, err := os.Stat(d + "/f")
	if err != nil {
		return err
	}
	time.Sleep(soon)
	if err := write(d+"/f", "b"); err != nil {
		return err
	}
	after, err := os.Stat(d + "/f")
	if err == nil && !after.ModTime().After(before.ModTime()) {
		err = fmt.Errorf("%v, then %v", before.ModTime(), after.ModTime())
	}
	return err
}

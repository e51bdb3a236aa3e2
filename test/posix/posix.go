// Package posix is a test of file systems, after pjdfstest: small cases of what
// POSIX says of files, each in a directory of its own on the file system that is
// tried. It runs in guests, as a program (test/posix/tryfs), and as a test here.
package posix

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Case is one thing that POSIX, or Linux, says. It is tried in an empty directory.
type Case struct {
	Name string
	Try  func(dir string) error
}

// Failed is what became of a case: an error, or nothing.
type Failed struct {
	Name string
	Err  error
}

// Run tries all cases below dir, and returns those that failed, by name.
func Run(dir string) []Failed {
	var failed []Failed
	for _, c := range Cases() {
		sub, err := os.MkdirTemp(dir, "case-")
		if err == nil {
			err = c.Try(sub)
			if rmErr := os.RemoveAll(sub); err == nil && rmErr != nil {
				err = fmt.Errorf("clean up: %w", rmErr)
			}
		}
		if err != nil {
			failed = append(failed, Failed{c.Name, err})
		}
	}
	sort.Slice(failed, func(i, j int) bool { return failed[i].Name < failed[j].Name })
	return failed
}

// Cases are all of them.
func Cases() []Case {
	return []Case{
		{"open O_EXCL of what exists", openExcl},
		{"open O_CREAT keeps the mode", openMode},
		{"open O_TRUNC", openTrunc},
		{"open O_APPEND", openAppend},
		{"open of a directory for writing", openDirectory},
		{"open below a file", openBelowFile},
		{"mkdir of what exists", mkdirExists},
		{"rmdir of what is not empty", rmdirNotEmpty},
		{"rmdir of a file", rmdirFile},
		{"unlink of a directory", unlinkDirectory},
		{"unlink of what is open", unlinkOpen},
		{"truncate makes shorter and longer", truncate},
		{"ftruncate of a file that became read-only", ftruncateReadOnly},
		{"holes read as zeros", holes},
		{"holes take no room", holesRoom},
		{"write beyond the end", writeBeyond},
		{"rename replaces a file", renameReplace},
		{"rename of a directory onto an empty one", renameEmpty},
		{"rename onto a directory that is not empty", renameNotEmpty},
		{"rename into itself", renameInto},
		{"rename of a file onto a directory", renameKind},
		{"rename keeps what is open", renameOpen},
		{"rename to the same file", renameSame},
		{"hard link has the same content", linkContent},
		{"hard link counts", linkCount},
		{"hard link has the same inode", linkInode},
		{"link to what exists", linkExists},
		{"symlink and readlink", symlink},
		{"symlink loop", symlinkLoop},
		{"symlink to nothing", symlinkDangling},
		{"lstat of a symlink", symlinkLstat},
		{"symlink with any target", symlinkBytes},
		{"chmod", chmod},
		{"chmod of a directory with its sticky bit", chmodSticky},
		{"chmod set-user-ID", chmodSetuid},
		{"umask", umask},
		{"chown", chown},
		{"lchown", lchown},
		{"utimes in seconds", utimesSeconds},
		{"utimes in nanoseconds", utimesNanos},
		{"mtime of a directory changes", mtimeDirectory},
		{"mtime of a file changes", mtimeFile},
		{"names of any bytes", namesBytes},
		{"a name of 255 bytes", nameLong},
		{"a name that is too long", nameTooLong},
		{"many names in one directory", namesMany},
		{"readdir beside removal", readdirRemoval},
		{"fsync of a file", fsyncFile},
		{"fsync of a directory", fsyncDirectory},
		{"mmap that is shared", mmapShared},
		{"mkfifo", mkfifo},
		{"mknod of a device is nobody's harm", mknod},
		{"a socket", socket},
		{"fallocate", fallocate},
		{"O_TMPFILE", tmpfile},
		{"renameat2 RENAME_NOREPLACE", renameNoReplace},
		{"renameat2 RENAME_EXCHANGE", renameExchange},
		{"extended attributes", xattrs},
		{"flock", flock},
		{"locks of records", recordLocks},
		{"statfs", statfs},
		{"random writes, reads, mappings and truncates", randomOps},
		{"two descriptors see one file", twoDescriptors},
	}
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }

func reads(path, want string) error {
	b, err := os.ReadFile(path)
	if err == nil && string(b) != want {
		err = fmt.Errorf("%s holds %.40q, not %.40q", filepath.Base(path), b, want)
	}
	return err
}

// is wants an error.
func is(err error, want ...error) error {
	for _, w := range want {
		if errors.Is(err, w) {
			return nil
		}
	}
	if err == nil {
		return fmt.Errorf("no error, where %v is right", want)
	}
	return fmt.Errorf("%w, where %v is right", err, want)
}

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func mode(path string, want os.FileMode) error {
	fi, err := os.Lstat(path)
	if err == nil && fi.Mode() != want {
		err = fmt.Errorf("mode %v, not %v", fi.Mode(), want)
	}
	return err
}

func stat(path string) (*syscall.Stat_t, error) {
	var st syscall.Stat_t
	return &st, syscall.Lstat(path, &st)
}

func openExcl(d string) error {
	if err := write(d+"/f", "x"); err != nil {
		return err
	}
	_, err := os.OpenFile(d+"/f", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	return first(is(err, syscall.EEXIST), reads(d+"/f", "x"))
}

func openMode(d string) error {
	f, err := os.OpenFile(d+"/f", os.O_CREATE|os.O_RDWR, 0o400) // what is made can be written all the same
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return first(err, f.Close(), mode(d+"/f", 0o400), reads(d+"/f", "x"))
}

func openTrunc(d string) error {
	if err := write(d+"/f", "longer"); err != nil {
		return err
	}
	return first(write(d+"/f", "x"), reads(d+"/f", "x"))
}

func openAppend(d string) error {
	a, err := os.OpenFile(d+"/f", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	b, err := os.OpenFile(d+"/f", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, f := range []*os.File{a, b, a, b} {
		if _, err := f.WriteString("12"); err != nil {
			return err
		}
	}
	return first(a.Close(), b.Close(), reads(d+"/f", "12121212"))
}

func openDirectory(d string) error {
	_, err := os.OpenFile(d, os.O_WRONLY, 0)
	return is(err, syscall.EISDIR)
}

func openBelowFile(d string) error {
	if err := write(d+"/f", ""); err != nil {
		return err
	}
	_, err := os.Open(d + "/f/x")
	_, none := os.Open(d + "/none/x")
	return first(is(err, syscall.ENOTDIR), is(none, syscall.ENOENT))
}

func mkdirExists(d string) error {
	return first(os.Mkdir(d+"/a", 0o700), mode(d+"/a", 0o700|os.ModeDir), is(os.Mkdir(d+"/a", 0o700), syscall.EEXIST))
}

func rmdirNotEmpty(d string) error {
	return first(os.Mkdir(d+"/a", 0o700), write(d+"/a/f", ""), is(syscall.Rmdir(d+"/a"), syscall.ENOTEMPTY, syscall.EEXIST), os.Remove(d+"/a/f"), syscall.Rmdir(d+"/a"))
}

func rmdirFile(d string) error {
	return first(write(d+"/f", ""), is(syscall.Rmdir(d+"/f"), syscall.ENOTDIR))
}

func unlinkDirectory(d string) error {
	return first(os.Mkdir(d+"/a", 0o700), is(syscall.Unlink(d+"/a"), syscall.EISDIR, syscall.EPERM))
}

func unlinkOpen(d string) error {
	f, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := os.Remove(d + "/f"); err != nil {
		return err
	}
	if _, err := f.WriteString("still"); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "still" {
		return fmt.Errorf("%q, %w", b, err)
	}
	_, err = os.Stat(d + "/f")
	return is(err, syscall.ENOENT)
}

func truncate(d string) error {
	return first(write(d+"/f", "0123456789"), os.Truncate(d+"/f", 4), reads(d+"/f", "0123"), os.Truncate(d+"/f", 6), reads(d+"/f", "0123\x00\x00"))
}

func ftruncateReadOnly(d string) error {
	f, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = f.WriteString("0123")
	return first(err, os.Chmod(d+"/f", 0o400), f.Truncate(2), reads(d+"/f", "01"))
}

func holes(d string) error {
	const size = 1 << 20
	f, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("end"), size)
	return first(err, f.Close(), reads(d+"/f", strings.Repeat("\x00", size)+"end"))
}

func holesRoom(d string) error {
	f, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	err = first(f.Truncate(64<<20), f.Sync(), f.Close())
	st, statErr := stat(d + "/f")
	if err = first(err, statErr); err == nil && st.Blocks > 2048 {
		err = fmt.Errorf("%d blocks for one hole", st.Blocks)
	}
	return err
}

func writeBeyond(d string) error {
	return first(write(d+"/f", "ab"), func() error {
		f, err := os.OpenFile(d+"/f", os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("c"), 4)
		return first(err, f.Close())
	}(), reads(d+"/f", "ab\x00\x00c"))
}

func twoDescriptors(d string) error {
	w, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	r, err := os.Open(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	b := make([]byte, 1)
	for i := range 20 {
		if _, err := w.WriteAt([]byte{byte(i)}, 0); err != nil {
			return err
		}
		if _, err := r.ReadAt(b, 0); err != nil || b[0] != byte(i) {
			return fmt.Errorf("%d was written, %d read, %w", i, b[0], err)
		}
	}
	return nil
}

// soon is for times that are kept in seconds.
const soon = 1100 * time.Millisecond

// SharesLack are the names of the cases that fail on a live share, as its
// documentation says, of fcvm that this user runs.
func SharesLack() []string {
	lack := []string{
		"O_TMPFILE", "a name that is too long", "a socket", "chmod set-user-ID", "extended attributes", "fallocate",
		"hard link counts", "hard link has the same inode", "holes take no room", "mkfifo", "mknod of a device is nobody's harm",
		"rename onto a directory that is not empty", "renameat2 RENAME_EXCHANGE", "renameat2 RENAME_NOREPLACE", "utimes in nanoseconds",
	}
	if os.Geteuid() != 0 {
		lack = append(lack, "chown", "lchown")
	}
	return lack
}

package setup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// place moves a finished work directory to its place. What is there already
// stays if is says that it is the same: VMs and snapshots name it by its id, and
// may be about to open it. What is not what its id says makes way in one step,
// while no VM looks for it.
func (s *Setup) place(ctx context.Context, work, final string, is func(dir string) bool) error {
	if is(final) {
		return nil
	}
	err := unix.Renameat2(unix.AT_FDCWD, work, unix.AT_FDCWD, final, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return placeError(final, err)
	}
	wait, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	l := flock.New(s.layout.UseLock(), flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(wait, lockPoll); err != nil {
		return fmt.Errorf("wait for VMs that are about to start: %w", err)
	}
	defer func() { _ = l.Close() }()
	err = unix.Renameat2(unix.AT_FDCWD, work, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// There is nothing to exchange, or the file system cannot.
		err = errors.Join(os.RemoveAll(final), os.Rename(work, final))
	}
	return placeError(final, err)
}

func placeError(final string, err error) error {
	if err != nil {
		return fmt.Errorf("install %s: %w", final, err)
	}
	return nil
}

// kernelID is the id of the kernel in a directory: a digest of its image and of
// its modules, for the same image with other modules is another kernel. What was
// made of it later, as an initramfs, does not count.
func kernelID(dir string) (string, error) {
	h := sha256.New()
	if err := hashInto(h, filepath.Join(dir, kernelFileName)); err != nil {
		return "", err
	}
	modules, err := os.ReadDir(filepath.Join(dir, modulesDirName))
	if err != nil {
		return "", err
	}
	for _, m := range modules {
		if err := hashInto(h, filepath.Join(dir, modulesDirName, m.Name())); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:idLength], nil
}

// hashInto adds a file's name, size and contents.
func hashInto(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.ErrUnsupported}
	}
	if err != nil {
		return err
	}
	_, _ = h.Write(append([]byte(filepath.Base(path)), 0)) // a hash takes everything
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(st.Size())))
	_, err = io.Copy(h, f)
	return err
}

// isKernel says whether a directory holds the kernel with an id. Before, an id
// was that of the image alone.
func isKernel(dir, id string) bool {
	now, err := kernelID(dir)
	return err == nil && now == id || isFile(filepath.Join(dir, kernelFileName), id)
}

// isFile says whether the digest of a file begins with an id.
func isFile(path, id string) bool {
	sum, _, _, err := hashFile(path)
	return err == nil && sum[:idLength] == id
}

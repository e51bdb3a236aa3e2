package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/treecopy"
)

// unfinished is an extended attribute of a volume's top directory while an image's
// content is copied into it. No container sees it, or can set it, that is not
// privileged (xattr(7)).
const unfinished = "trusted.fcvm.unfinished"

// openImage opens the tree of the container's image.
func openImage() (*tree, error) { return openTree(imageMount + "/" + agentapi.ImageRoot) }

// furnish makes what is mounted at dir, a disk that fcvm has made, the directory
// that a container expects at the target.
func furnish(dir string, m agentapi.Mount, image func() (*tree, error)) error {
	// mke2fs makes it for e2fsck, which does so itself when it needs one. Many a
	// program wants to begin in an empty directory. One with something in it stays.
	_ = unix.Rmdir(filepath.Join(dir, "lost+found"))
	empty, err := clearUnfinished(dir)
	if err != nil {
		return fmt.Errorf("look into the volume for %s: %w", m.Target, err)
	}
	if !m.Seed || !empty {
		return nil
	}
	root, err := image()
	if err != nil {
		return err
	}
	defer func() { _ = root.close() }()
	err = seed(dir, root, m.Target)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w; take a larger volume: fcvm volume create --size SIZE NAME", err)
	}
	if err != nil {
		return fmt.Errorf("copy what the image has at %s into the volume: %w", m.Target, err)
	}
	return nil
}

// seed copies what the image has at the target into an empty volume, with the
// owner, mode and time of the directory itself. What is not copied in full, since
// the VM has died meanwhile, counts for nothing: see clearUnfinished.
func seed(dir string, image *tree, target string) error {
	src, err := treecopy.Open(image, target+"/.", treecopy.PackOptions{Sparse: true, Xattrs: true})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // the image has no such directory
	}
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	top, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = top.Close() }()
	if err := errors.Join(setUnfinished(top), top.Sync()); err != nil {
		return err
	}
	if err := copyTree(src, dir); err != nil {
		return err
	}
	// All of it is on the disk before it counts, and counts before anything of the
	// container's is.
	if err := unix.Syncfs(int(top.Fd())); err != nil {
		return err
	}
	return errors.Join(unix.Fremovexattr(int(top.Fd()), unfinished), top.Sync())
}

func setUnfinished(top *os.File) error {
	return unix.Fsetxattr(int(top.Fd()), unfinished, []byte{'1'}, 0)
}

// copyTree copies the contents of a directory into another one.
func copyTree(src *treecopy.Source, dir string) error {
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		_ = w.CloseWithError(src.Pack(w)) // which the other end returns
	}()
	err := treecopy.Unpack(treecopy.Local{}, r, dir+"/.", treecopy.UnpackOptions{Archive: true, Xattrs: true})
	_ = r.Close()
	<-packed
	return err
}

// clearUnfinished empties a volume into which an image's content has not been
// copied in full. No container has been started with it since. It reports whether
// the volume is empty.
func clearUnfinished(dir string) (bool, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }()
	top, err := root.Open(".")
	if err != nil {
		return false, err
	}
	defer func() { _ = top.Close() }()
	if !isUnfinished(top) {
		_, err := top.Readdirnames(1)
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		return false, err
	}
	names, err := top.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if err := root.RemoveAll(name); err != nil {
			return false, err
		}
	}
	// As it was made: the directory may have had its owner already.
	if err := errors.Join(top.Chown(0, 0), top.Chmod(0o755), unix.Syncfs(int(top.Fd()))); err != nil {
		return false, err
	}
	return true, unix.Fremovexattr(int(top.Fd()), unfinished)
}

func isUnfinished(top *os.File) bool {
	_, err := unix.Fgetxattr(int(top.Fd()), unfinished, nil)
	return err == nil
}

// checkFinished refuses a volume that can only be read and holds a part of what is
// to be in it.
func checkFinished(dir string, m agentapi.Mount) error {
	top, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = top.Close() }()
	if isUnfinished(top) {
		return fmt.Errorf("the volume for %s holds only a part of what an image was to put there: mount it once without :ro", m.Target)
	}
	return nil
}

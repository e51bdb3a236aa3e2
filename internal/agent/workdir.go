package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

const (
	imageRoot = imageMount + "/" + agentapi.ImageRoot // the image's tree
	ownLayer  = scratchDir + "/own-layer"             // for what the image has not, and Podman does not make
)

// rootFor is the root that Podman is given: the image's, over which it lays an
// overlay (":O"). Podman refuses a working directory that is not there, where
// Docker makes it, and looks before anybody could make one in its overlay: for
// such a container the overlay is the agent's, in dir.
func rootFor(c *agentapi.Container, image, dir string) (string, error) {
	lacks, err := lacksWorkDir(c, image)
	if err != nil {
		return "", err
	}
	if !lacks {
		return image + ":O", nil
	}
	root, err := layOver(image, dir)
	if err == nil {
		err = makeDirs(root, c.WorkDir)
	}
	if err != nil {
		return "", fmt.Errorf("make the working directory %s: %w", c.WorkDir, err)
	}
	return root, nil
}

// lacksWorkDir reports whether a container's working directory has to be made in
// its root. Below a mount the runtime makes it, which sees what is mounted there.
func lacksWorkDir(c *agentapi.Container, image string) (bool, error) {
	dir := path.Clean(c.WorkDir)
	if !path.IsAbs(dir) {
		return false, nil
	}
	for _, v := range c.Volumes {
		if isBelow(dir, v.Target) {
			return false, nil
		}
	}
	for _, m := range c.Mounts {
		if isBelow(dir, m.Target) {
			return false, nil
		}
	}
	t, err := openTree(image)
	if err != nil {
		return false, err
	}
	defer func() { _ = t.close() }()
	f, err := t.open(dir, unix.O_PATH)
	if err == nil {
		return false, f.Close()
	}
	// Of anything else Podman says what is wrong.
	return errors.Is(err, unix.ENOENT), nil
}

// isBelow reports whether a place is another one, or below it.
func isBelow(dir, place string) bool {
	return dir == place || strings.HasPrefix(dir, place+"/")
}

// layOver mounts an overlay that can be written to over a tree, and returns where.
func layOver(lower, dir string) (string, error) {
	upper, work, root := dir+"/upper", dir+"/work", dir+"/root"
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	// The overlay's own root is as its upper layer's.
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: lower, Err: err}
	}
	if err := errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777)); err != nil {
		return "", err
	}
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	return root, mount{"overlay", root, "overlay", unix.MS_NODEV, options}.do()
}

// makeDirs makes a directory, and those above it, in a tree: links lead to where
// they lead a process whose root that is.
func makeDirs(root, dir string) error {
	t, err := openTree(root)
	if err != nil {
		return err
	}
	defer func() { _ = t.close() }()
	parent, err := t.open("/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }()
	at := "/"
	for name := range strings.SplitSeq(strings.Trim(path.Clean(dir), "/"), "/") {
		at = path.Join(at, name)
		next, err := t.open(at, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) {
			err = unix.Mkdirat(int(parent.Fd()), name, 0o755)
			if errors.Is(err, unix.EEXIST) { // a link into a mount, if to anything: that is the runtime's to see
				return nil
			}
			if err != nil {
				return &os.PathError{Op: "mkdir", Path: at, Err: err}
			}
			next, err = t.open(at, unix.O_PATH|unix.O_DIRECTORY)
		}
		if err != nil {
			return err
		}
		_ = parent.Close()
		parent = next
	}
	return nil
}

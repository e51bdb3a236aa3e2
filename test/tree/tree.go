// Package tree reads directory trees with all that there is of each entry, and
// tells how one differs from another. The tests of images compare with it.
package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDifferences is how many are told.
const maxDifferences = 20

// Entry is all that there is of one name in a tree.
type Entry struct {
	Mode   uint32 // type and permissions, as stat(2) has them
	UID    uint32
	GID    uint32
	Device uint64   // the number of a device
	Time   string   // of the last change of the content: seconds and nanoseconds
	Size   int64    // of a regular file, bytes
	Target string   // of a symbolic link
	Xattrs string   // sorted
	Digest string   // of a regular file's content
	Links  []string // all names of the file, sorted; one for what is no hard link
}

func (e Entry) String() string {
	return fmt.Sprintf("mode %o, owner %d:%d, device %#x, time %s, size %d, target %q, attributes %q, content %.12s, names %q",
		e.Mode, e.UID, e.GID, e.Device, e.Time, e.Size, e.Target, e.Xattrs, e.Digest, e.Links)
}

// Read reads the tree at root, without the names in skip and what is below
// them. Names are relative to root, which is ".".
func Read(root string, skip ...string) (map[string]Entry, error) {
	tree := map[string]Entry{}
	inodes := map[uint64][]string{}
	digests := map[uint64]string{}
	numbers := map[string]uint64{}
	buf := make([]byte, 64<<10) // the kernel's limit (linux/limits.h)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if slices.Contains(skip, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Time: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			e.Size = st.Size
			if digests[st.Ino] == "" {
				if digests[st.Ino], err = digest(path, buf); err != nil {
					return err
				}
			}
			e.Digest = digests[st.Ino]
		case unix.S_IFLNK:
			if e.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Device = st.Rdev
		}
		if e.Xattrs, err = attributes(path, buf); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			inodes[st.Ino] = append(inodes[st.Ino], name)
			numbers[name] = st.Ino
		}
		tree[name] = e
		return nil
	})
	for name, ino := range numbers {
		e := tree[name]
		e.Links = inodes[ino]
		slices.Sort(e.Links)
		tree[name] = e
	}
	return tree, err
}

// digest reads a file through buf: a new buffer for each is most of the work in an
// emulated guest.
func digest(path string, buf []byte) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	_, err = io.CopyBuffer(sum, struct{ io.Reader }{f}, buf)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// attributes returns the extended attributes, without those that belong to the
// host rather than to the image. It reads into buf.
func attributes(path string, buf []byte) (string, error) {
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if n == 0 {
		return "", nil
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" || strings.HasPrefix(name, "user.rootlesscontainers") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf) // the names are a string of their own
		if err != nil {
			return "", err
		}
		all = append(all, name+"="+string(buf[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

// Differences lists how a tree is not what it should be. free are names whose
// times nobody says: directories that no layer has an entry for.
func Differences(got, want map[string]Entry, free []string) []string {
	var out []string
	for name, w := range want {
		g, ok := got[name]
		switch {
		case !slices.Contains(free, name):
		case name == ".": // each builder has a root of its own then
			continue
		default:
			g.Time = w.Time
		}
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%q is missing: %s", name, w))
		case g.String() != w.String():
			out = append(out, fmt.Sprintf("%q\n\thas   %s\n\tshould %s", name, g, w))
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			out = append(out, fmt.Sprintf("%q should not be there: %s", name, g))
		}
	}
	slices.Sort(out)
	if len(out) > maxDifferences {
		out = append(out[:maxDifferences], fmt.Sprintf("and %d more", len(out)-maxDifferences))
	}
	return out
}

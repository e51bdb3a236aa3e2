package treecopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dirBatch is how many names of a directory are read at a time.
const dirBatch = 256

// PackOptions say how a stream is made.
type PackOptions struct {
	Follow bool // a link at the end of the source's path is followed
	Sparse bool // holes are left out: for readers that know PAX's sparse format
	Xattrs bool // extended attributes of files and directories are kept
}

// Source is what is to be packed. It is opened before the first byte is
// written, so that one that is not there is an error and no stream.
type Source struct {
	place *place
	top   string // the name in the stream; "." for the contents of a directory
	o     PackOptions
}

// Open finds what is to be packed. A path that ends with /. means the contents
// of a directory.
func Open(v View, src string, o PackOptions) (*Source, error) {
	p, err := find(v, src, o.Follow || isDirPath(src))
	if err != nil {
		return nil, err
	}
	s := &Source{place: p, top: Name(src), o: o}
	switch {
	case p.info == nil:
		err = &fs.PathError{Op: "copy", Path: src, Err: syscall.ENOENT}
	case isDirPath(src) && !p.info.IsDir():
		err = &fs.PathError{Op: "copy", Path: src, Err: syscall.ENOTDIR}
	case p.info.Mode()&fs.ModeSocket != 0:
		err = fmt.Errorf("%s is a socket, of which there is nothing to copy", src)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return s, nil
}

// Close lets go of the source.
func (s *Source) Close() error { return s.place.dir.Close() }

// Pack writes the stream.
func (s *Source) Pack(w io.Writer) error {
	p := &packer{out: w, tar: tar.NewWriter(w), sparse: s.o.Sparse, xattrs: s.o.Xattrs, seen: map[inode]string{}}
	if err := p.add(s.place.dir, s.place.name, s.top, 0); err != nil {
		return err
	}
	return p.tar.Close()
}

type inode struct{ dev, ino uint64 }

type packer struct {
	out    io.Writer
	tar    *tar.Writer
	sparse bool
	xattrs bool
	buf    []byte           // for lists and values of extended attributes
	seen   map[inode]string // files of more than one name
}

// nameless keeps archive/tar from looking up what owners are called here.
type nameless struct{ fs.FileInfo }

func (nameless) Uname() (string, error) { return "", nil }
func (nameless) Gname() (string, error) { return "", nil }

// add packs one entry of dir, and all below it, under the name as.
func (p *packer) add(dir *os.Root, name, as string, depth int) error {
	if depth > maxDepth || len(as) > maxName {
		return fmt.Errorf("%s…: more than %d directories in one another, or a path of more than %d bytes", as[:min(len(as), 80)], maxDepth, maxName)
	}
	info, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	mode := info.Mode()
	if mode&fs.ModeSocket != 0 {
		return nil // nobody listens to a copy, and tar has none
	}
	var link string
	if mode&fs.ModeSymlink != 0 {
		if link, err = dir.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(nameless{info}, link)
	if err != nil {
		return fmt.Errorf("%s: %w", as, err)
	}
	h.Name, h.Format = as, tar.FormatPAX
	switch {
	case mode.IsDir():
		h.Name = as + "/"
		return p.addDir(dir, name, as, h, info, depth)
	case mode.IsRegular():
		return p.addFile(dir, name, h, info)
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", as, err)
	}
	return nil
}

func (p *packer) addDir(parent *os.Root, name, as string, h *tar.Header, info fs.FileInfo, depth int) error {
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := same(f, info, as); err != nil {
		return err
	}
	if err := p.writeHeader(h, f); err != nil {
		return err
	}
	if depth > 0 && isKernels(f) {
		return nil
	}
	for {
		entries, err := f.ReadDir(dirBatch)
		for _, e := range entries {
			if err := p.add(dir, e.Name(), path.Join(as, e.Name()), depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err // what is gone meanwhile is not missed
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// same makes sure that what was opened is what was looked at.
func same(f *os.File, info fs.FileInfo, as string) error {
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(now, info) {
		return fmt.Errorf("%s %w", as, ErrChanged)
	}
	return nil
}

// isKernels reports whether a directory is one of the kernel's own file
// systems, which nobody means who copies the root of a system.
func isKernels(dir *os.File) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	}
	return false
}

func (p *packer) addFile(dir *os.Root, name string, h *tar.Header, info fs.FileInfo) error {
	st, _ := info.Sys().(*syscall.Stat_t)
	if st != nil && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := p.seen[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tar.WriteHeader(h)
		}
		p.seen[id] = h.Name
	}
	// A FIFO that has taken the file's place is not waited for.
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := same(f, info, h.Name); err != nil {
		return err
	}
	if p.sparse && st != nil && st.Blocks*512 < st.Size {
		if extents, ok := dataExtents(f, st.Size); ok {
			return p.addSparse(h, f, extents)
		}
	}
	if err := p.writeHeader(h, f); err != nil {
		return err
	}
	return copyExactly(p.tar, f, h.Size, h.Name)
}

// copyExactly copies as much as the header has promised. A file that has grown
// is cut off there; one that has shrunk cannot be helped.
func copyExactly(w io.Writer, r io.Reader, n int64, name string) error {
	got, err := io.CopyN(w, r, n)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s %w: %d of %d bytes are left", strings.TrimSuffix(name, "/"), ErrChanged, got, n)
	}
	return err
}

// writeHeader writes an entry's header, with the extended attributes of what is
// open if they are kept.
func (p *packer) writeHeader(h *tar.Header, f *os.File) error {
	var err error
	if h.PAXRecords, err = p.readXattrs(f); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// maxXattr is the largest list of extended attributes, and the largest value,
// that the kernel has (linux/limits.h), bytes.
const maxXattr = 64 << 10

// xattrPrefix begins the names of the records that keep extended attributes.
const xattrPrefix = "SCHILY.xattr."

// readXattrs returns the extended attributes of a file, if they are kept, as GNU
// tar keeps them.
func (p *packer) readXattrs(f *os.File) (map[string]string, error) {
	if !p.xattrs {
		return nil, nil
	}
	if p.buf == nil {
		p.buf = make([]byte, maxXattr)
	}
	n, err := unix.Flistxattr(int(f.Fd()), p.buf)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(p.buf[:n]), "\x00"), "\x00") {
		n, err := unix.Fgetxattr(int(f.Fd()), name, p.buf)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			continue // it is gone, or only for others to read
		}
		if err != nil {
			return nil, fmt.Errorf("read the extended attribute %s: %w", name, err)
		}
		out[xattrPrefix+name] = string(p.buf[:n])
	}
	return out, nil
}

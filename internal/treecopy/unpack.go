package treecopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// UnpackOptions say what is taken from a stream.
type UnpackOptions struct {
	// Archive keeps owners, and the bits that let others act as them. It needs
	// root. Otherwise everything is the caller's own.
	Archive bool
	// Xattrs keeps extended attributes of files and directories, as far as they are
	// in the stream. Those that let others act as somebody need root.
	Xattrs bool
	// Extract takes the names as they are: any archive, into a directory.
	Extract bool
	// Name is what the stream is asked to begin with (Name); another would be
	// a file that nobody has asked for. Empty: any.
	Name string
	// Skipped is told of what is left out, and why. It may be nil.
	Skipped func(name, why string)
}

// Unpack puts what the stream r has at dst: under its own name if dst is a
// directory, else as dst itself. A stream that ends early leaves what has come.
func Unpack(v View, r io.Reader, dst string, o UnpackOptions) error {
	in := &source{r: r}
	u := &unpacker{in: in, tar: tar.NewReader(in), o: o}
	defer u.close()
	h, err := u.next()
	if errors.Is(err, io.EOF) && o.Extract {
		return nil // an archive of nothing
	}
	if err != nil {
		return notEOF(err)
	}
	if err := u.place(v, h, dst); err != nil {
		return err
	}
	for {
		if err := u.entry(h); err != nil {
			return err
		}
		if h, err = u.next(); errors.Is(err, io.EOF) {
			return u.leave("")
		}
		if err != nil {
			return err
		}
	}
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it is empty", ErrStream)
	}
	return err
}

type unpacker struct {
	in  *source
	tar *tar.Reader
	o   UnpackOptions

	root   *os.Root // nothing is written outside of it
	top    string   // the first part of all names, in the stream; "." and "": none
	single string   // the name in root of a stream that is no directory
	count  int

	dirs    []pending // directories that are not finished, each in the one before it
	last    *os.Root  // the directory that was used last
	lastDir string
}

// pending is a directory that gets its mode and times when all is in it.
type pending struct {
	name string
	h    *tar.Header
}

func (u *unpacker) close() {
	for _, r := range []*os.Root{u.root, u.last} {
		if r != nil {
			_ = r.Close()
		}
	}
}

// next returns the next header that means an entry.
func (u *unpacker) next() (*tar.Header, error) {
	for {
		u.in.keep, u.in.tail = true, u.in.tail[:0]
		h, err := u.tar.Next()
		u.in.keep = false
		switch {
		case u.in.past > 0:
			return nil, fmt.Errorf("%w: a map of holes that goes on behind its file", ErrStream)
		case errors.Is(err, io.EOF) && u.in.n%tarBlock == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF): // archive/tar does not mind
			return nil, fmt.Errorf("%w: %w", ErrStream, io.ErrUnexpectedEOF)
		case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("%w: %w", ErrStream, err)
		case err != nil:
			return nil, err
		case h.Typeflag == tar.TypeXGlobalHeader:
			continue
		}
		if len(h.Name) > maxName || len(h.Linkname) > maxName {
			return nil, fmt.Errorf("%w: a name of more than %d bytes", ErrStream, maxName)
		}
		if h.Size < 0 || h.Size > maxFile {
			return nil, fmt.Errorf("%w: %s is larger than any file: %d bytes", ErrStream, h.Name, h.Size)
		}
		return h, nil
	}
}

// place decides by the first entry what is written where, and opens the root.
func (u *unpacker) place(v View, h *tar.Header, dst string) (err error) {
	if u.o.Extract {
		u.root, err = v.Dir(dst)
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return fmt.Errorf("%w: it begins with a hard link", ErrStream)
	}
	isDir := h.Typeflag == tar.TypeDir
	if u.top = path.Clean(h.Name); strings.Contains(u.top, "/") || u.top == ".." || (u.top == "." && !isDir) {
		return fmt.Errorf("%w: it begins with %q", ErrStream, h.Name)
	}
	if u.o.Name != "" && u.top != u.o.Name {
		return fmt.Errorf("%w: it begins with %q, not with %q", ErrStream, h.Name, u.o.Name)
	}
	p, err := find(v, dst, true)
	if err != nil {
		return err
	}
	at := dst
	switch {
	case p.info != nil && p.info.IsDir() && u.top != ".":
		if p, err = into(p, u.top); err != nil {
			return err
		}
		at = path.Join(dst, u.top)
	case isDirPath(dst) && (p.info == nil && !isDir || p.info != nil && !p.info.IsDir()):
		p.close()
		return fmt.Errorf("%w: there is no directory %s", ErrPlace, dst)
	}
	defer p.close()
	switch {
	case p.info != nil && !replaceable(p.info.Mode()):
		return fmt.Errorf("%w: %s must be a directory or a regular file", ErrPlace, at)
	case p.info != nil && p.info.IsDir() != isDir:
		return fmt.Errorf("%w: %s is %s, and %s is %s", ErrPlace, h.Name, kind(isDir), at, kind(!isDir))
	case !isDir:
		u.single = p.name
		u.root, err = p.dir.OpenRoot(".")
		return err
	}
	return u.openTop(p, h)
}

// replaceable reports whether a copy may take the place of what is there. A
// device or a FIFO is named by somebody who means to write to it.
func replaceable(m fs.FileMode) bool {
	return m.IsDir() || m.IsRegular() || m&fs.ModeSymlink != 0
}

// into goes on to a name in a directory.
func into(p *place, name string) (*place, error) {
	dir, err := p.dir.OpenRoot(p.name)
	p.close()
	if err != nil {
		return nil, err
	}
	in := &place{dir: dir, name: name}
	if in.info, err = dir.Lstat(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		in.close()
		return nil, err
	}
	return in, nil
}

func kind(dir bool) string {
	if dir {
		return "a directory"
	}
	return "none"
}

// openTop makes the directory that a stream of one is unpacked into.
func (u *unpacker) openTop(p *place, h *tar.Header) (err error) {
	if p.info == nil {
		if err := p.dir.Mkdir(p.name, 0o700); err != nil {
			return err
		}
		u.dirs = append(u.dirs, pending{".", h})
	} else if u.o.Archive {
		u.dirs = append(u.dirs, pending{".", h})
	}
	u.root, err = p.dir.OpenRoot(p.name)
	return err
}

// local maps a name of the stream to one in root.
func (u *unpacker) local(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case u.o.Extract || u.top == ".":
		clean = strings.TrimLeft(clean, "/") // an archive's absolute names are the destination's
	case clean == u.top:
		clean = "."
	default:
		rest, ok := strings.CutPrefix(clean, u.top+"/")
		if !ok {
			return "", fmt.Errorf("%w: %q is not in %q", ErrStream, name, u.top)
		}
		clean = rest
	}
	if clean == "" {
		clean = "."
	}
	if !filepath.IsLocal(clean) || strings.Count(clean, "/") >= maxDepth {
		return "", fmt.Errorf("%w: it has a file %q", ErrStream, name)
	}
	return clean, nil
}

// entry unpacks one entry.
func (u *unpacker) entry(h *tar.Header) error {
	u.count++
	name := u.single
	if u.single == "" {
		var err error
		if name, err = u.local(h.Name); err != nil {
			return err
		}
	} else if u.count > 1 {
		return fmt.Errorf("%w: it goes on after the one file that it is of", ErrStream)
	}
	if err := u.leave(name); err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: %q is no directory", ErrStream, h.Name)
		}
		return nil // it is there, and openTop knows its mode
	}
	dir, err := u.dir(path.Dir(name))
	if err == nil {
		err = u.make(dir, path.Base(name), name, h)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return nil
}

// dir opens a directory in root, and makes it if there is none.
func (u *unpacker) dir(name string) (*os.Root, error) {
	if u.last != nil && u.lastDir == name {
		return u.last, nil
	}
	d, err := u.root.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = u.root.MkdirAll(name, 0o755); err == nil {
			d, err = u.root.OpenRoot(name)
		}
	}
	if err != nil {
		return nil, err
	}
	if u.last != nil {
		_ = u.last.Close()
	}
	u.last, u.lastDir = d, name
	return d, nil
}

// leave finishes the directories that name is not in.
func (u *unpacker) leave(name string) error {
	for n := len(u.dirs); n > 0; n = len(u.dirs) {
		d := u.dirs[n-1]
		if name != "" && (d.name == "." || name == d.name || strings.HasPrefix(name, d.name+"/")) {
			return nil
		}
		u.dirs = u.dirs[:n-1]
		f, err := u.root.Open(d.name)
		if err != nil {
			return err
		}
		if err = u.finish(f, d.h); err == nil {
			err = unix.UtimesNanoAt(int(f.Fd()), ".", timespecs(d.h.ModTime), 0)
		}
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("copy %s: %w", d.h.Name, err)
		}
	}
	return nil
}

// remove makes room for something that is no directory.
func remove(dir *os.Root, name string) error {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%w: there is a directory of that name", ErrPlace)
	}
	if err == nil {
		err = dir.Remove(name)
	}
	return err
}

// mkdir makes a directory, or takes the one that is there.
func (u *unpacker) mkdir(dir *os.Root, name, full string, h *tar.Header) error {
	err := dir.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, lerr := dir.Lstat(name)
		switch {
		case lerr != nil:
			return lerr
		case u.o.Extract && info.Mode()&fs.ModeSymlink != 0:
			// As of /var/run: an archive may be of a system where it is none.
			if to, err := dir.Stat(name); err == nil && to.IsDir() {
				return nil
			}
		}
		if !info.IsDir() {
			return fmt.Errorf("%w: what is there is no directory", ErrPlace)
		}
		if !u.o.Archive {
			return nil // it keeps the mode that it has
		}
		err = nil
	}
	if err != nil {
		return err
	}
	u.dirs = append(u.dirs, pending{full, h})
	return nil
}

// link makes a hard link to an entry that came before.
func (u *unpacker) link(dir *os.Root, name string, h *tar.Header) error {
	target, err := u.local(h.Linkname)
	if err != nil {
		return err
	}
	if err := remove(dir, name); err != nil {
		return err
	}
	from, err := u.root.OpenRoot(path.Dir(target))
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	info, err := from.Lstat(path.Base(target))
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("%w: a hard link to a directory", ErrStream)
	}
	return linkAt(from, path.Base(target), dir, name)
}

// skip leaves an entry out and says so.
func (u *unpacker) skip(name, why string) error {
	if u.o.Skipped != nil {
		u.o.Skipped(name, why)
	}
	return nil
}

// permission explains what only root may do.
func permission(err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w (to keep owners takes root: leave out -a, or run fcvm as root)", err)
	}
	return err
}

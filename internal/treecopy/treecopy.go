// Package treecopy copies files and directories as tar streams, with the
// rules of `docker cp` for what goes where. Both sides of a copy trust neither
// the stream nor the tree: nothing is written outside of the destination,
// whatever names and links a stream has and whoever changes the destination
// meanwhile (package os, Root); nothing is read outside of the source.
//
// A stream begins with what is copied: NAME, a file or a link, and that is all
// of it; or NAME/, a directory, followed by all below it; or ./, the contents
// of a directory without its name. Hard links are kept within a stream, sparse
// files have PAX's sparse format 1.0 where the receiver is known to read it.
package treecopy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Limits of a stream and of a tree.
const (
	maxName  = 4096     // bytes of a path, and of a link's target
	maxDepth = 512      // directories in one another
	maxFile  = 16 << 40 // bytes of a file: as many as ext4 takes
	maxLinks = 40       // links that lead to one another, as in the kernel
)

// Errors of a copy.
var (
	// ErrStream: the stream is none of ours, or one that must not be unpacked.
	ErrStream = errors.New("bad archive")
	// ErrPlace: the source does not fit what is at the destination.
	ErrPlace = errors.New("cannot copy there")
	// ErrChanged: the source changed while it was read.
	ErrChanged = errors.New("changed while it was copied")
)

// View is a file system as one side of a copy sees it.
type View interface {
	// Dir opens a directory, links followed, but never out of the view.
	Dir(path string) (*os.Root, error)
}

// Local is the view that this process has of its own files.
type Local struct{}

// Dir implements View.
func (Local) Dir(path string) (*os.Root, error) { return os.OpenRoot(path) }

// place is a name in an open directory.
type place struct {
	dir  *os.Root
	name string
	info fs.FileInfo // nil: there is nothing of that name
}

func (p *place) close() { _ = p.dir.Close() }

// isDirPath reports whether a path says by itself that it is a directory.
func isDirPath(path string) bool {
	return strings.HasSuffix(path, "/") || isContents(path)
}

// isContents reports whether a path means what is in a directory.
func isContents(path string) bool {
	last := filepath.Base(path)
	return path == "" || strings.HasSuffix(path, "/.") || last == "." || last == ".." || last == "/"
}

// Name is what a stream of a path begins with; "." for the contents of a
// directory.
func Name(path string) string {
	if isContents(path) {
		return "."
	}
	return filepath.Base(path)
}

// find looks at a path. The directory that it is in must be there. A link at
// its end is followed if follow is set; one that leads nowhere is then the
// place that it leads to.
func find(v View, path string, follow bool) (*place, error) {
	given := path
	for range maxLinks {
		if isContents(path) {
			return findDir(v, path)
		}
		path = strings.TrimRight(path, "/")
		dir, name := filepath.Split(path) // not cleaned: a .. behind a link is the link's
		if dir == "" {
			dir = "."
		}
		root, err := v.Dir(dir)
		if err != nil {
			return nil, err
		}
		p := &place{dir: root, name: name}
		p.info, err = root.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return p, nil
		case err != nil:
			p.close()
			return nil, err
		case !follow || p.info.Mode()&fs.ModeSymlink == 0:
			return p, nil
		}
		target, err := root.Readlink(name)
		p.close()
		if err != nil {
			return nil, err
		}
		if path = target; !filepath.IsAbs(target) {
			path = dir + "/" + target
		}
	}
	return nil, fmt.Errorf("%s: too many links", given)
}

// findDir is find for a path that is a directory by its form.
func findDir(v View, path string) (*place, error) {
	if path == "" {
		path = "."
	}
	root, err := v.Dir(path)
	if err != nil {
		return nil, err
	}
	p := &place{dir: root, name: "."}
	if p.info, err = root.Stat("."); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

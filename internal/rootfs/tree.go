package rootfs

import (
	"archive/tar"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // AUFS's own files
	opaqueMarker   = ".wh..wh..opq"
	maxHops        = 40 // symbolic links followed in one path, as Linux does
)

// node is one inode of the merged tree. Two names of one node are hard links.
type node struct {
	hdr      *tar.Header
	children map[string]child // of a directory
	layer    int              // whose archive holds the content
	seq      int              // which entry of that archive
	touched  int              // the last layer that named something below this directory
	pruned   int              // the last layer that hid what lower ones have in this directory
	links    []string         // filled in when the tree is final
}

// child is a name in a directory. A layer hides names, so what it has named
// itself is known for each of them: a node may have others, of lower layers.
type child struct {
	*node
	named int // the last layer that named it
}

// lower reports whether a layer has named neither this nor anything below it.
func (c child) lower(layer int) bool { return c.named < layer && c.touched < layer }

func (n *node) isDir() bool     { return n.hdr.Typeflag == tar.TypeDir }
func (n *node) isSymlink() bool { return n.hdr.Typeflag == tar.TypeSymlink }
func (n *node) hasContent() bool {
	return n.hdr.Typeflag == tar.TypeReg && n.hdr.Size > 0
}

func (n *node) subdirs() int {
	count := 0
	for _, c := range n.children {
		if c.isDir() {
			count++
		}
	}
	return count
}

// tree is an image's file tree as its layers are applied, lowest first, with
// the rules of the OCI image specification:
// https://github.com/opencontainers/image-spec/blob/main/layer.md
type tree struct {
	root    *node
	layer   int
	limits  Limits
	entries int   // of the layers
	made    int   // directories that entries are in but that no entry named
	bytes   int64 // of regular files
	strings int64 // bytes of names, link targets and extended attributes
	steps   int   // names looked up
}

// maxSteps bounds the names looked up for all entries together. Symbolic
// links can make one entry's path tens of thousands of names long.
func maxSteps(entries int) int { return 1<<20 + 128*entries }

func newTree(l Limits) *tree {
	return &tree{root: newDir(-1), layer: -1, limits: l.orDefault()}
}

func newDir(layer int) *node {
	return &node{
		hdr:      &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0), Format: tar.FormatPAX},
		children: map[string]child{}, layer: layer, touched: layer, pruned: -1,
	}
}

// keep returns a copy of a name that does not hold on to the path it is cut
// from, and counts it.
func (t *tree) keep(s string) (string, error) {
	return strings.Clone(s), t.remember(len(s))
}

// remember counts bytes that stay in memory.
func (t *tree) remember(n int) error {
	if t.strings += int64(n); t.strings > t.limits.Strings {
		return fmt.Errorf("%w: over %d MiB of names and attributes", ErrTooLarge, t.limits.Strings>>20)
	}
	return nil
}

// grow counts something that takes memory, in one of the tree's counters.
func (t *tree) grow(counter *int) error {
	if *counter++; t.entries+t.made > t.limits.Entries {
		return fmt.Errorf("%w: over %d entries", ErrTooLarge, t.limits.Entries)
	}
	return nil
}

// nextLayer starts the next layer.
func (t *tree) nextLayer() { t.layer++ }

// add applies entry number seq of the current layer.
func (t *tree) add(h *tar.Header, seq int) error {
	if err := t.grow(&t.entries); err != nil {
		return err
	}
	// Some builders name everything from the root on. Docker and Podman take it
	// as relative to the image's.
	name, err := cleanName(strings.TrimLeft(h.Name, "/"), t.limits.Name)
	if err != nil {
		return err
	}
	dirName, base := path.Split(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		if err := t.count(h); err != nil {
			return err
		}
		return t.whiteout(dirName, base)
	}
	if h.Typeflag == tar.TypeLink {
		return t.link(h, dirName, base)
	}
	hdr, err := t.sanitize(h)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag == tar.TypeDir {
			t.root.hdr = hdr
		}
		return nil
	}
	dir, err := t.dir(dirName, true)
	if err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	if base, err = t.keep(base); err != nil {
		return err
	}
	old := dir.children[base]
	n := &node{hdr: hdr, layer: t.layer, seq: seq, touched: -1, pruned: -1}
	if h.Typeflag == tar.TypeDir {
		n.children = map[string]child{}
		if old.node != nil && old.isDir() {
			n.children, n.touched, n.pruned = old.children, old.touched, old.pruned
		}
	}
	dir.children[base] = child{n, t.layer}
	return nil
}

// link adds a name for a file that is there.
func (t *tree) link(h *tar.Header, dirName, base string) error {
	target, err := t.linkTarget(h)
	if err != nil {
		return err
	}
	dir, err := t.dir(dirName, true)
	if err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	if base == "" {
		return fmt.Errorf("%w: entry %q is a hard link without a name", ErrCorrupt, h.Name)
	}
	if base, err = t.keep(base); err != nil {
		return err
	}
	dir.children[base] = child{target, t.layer}
	return nil
}

// cleanName returns the path without slashes at its ends. A path that is
// absolute or goes up is refused, rather than taken for another one.
func cleanName(name string, limit int) (string, error) {
	if len(name) > limit {
		return "", fmt.Errorf("%w: a path of %d bytes, the limit is %d", ErrTooLarge, len(name), limit)
	}
	if strings.Trim(name, "/") == "" { // some builders name the root so
		return "", nil
	}
	if strings.HasPrefix(name, "/") {
		return "", fmt.Errorf("%w: %q is an absolute path", ErrUnsafe, name)
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return "", fmt.Errorf("%w: %q goes up with \"..\"", ErrUnsafe, name)
		case len(p) > maxName || strings.IndexByte(p, 0) >= 0:
			return "", fmt.Errorf("%w: %q is no file name", ErrUnsafe, p)
		}
		parts = append(parts, p)
	}
	return strings.Join(parts, "/"), nil
}

// linkTarget finds what a hard link links to. Its target may be absolute only
// where its own name is.
func (t *tree) linkTarget(h *tar.Header) (*node, error) {
	target := h.Linkname
	if strings.HasPrefix(h.Name, "/") {
		target = strings.TrimLeft(target, "/")
	}
	name, err := cleanName(target, t.limits.Name)
	if err != nil {
		return nil, fmt.Errorf("hard link %q: %w", h.Name, err)
	}
	dirName, base := path.Split(name)
	dir, err := t.dir(dirName, false)
	if err != nil {
		return nil, fmt.Errorf("hard link %q: %w", h.Name, err)
	}
	var n *node
	if dir != nil {
		n = dir.children[base].node
	}
	if n == nil || n.isDir() {
		return nil, fmt.Errorf("%w: hard link %q to %q, which is no file", ErrCorrupt, h.Name, h.Linkname)
	}
	return n, nil
}

// dir returns the directory of this name, following symbolic links inside of
// the tree as the kernel would with the tree as its root. With create it
// makes what is missing and marks the way as touched; without, it returns nil
// for what is missing.
func (t *tree) dir(name string, create bool) (*node, error) {
	stack := []*node{t.root}
	todo := strings.Split(name, "/")
	for hops := 0; len(todo) > 0; {
		if t.steps++; t.steps > maxSteps(t.limits.Entries) {
			return nil, fmt.Errorf("%w: its paths take too many steps to follow", ErrTooLarge)
		}
		part := todo[0]
		todo = todo[1:]
		cur := stack[len(stack)-1]
		if create {
			cur.touched = t.layer
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		next := cur.children[part].node
		switch {
		case next == nil && !create:
			return nil, nil
		case next == nil:
			if err := t.grow(&t.made); err != nil {
				return nil, err
			}
			var err error
			if part, err = t.keep(part); err != nil {
				return nil, err
			}
			next = newDir(t.layer)
			cur.children[part] = child{next, t.layer}
		case next.isSymlink():
			if hops++; hops > maxHops {
				return nil, fmt.Errorf("%w: symbolic links loop at %q", ErrUnsafe, part)
			}
			if strings.HasPrefix(next.hdr.Linkname, "/") {
				stack = stack[:1]
			}
			todo = append(strings.Split(next.hdr.Linkname, "/"), todo...)
			continue
		case !next.isDir():
			return nil, fmt.Errorf("%w: %q is no directory", ErrCorrupt, part)
		}
		stack = append(stack, next)
	}
	last := stack[len(stack)-1]
	if create {
		last.touched = t.layer
	}
	return last, nil
}

// whiteout hides what lower layers have. What this layer has stays, in
// whatever order its entries come.
func (t *tree) whiteout(dirName, base string) error {
	if base != opaqueMarker && strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	dir, err := t.dir(dirName, base == opaqueMarker)
	if err != nil {
		return fmt.Errorf("whiteout in %q: %w", dirName, err)
	}
	if dir == nil {
		return nil
	}
	if base == opaqueMarker {
		t.prune(dir)
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if c, ok := dir.children[name]; ok {
		if c.lower(t.layer) {
			delete(dir.children, name)
		} else {
			t.prune(c.node)
		}
	}
	return nil
}

// prune hides what lower layers have below dir: once per layer, for then
// nothing of theirs is left.
func (t *tree) prune(dir *node) {
	if dir.pruned == t.layer {
		return
	}
	dir.pruned = t.layer
	for name, c := range dir.children {
		if c.lower(t.layer) {
			delete(dir.children, name)
		} else {
			t.prune(c.node)
		}
	}
}

// walk calls f for each name of the final tree, parents first, siblings in
// order.
func (t *tree) walk(f func(name string, n *node) error) error {
	var down func(prefix string, dir *node) error
	down = func(prefix string, dir *node) error {
		names := make([]string, 0, len(dir.children))
		for name := range dir.children {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			c := dir.children[name]
			if err := f(prefix+name, c.node); err != nil {
				return err
			}
			if c.isDir() {
				if err := down(prefix+name+"/", c.node); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return down("", t.root)
}

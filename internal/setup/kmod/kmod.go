// Package kmod finds the kernel modules that a guest needs, with what they
// depend on, in the order in which they must be loaded. It reads the modules
// themselves (their .modinfo section) rather than modules.dep, which a
// package does not hold: depmod writes it when the package is installed.
package kmod

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// MaxModule bounds one decompressed module, bytes.
const MaxModule = 64 << 20

// ErrModule: a file is not a kernel module that can be used.
var ErrModule = errors.New("bad kernel module")

// Module is one loadable module.
type Module struct {
	Name string // with underscores: "virtio_blk"
	Data []byte // decompressed
	deps []string
}

// Tree is the modules of one kernel: a file system that holds kernel/….ko
// and modules.builtin, as /lib/modules/VERSION does.
type Tree struct {
	fsys    fs.FS
	files   map[string]string // name → path
	builtin map[string]bool
	cache   map[string]*Module
}

// Open indexes the modules in fsys. A kernel without modules is an empty tree.
func Open(fsys fs.FS) (*Tree, error) {
	t := &Tree{fsys: fsys, files: map[string]string{}, builtin: map[string]bool{}, cache: map[string]*Module{}}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() {
			if n, ok := moduleName(p); ok {
				t.files[n] = p
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read kernel modules: %w", err)
	}
	b, err := fs.ReadFile(fsys, "modules.builtin")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read kernel modules: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := moduleName(strings.TrimSpace(line)); ok {
			t.builtin[n] = true
		}
	}
	return t, nil
}

// moduleName returns the module's name for a path such as
// kernel/drivers/block/virtio_blk.ko.xz. In names '-' and '_' are the same.
func moduleName(p string) (string, bool) {
	name, ext, ok := strings.Cut(path.Base(p), ".ko")
	if !ok || (ext != "" && ext != ".xz" && ext != ".gz" && ext != ".zst") {
		return "", false
	}
	return strings.ReplaceAll(name, "-", "_"), true
}

// Builtin reports whether the kernel has the module built in.
func (t *Tree) Builtin(name string) bool { return t.builtin[name] }

// Resolve returns the named modules and all that they depend on, each once,
// each after what it depends on. Names that are built in or that this kernel
// does not have are left out; missing lists the latter.
func (t *Tree) Resolve(names []string) (mods []*Module, missing []string, err error) {
	done := map[string]bool{}
	var add func(name string, depth int) error
	add = func(name string, depth int) error {
		name = strings.ReplaceAll(name, "-", "_")
		if done[name] || t.builtin[name] {
			return nil
		}
		if depth > len(t.files) {
			return fmt.Errorf("%w: %s depends on itself", ErrModule, name)
		}
		if _, ok := t.files[name]; !ok {
			missing = append(missing, name)
			done[name] = true
			return nil
		}
		m, err := t.load(name)
		if err != nil {
			return err
		}
		for _, d := range m.deps {
			if err := add(d, depth+1); err != nil {
				return err
			}
		}
		if !done[name] {
			done[name] = true
			mods = append(mods, m)
		}
		return nil
	}
	for _, n := range names {
		if err := add(n, 0); err != nil {
			return nil, nil, err
		}
	}
	return mods, missing, nil
}

func (t *Tree) load(name string) (*Module, error) {
	if m, ok := t.cache[name]; ok {
		return m, nil
	}
	p := t.files[name]
	f, err := t.fsys.Open(p)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	r, err := decompress(f, path.Ext(p))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", p, err)
	}
	b, err := io.ReadAll(io.LimitReader(r, MaxModule+1))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", p, err)
	}
	if len(b) > MaxModule {
		return nil, fmt.Errorf("%w: %s is over %d MiB", ErrModule, p, MaxModule>>20)
	}
	deps, err := depends(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrModule, p, err)
	}
	m := &Module{Name: name, Data: b, deps: deps}
	t.cache[name] = m
	return m, nil
}

func decompress(r io.Reader, ext string) (io.Reader, error) {
	switch ext {
	case ".xz":
		return xz.NewReader(r, xz.DefaultDictMax)
	case ".gz":
		return gzip.NewReader(r)
	case ".zst":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return r, nil
	}
}

// depends reads "depends=a,b" from the .modinfo section: strings, each ended
// by a zero byte (include/linux/moduleparam.h). A softdep of the form
// "pre: x" is a dependency too: crypto providers are named so.
func depends(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			deps = append(deps, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			if pre, ok := strings.CutPrefix(value, "pre:"); ok {
				pre, _, _ = strings.Cut(pre, "post:")
				deps = append(deps, strings.Fields(pre)...)
			}
		}
	}
	return deps, nil
}

package setup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/rootfs"
)

// Limits of a kernel that comes from another host.
const (
	maxCarriedFiles = 1000
	maxCarriedBytes = 2 << 30
)

// PackKernel writes a kernel and its modules as a tar archive, from which
// UnpackKernel installs it elsewhere. The same kernel gives the same bytes.
func (s *Setup) PackKernel(ctx context.Context, id string, w io.Writer) error {
	if !s.HasKernel(id) {
		return fmt.Errorf("%w: there is no kernel %q", ErrNotSetUp, id)
	}
	dir := filepath.Join(s.layout.Kernels(), id)
	modules, err := os.ReadDir(filepath.Join(dir, modulesDirName))
	if err != nil {
		return fmt.Errorf("read kernel %s: %w", id, err)
	}
	names := []string{kernelFileName}
	for _, m := range modules {
		names = append(names, path.Join(modulesDirName, m.Name()))
	}
	t := tar.NewWriter(w)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := packFile(t, dir, name); err != nil {
			return fmt.Errorf("read kernel %s: %w", id, err)
		}
	}
	return t.Close()
}

func packFile(t *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o400, Size: st.Size(), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// UnpackKernel installs a kernel that PackKernel has packed, if it is the one
// with this id: new VMs do not take it. The error wraps ErrInput for any other.
func (s *Setup) UnpackKernel(ctx context.Context, id string, r io.Reader) error {
	return s.takeIn(ctx, s.layout.Kernels(), id, func(work string) error {
		if err := unpackCarried(ctx, work, r); err != nil {
			return fmt.Errorf("unpack kernel %s: %w", id, err)
		}
		if !isKernel(work, id) {
			return fmt.Errorf("%w: the kernel that came is not %s", ErrInput, id)
		}
		return nil
	}, func(dir string) bool { return isKernel(dir, id) })
}

// unpackCarried puts the files of a kernel into work, and refuses all others:
// an initramfs, say, would be started as it is.
func unpackCarried(ctx context.Context, work string, r io.Reader) error {
	if err := os.Mkdir(filepath.Join(work, modulesDirName), 0o700); err != nil {
		return err
	}
	var total int64
	t := tar.NewReader(r)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInput, err)
		}
		total += h.Size
		switch {
		case h.Typeflag != tar.TypeReg || !carriedName(h.Name):
			return fmt.Errorf("%w: %q is no file of a kernel", ErrInput, h.Name)
		case n == maxCarriedFiles || h.Size > maxKernelFile || total > maxCarriedBytes:
			return fmt.Errorf("%w: it is too large", ErrInput)
		}
		f, err := os.OpenFile(filepath.Join(work, h.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400) //nolint:gosec // carriedName knows it
		if err == nil {
			_, err = io.Copy(f, t)
			err = errors.Join(err, f.Sync(), f.Close())
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInput, err)
		}
	}
}

// carriedName reports whether a kernel has a file that is called so.
func carriedName(name string) bool {
	if name == kernelFileName {
		return true
	}
	module, ok := strings.CutPrefix(name, modulesDirName+"/")
	return ok && module != "" && len(module) < 100 && module[0] != '.' && !strings.ContainsAny(module, "/\x00")
}

// Root returns the path of a guest root.
func (s *Setup) Root(id string) (string, error) {
	if !s.HasRoot(id) {
		return "", fmt.Errorf("%w: there is no guest root %q", ErrNotSetUp, id)
	}
	return s.rootFile(id), nil
}

// TakeRoot installs the disk at path, which it moves away, if it is the guest
// root with this id: new VMs do not take it. The error wraps ErrInput for any
// other.
func (s *Setup) TakeRoot(ctx context.Context, id, disk string) error {
	return s.takeIn(ctx, s.layout.Roots(), id, func(work string) error {
		if !isFile(disk, id) {
			return fmt.Errorf("%w: the guest root that came is not %s", ErrInput, id)
		}
		to := filepath.Join(work, rootFileName)
		err := os.Rename(disk, to)
		if errors.Is(err, unix.EXDEV) {
			err = rootfs.CopySparse(ctx, to, disk)
		}
		return errors.Join(err, seal(to))
	}, func(dir string) bool { return isFile(filepath.Join(dir, rootFileName), id) })
}

// seal makes a file that is there unchangeable, and waits for the disk.
func seal(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o400), f.Sync(), f.Close())
}

// takeIn has fill make the part with an id in a work directory, and puts that in
// its place below parent.
func (s *Setup) takeIn(ctx context.Context, parent, id string, fill func(work string) error, is func(dir string) bool) error {
	if !isID(id) {
		return fmt.Errorf("%w: %q is no id", ErrInput, id)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	work, err := workDir(parent)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := fill(work); err != nil {
		return err
	}
	return s.place(ctx, work, filepath.Join(parent, id), is)
}

package setup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fcvm/fcvm/internal/setup/bzimage"
)

// maxVersionAt is how far into a bzImage its version can be, bytes: the header
// has 16 bits for where it is.
const maxVersionAt = 1<<16 + 1<<10

// kernelOfHost takes the kernel of this release that is installed in root:
// below its own name, as Debian, Fedora and openSUSE have it; among its modules,
// as Fedora and Arch; or below any name in /boot, if it says that it is of this
// release.
func kernelOfHost(root, release string) (*kernelSource, error) {
	modules := filepath.Join(root, "lib", "modules", release)
	if _, err := os.Stat(modules); err != nil {
		modules = filepath.Join(root, "usr", "lib", "modules", release)
	}
	var failed error
	for _, path := range hostKernels(root, release) {
		src, err := kernelFile(path, modules, path)
		if err == nil {
			src.version = release
			return src, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && failed == nil {
			failed = err
		}
	}
	if failed != nil {
		return nil, fmt.Errorf("%w (some distributions let only root read it; take the package with: fcvm setup kernel)", failed)
	}
	return nil, fmt.Errorf("%w: the kernel %s is neither in %s nor in %s; take another with: fcvm setup kernel --from FILE, or the package with: fcvm setup kernel",
		ErrInput, release, filepath.Join(root, "boot"), modules)
}

// hostKernels is where the kernel of a release may be, the likeliest first.
func hostKernels(root, release string) []string {
	paths := []string{
		filepath.Join(root, "boot", "vmlinuz-"+release),
		filepath.Join(root, "lib", "modules", release, "vmlinuz"),
		filepath.Join(root, "usr", "lib", "modules", release, "vmlinuz"),
	}
	others, _ := filepath.Glob(filepath.Join(root, "boot", "vmlinuz*")) // the pattern is a valid one
	for _, path := range others {
		if releaseOf(path) == release {
			paths = append(paths, path)
		}
	}
	return paths
}

// releaseOf is what a bzImage says of its release; empty: nothing.
func releaseOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxVersionAt))
	if err != nil {
		return ""
	}
	return bzimage.Release(b)
}

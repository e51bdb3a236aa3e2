// Package images makes container images for tests and demonstrations from
// Debian's packages, with nothing but apt-get and dpkg-deb: no registry, no
// root, no container tool. An image is made once and kept in a directory.
//
// Packages are unpacked, not installed: their scripts are not run, and what
// those would make is in the recipes.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/gofrs/flock"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// ErrUnknown: there is no recipe of that name.
var ErrUnknown = errors.New("no such test image")

// ErrTool: a program of the host is missing; the message says which.
var ErrTool = errors.New("program is missing")

// generation is part of all file names; it changes with the recipes.
const generation = "r2"

// Names returns the images that can be made, sorted.
func Names() []string {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.name)
	}
	slices.Sort(names)
	return names
}

// Image makes an image for this machine's architecture, or takes the one that
// dir keeps.
func Image(ctx context.Context, dir, image string) (v1.Image, error) {
	path, err := made(ctx, dir, image, "", func(tmp string) error {
		r, err := recipeOf(image)
		if err != nil {
			return err
		}
		img, err := r.build(ctx, tmp)
		if err != nil {
			return err
		}
		return writeLayout(filepath.Join(tmp, "made"), img)
	})
	if err != nil {
		return nil, err
	}
	return readLayout(path)
}

// OCIArchive returns the path of an image as an OCI archive.
func OCIArchive(ctx context.Context, dir, image string) (string, error) {
	if _, err := Image(ctx, dir, image); err != nil {
		return "", err
	}
	return made(ctx, dir, image, ".oci.tar", func(tmp string) error {
		return tarTree(base(dir, image), filepath.Join(tmp, "made"))
	})
}

// DockerArchive returns the path of an image as docker save writes it.
func DockerArchive(ctx context.Context, dir, image string) (string, error) {
	img, err := Image(ctx, dir, image)
	if err != nil {
		return "", err
	}
	return made(ctx, dir, image, ".docker.tar", func(tmp string) error {
		tag, err := name.NewTag("localhost/" + image + ":test")
		if err != nil {
			return err
		}
		return tarball.WriteToFile(filepath.Join(tmp, "made"), tag, img)
	})
}

// Busybox returns the path of Debian's statically linked busybox.
func Busybox(ctx context.Context, dir string) (string, error) {
	return made(ctx, dir, "busybox", ".bin", func(tmp string) error {
		debs, err := download(ctx, tmp, "busybox-static")
		if err != nil {
			return err
		}
		out, err := os.OpenFile(filepath.Join(tmp, "made"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
		if err != nil {
			return err
		}
		found := false
		err = eachFile(ctx, debs, func(h header, content io.Reader) error {
			if h.Name != "usr/bin/busybox" {
				return nil
			}
			found = true
			_, err := io.Copy(out, content)
			return err
		})
		if cerr := out.Close(); err == nil {
			err = cerr
		}
		if err == nil && !found {
			err = errors.New("package busybox-static holds no bin/busybox")
		}
		return err
	})
}

// base is where an image's OCI layout is kept; the archives lie beside it.
func base(dir, image string) string {
	return filepath.Join(dir, image+"-"+runtime.GOARCH+"-"+generation)
}

// made returns the path of something that produce puts into tmp/made if it is
// not there yet. Of several processes one makes it.
func made(ctx context.Context, dir, image, suffix string, produce func(tmp string) error) (path string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	path = base(dir, image) + suffix
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	l := flock.New(path + ".lock")
	if _, err := l.TryLockContext(ctx, lockPoll); err != nil {
		return "", fmt.Errorf("lock %s: %w", path, err)
	}
	defer func() { _ = l.Close() }()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	if err := produce(tmp); err != nil {
		return "", fmt.Errorf("make image %s: %w", image, err)
	}
	return path, os.Rename(filepath.Join(tmp, "made"), path)
}

func writeLayout(dir string, img v1.Image) error {
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return p.AppendImage(img)
}

// readLayout returns the only image of an OCI layout.
func readLayout(dir string) (v1.Image, error) {
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) != 1 {
		return nil, fmt.Errorf("%s holds %d images", dir, len(m.Manifests))
	}
	return idx.Image(m.Manifests[0].Digest)
}

// run runs a program and says what it said if it fails.
func run(ctx context.Context, dir string, args ...string) (string, error) {
	if _, err := exec.LookPath(args[0]); err != nil {
		return "", fmt.Errorf("%w: %s: test images are made on Debian or Ubuntu", ErrTool, args[0])
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

package setup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
)

// Limits of a kernel package.
const (
	maxPackageFiles = 50_000
	maxPackageBytes = 2 << 30
	commandGrace    = 5 * time.Second
)

// kernelPackage downloads the distribution's kernel for virtual machines with
// apt-get, as the host has it configured, and unpacks it without installing.
func (s *Setup) kernelPackage(ctx context.Context, name, work string, rep progress.Reporter) (*kernelSource, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: %s; this is no Debian or Ubuntu: give a kernel with --from host, --from FILE or --from URL", ErrTool, tool)
		}
	}
	name, err := s.resolveKernelPackage(ctx, name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(work, "package")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	names := []string{name}
	if mods := strings.Replace(name, "linux-image-", "linux-modules-", 1); packageExists(ctx, mods) {
		names = append(names, mods) // Ubuntu's modules come apart
	}
	task := rep.Task("download "+name, 0)
	_, err = command(ctx, dir, "apt-get", append([]string{"download", "-q"}, names...)...)
	task.Done(err)
	if err != nil {
		return nil, fmt.Errorf("%w: kernel package %s: %w", ErrDownload, name, err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "root")
	for _, deb := range debs {
		if err := unpackDeb(ctx, deb, root); err != nil {
			return nil, err
		}
	}
	return kernelInTree(root, name)
}

// kernelInTree finds the kernel and its modules in an unpacked package.
func kernelInTree(root, source string) (*kernelSource, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%w: package %s holds %d kernels", ErrInput, source, len(images))
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	modules := filepath.Join(root, "lib", "modules", version)
	if _, err := os.Stat(modules); err != nil {
		modules = filepath.Join(root, "usr", "lib", "modules", version)
	}
	src, err := kernelFile(images[0], modules, source)
	if err != nil {
		return nil, err
	}
	src.version = version
	return src, nil
}

// kernelMetapackages are tried in this order; each depends on the current
// kernel of its kind.
var kernelMetapackages = map[string][]string{
	"amd64": {"linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64", "linux-image-generic"},
	"arm64": {"linux-image-cloud-arm64", "linux-image-virtual", "linux-image-arm64", "linux-image-generic"},
}

// resolveKernelPackage finds the package that holds a kernel: the one named,
// or the one that a metapackage depends on.
func (s *Setup) resolveKernelPackage(ctx context.Context, name string) (string, error) {
	tries := kernelMetapackages[s.arch]
	if name != "" {
		tries = []string{name}
	}
	for _, meta := range tries {
		out, err := command(ctx, "/", "apt-cache", "depends", "--no-recommends", "--no-suggests", meta)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(out)) {
			dep, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
			// An unsigned variant is named like the signed one.
			if ok && strings.HasPrefix(dep, "linux-image-") {
				return dep, nil
			}
		}
		if name != "" && packageExists(ctx, name) {
			return name, nil
		}
	}
	return "", fmt.Errorf("%w: apt knows no kernel package (tried %s); run: apt-get update", ErrDownload, strings.Join(tries, ", "))
}

func packageExists(ctx context.Context, name string) bool {
	out, err := command(ctx, "/", "apt-cache", "show", name)
	return err == nil && len(out) > 0
}

// unpackDeb unpacks kernel and modules of a package; nothing else of it is of use.
func unpackDeb(ctx context.Context, deb, root string) error {
	cmd := newCommand(ctx, "/", "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	err = unpackKernel(out, root)
	if err != nil {
		_ = cmd.Cancel()
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = fmt.Errorf("%w: %s", werr, lastLine(stderr.Bytes()))
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	return nil
}

func unpackKernel(r io.Reader, root string) error {
	var files, total int64
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // else dpkg-deb fails to write the padding
			return err
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(name) || !ofKernel(name) {
			continue
		}
		files, total = files+1, total+h.Size
		if files > maxPackageFiles || total > maxPackageBytes {
			return fmt.Errorf("%w: package is too large", ErrInput)
		}
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, t, h.Size)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

func ofKernel(name string) bool {
	for _, p := range []string{"boot/vmlinuz-", "lib/modules/", "usr/lib/modules/"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// newCommand makes a command that is ended with all its children when ctx
// ends, with the C locale.
func newCommand(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = commandGrace
	return cmd
}

// command runs a command and returns its output; the error ends with the last
// line of what it wrote to stderr.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := newCommand(ctx, dir, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", name, err, lastLine(stderr.Bytes()))
	}
	return out, nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

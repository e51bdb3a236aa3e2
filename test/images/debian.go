package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const lockPoll = 100 * time.Millisecond

// download fetches packages with all they depend on, as the host's apt is
// configured but whatever the host has installed.
func download(ctx context.Context, tmp string, packages ...string) ([]string, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(tmp, "apt")
	archives := filepath.Join(cache, "archives")
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return nil, err
	}
	status := filepath.Join(tmp, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	args := []string{
		"apt-get", "-qq", "-y", "--download-only", "--no-install-recommends",
		"-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=" + me.Username,
		"-o", "Dir::State::status=" + status, "-o", "Dir::Cache=" + cache, "-o", "Dir::Cache::archives=" + archives,
		"install",
	}
	if _, err := run(ctx, tmp, append(args, packages...)...); err != nil {
		return nil, fmt.Errorf("%w; if a package cannot be found, run: sudo apt-get update", err)
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	slices.Sort(debs)
	if err == nil && len(debs) == 0 {
		err = errors.New("apt-get downloaded nothing")
	}
	return debs, err
}

// header is one file of a package, its name relative to the root and in a
// merged /usr.
type header struct{ *tar.Header }

// eachFile goes through the files of packages.
func eachFile(ctx context.Context, debs []string, f func(header, io.Reader) error) error {
	for _, deb := range debs {
		if err := eachFileOf(ctx, deb, f); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
	}
	return nil
}

func eachFileOf(ctx context.Context, deb string, f func(header, io.Reader) error) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = eachMember(out, f)
	_, _ = io.Copy(io.Discard, out) // padding, or what an error left
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	return err
}

func eachMember(r io.Reader, f func(header, io.Reader) error) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = merged(h.Name)
		if h.Typeflag == tar.TypeLink {
			h.Linkname = merged(h.Linkname)
		}
		if h.Name == "." || slices.Contains(topLinks(), h.Name) {
			continue
		}
		if err := f(header{h}, tr); err != nil {
			return err
		}
	}
}

// topLinks are what a merged /usr has links for.
func topLinks() []string { return []string{"bin", "sbin", "lib", "lib64"} }

// merged moves a name to where a merged /usr has it.
func merged(name string) string {
	name = path.Clean(strings.TrimLeft(name, "/"))
	if first, _, below := strings.Cut(name, "/"); below && slices.Contains(topLinks(), first) {
		return "usr/" + name
	}
	return name
}

// needless is what a container does not need. Perl is for the packages'
// scripts.
func needless(name string) bool {
	if strings.Contains(name, "/perl") {
		return true
	}
	for _, dir := range []string{"usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/", "usr/lib/systemd/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

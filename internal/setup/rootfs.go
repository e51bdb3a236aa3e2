package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

// ErrBuild: the guest root could not be built; the message ends with what the
// program that builds it said last.
var ErrBuild = errors.New("cannot build the guest root")

// RootfsOptions says what the guest root is made of. The zero value takes the
// host's own Debian or Ubuntu, from where the host's apt gets it.
type RootfsOptions struct {
	Suite   string   // "bookworm"; empty: the host's release where it will do
	Mirror  string   // URI of an archive; empty: those of the host's apt
	Include []string // packages on top of those that a guest needs

	// FromImage is a container image to take instead of packages; Layers
	// then returns its layers, lowest first. They must stay readable until
	// Rootfs returns.
	FromImage string
	Layers    func(ctx context.Context, ref string) ([]rootfs.Layer, error)

	Force bool // build again what is there
}

// source describes what is asked for, for people and to tell two from one
// another.
func (o RootfsOptions) source(r release) string {
	if o.FromImage != "" {
		return "image " + o.FromImage
	}
	parts := []string{r.family + " " + r.suite}
	if o.Mirror != "" {
		parts = append(parts, "from "+o.Mirror)
	}
	if len(o.Include) > 0 {
		parts = append(parts, "with "+strings.Join(o.Include, ","))
	}
	return strings.Join(parts, " ")
}

// isDefault reports whether any guest root will do.
func (o RootfsOptions) isDefault() bool {
	return o.Suite == "" && o.Mirror == "" && o.FromImage == "" && len(o.Include) == 0
}

// Rootfs builds the guest root, unless what is asked for is there.
//
// Its id is the digest of the finished disk, not of what went into it: two
// builds of the same packages differ in times and places on the disk, and a
// snapshot taken on the one must not be resumed on the other.
func (s *Setup) Rootfs(ctx context.Context, o RootfsOptions, rep progress.Reporter) error {
	if o.FromImage != "" && (o.Suite != "" || o.Mirror != "" || len(o.Include) > 0) {
		return fmt.Errorf("%w: --from-image takes the image as it is; leave out --suite, --mirror and --include", ErrInput)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := s.Manifest()
	if err != nil {
		return err
	}
	osRelease, err := os.ReadFile("/etc/os-release")
	if err != nil {
		osRelease = nil // a host of no known family
	}
	host := hostRelease(osRelease)
	r := guestRelease(host, o.Suite)
	source := o.source(r)
	if a := m.Rootfs; !o.Force && a != nil && (o.isDefault() || a.Source == source) && a.Format >= rootFormat && s.whole(a) == nil {
		rep.Note("guest root " + a.Version + " is installed")
		return nil
	}
	work, err := workDir(s.layout.Roots())
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	final := filepath.Join(work, "final")
	if err := os.Mkdir(final, 0o700); err != nil {
		return fmt.Errorf("build the guest root: %w", err)
	}
	disk, err := os.OpenFile(filepath.Join(final, rootFileName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("build the guest root: %w", err)
	}
	a := &Artifact{Version: r.family + " " + r.suite, Source: source, Format: rootFormat}
	if o.FromImage != "" {
		a.Version = o.FromImage
		err = imageRoot(ctx, o, disk, rep)
	} else {
		b := debianRoot{release: r, options: o, work: work, uid: os.Getuid(), sources: mirrors(host, r), rep: rep}
		err = b.build(ctx, disk)
	}
	if err = errors.Join(err, disk.Chmod(0o400), disk.Close()); err != nil {
		return err
	}
	return s.installRoot(ctx, a, final)
}

// mirrors returns the host's own archives, where they have the release.
func mirrors(host, r release) []aptSource {
	if host.suite == "" || host.family != r.family {
		return nil
	}
	return hostSources("/etc/apt", host.suite, r.suite)
}

// installRoot moves a finished disk to its place and records it.
func (s *Setup) installRoot(ctx context.Context, a *Artifact, dir string) error {
	sum, _, _, err := hashFile(filepath.Join(dir, rootFileName))
	if err != nil {
		return fmt.Errorf("install the guest root: %w", err)
	}
	a.ID, a.Installed = sum[:idLength], time.Now().UTC()
	final := filepath.Join(s.layout.Roots(), a.ID)
	is := func(dir string) bool { return isFile(filepath.Join(dir, rootFileName), a.ID) }
	if err := s.place(ctx, dir, final, is); err != nil {
		return err
	}
	return s.record(a, []string{filepath.Join(final, rootFileName)}, func(m *Manifest) { m.Rootfs = a })
}

// imageRoot makes a guest root of a container image.
func imageRoot(ctx context.Context, o RootfsOptions, disk *os.File, rep progress.Reporter) error {
	layers, err := o.Layers(ctx, o.FromImage)
	if err != nil {
		return err
	}
	task := rep.Task("check "+o.FromImage, 0)
	missing, err := rootfs.Missing(ctx, layers, slices.Concat(guestPrograms, []string{systemdProgram}), rootfs.Options{})
	task.Done(err)
	if err != nil {
		return fmt.Errorf("%w from image %s: %w", ErrBuild, o.FromImage, err)
	}
	if i := slices.Index(missing, systemdProgram); i >= 0 {
		rep.Note("image " + o.FromImage + " has no systemd: --init systemd will not work with it")
		missing = slices.Delete(missing, i, i+1)
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: image %s has no %s; a guest root runs containers with Podman, crun and conmon: take an image that has them, such as quay.io/podman/stable",
			ErrInput, o.FromImage, strings.Join(missing, ", no "))
	}
	top, err := rootfs.EntriesLayer("files of fcvm", guestFiles(time.Now()))
	if err != nil {
		return err
	}
	task = rep.Task("write guest root", 0)
	_, err = rootfs.BuildImage(ctx, append(slices.Clip(layers), top), disk, rootfs.Options{Progress: task.Add})
	task.Done(err)
	if err != nil {
		return fmt.Errorf("%w from image %s: %w", ErrBuild, o.FromImage, err)
	}
	return nil
}

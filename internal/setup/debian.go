package setup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/setup/preflight"
)

const (
	builderGrace = 20 * time.Second // to unmount and remove its temporary tree
	builderTail  = 12               // lines of its output that are shown when it fails
	builderPath  = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// unneededPaths are not unpacked: nobody reads them in a guest. Licences stay.
func unneededPaths() []string {
	return []string{
		"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*",
		"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
	}
}

// debianRoot builds a guest root of a distribution's packages.
type debianRoot struct {
	release release
	options RootfsOptions
	sources []aptSource // empty: the builder's default
	work    string      // directory for what is thrown away
	uid     int
	rep     progress.Reporter
}

// build writes the guest root to disk.
func (d debianRoot) build(ctx context.Context, disk *os.File) error {
	cmd, err := d.command(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = removeOutside(context.WithoutCancel(ctx), d.work) }()
	steps := &stepLog{rep: d.rep, prefix: "guest root: "}
	cmd.Stderr = steps
	err = stream(ctx, cmd, func(out io.Reader) error {
		_, err := rootfs.ConvertTar(ctx, out, guestFiles(time.Now()), disk, rootfs.Options{Progress: steps.add})
		return err
	})
	steps.done(err)
	var failed *commandError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &failed):
		return fmt.Errorf("%w (%s): %w\n%s", ErrBuild, d.options.source(d.release), err, steps.tail())
	default:
		return fmt.Errorf("%w: %w", ErrBuild, err)
	}
}

// command returns the program that writes the root as a tar archive to its
// stdout.
func (d debianRoot) command(ctx context.Context) (*exec.Cmd, error) {
	if len(d.sources) == 0 && d.options.Mirror == "" {
		if path, pkg := d.release.keyring(); !exists(path) {
			return nil, fmt.Errorf("%w: %s, the keys of %s; run: sudo apt-get install %s", ErrTool, path, d.release.family, pkg)
		}
	}
	mmdebstrap := findProgram("mmdebstrap")
	if mmdebstrap == "" && (d.uid != 0 || findProgram("debootstrap") == "") {
		hint := ""
		if findProgram("debootstrap") != "" {
			hint = " (debootstrap is there, but needs root)"
		}
		return nil, fmt.Errorf("%w: mmdebstrap, which builds the guest root%s; run: sudo apt-get install mmdebstrap uidmap, or take a container image: fcvm setup rootfs --from-image IMAGE", ErrTool, hint)
	}
	for _, c := range preflight.RootfsTools(ctx, d.uid) {
		if mmdebstrap != "" && c.Status != preflight.OK {
			return nil, lacking(c)
		}
	}
	var cmd *exec.Cmd
	if mmdebstrap != "" {
		cmd = newCommand(ctx, "/", mmdebstrap, d.mmdebstrapArgs(aptOptions(ctx))...)
	} else {
		cmd = newCommand(ctx, "/", "sh", d.debootstrapArgs()...)
	}
	cmd.Env = append(cmd.Env, "PATH="+builderPath)
	cmd.WaitDelay = builderGrace
	if d.uid == 0 {
		// What it mounts goes with its last process, even when that is
		// killed; and what it leaves is swept with the work directory.
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
		cmd.Env = append(cmd.Env, "TMPDIR="+d.work)
	} else {
		dir, err := outsideDir(d.work)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBuild, err)
		}
		cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	}
	return cmd, nil
}

// lacking is the error of a check that did not pass.
func lacking(c preflight.Check) error {
	return fmt.Errorf("%w: %s: %s; to mend it: %s", ErrTool, c.Name, c.Detail, c.Remedy)
}

func (d debianRoot) packages() string {
	return strings.Join(slices.Concat(guestPackages(), d.options.Include), ",")
}

func (d debianRoot) mmdebstrapArgs(apt []string) []string {
	mode := "unshare"
	if d.uid == 0 {
		mode = "root"
	}
	args := []string{
		"--mode=" + mode, "--variant=minbase", "--format=tar", "--include=" + d.packages(),
		"--components=" + strings.Join(d.release.components(), ","),
	}
	for _, o := range apt {
		args = append(args, "--aptopt="+o)
	}
	for _, o := range unneededPaths() {
		args = append(args, "--dpkgopt="+o)
	}
	args = append(args, d.release.suite, "-")
	if d.options.Mirror != "" {
		return append(args, d.options.Mirror) // mmdebstrap finds the keys for it
	}
	for _, s := range d.sources {
		args = append(args, s.String())
	}
	return args
}

// debootstrapArgs are those of a shell: debootstrap makes a directory, and
// only then there is something to archive. It speaks on stdout.
func (d debianRoot) debootstrapArgs() []string {
	tree := filepath.Join(d.work, "tree")
	mirror := d.options.Mirror
	if mirror == "" && len(d.sources) > 0 {
		mirror = d.sources[0].uri
	}
	args := []string{
		"-c", `tree=$1; shift; "$@" >&2 && exec tar -C "$tree" --numeric-owner --xattrs --one-file-system -c .`,
		"sh", tree,
		"debootstrap", "--variant=minbase", "--include=" + d.packages(),
		"--components=" + strings.Join(d.release.components(), ","), d.release.suite, tree,
	}
	if mirror != "" {
		args = append(args, mirror)
	}
	return args
}

// findProgram looks where an ordinary user's PATH does not lead, too.
func findProgram(name string) string {
	for _, p := range append([]string{name}, "/usr/sbin/"+name, "/sbin/"+name) {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

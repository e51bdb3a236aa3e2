package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTool: a program of the host is missing; the message names its package.
var ErrTool = errors.New("program is missing")

// Sizes of scratch disks, bytes. They are rounded up to whole MiB.
const (
	MinScratch = 16 << 20
	MaxScratch = 8 << 40 // below ext4's limit without 64-bit block numbers
	mib        = 1 << 20
)

const (
	// templateVersion changes when scratchFeatures or scratchOptions do.
	templateVersion = 1
	templateTemp    = ".new-"
	templateTries   = 20
	templateMaxAge  = time.Hour // of one that is being made
	mkfsGrace       = 5 * time.Second
)

// scratchFeatures are what a scratch disk needs, whatever the host's
// mke2fs.conf says. It has no journal and no checksums: it never outlives a
// crash of its VM, and both cost time in every guest.
const scratchFeatures = "none,extent,flex_bg,huge_file,large_file,dir_nlink,extra_isize,dir_index,filetype,sparse_super,ext_attr,uninit_bg"

// Inode tables need no zeros written in a file that is one hole. mke2fs from
// 1.47 on can be told so; an older one leaves them to the guest's kernel.
const (
	scratchOptions    = "nodiscard,root_owner=0:0,assume_storage_prezeroed=1"
	scratchOptionsOld = "nodiscard,root_owner=0:0,lazy_itable_init=1"
)

// Scratch makes an empty ext4 disk of size bytes at dst, which must not
// exist. It is a copy of a template that is made once per size, with
// mkfs.ext4, in templatesDir: a sparse file, of which both take a few hundred
// KiB. It is safe for concurrent use by several processes.
func Scratch(ctx context.Context, templatesDir string, size int64, dst string) error {
	if size < MinScratch || size > MaxScratch {
		return fmt.Errorf("make scratch disk: %d MiB is not within %d MiB and %d GiB", size/mib, MinScratch/mib, int64(MaxScratch)>>30)
	}
	size = (size + mib - 1) / mib * mib
	template := filepath.Join(templatesDir, fmt.Sprintf("v%d-%dM.ext4", templateVersion, size/mib))
	for try := 1; ; try++ {
		err := CopySparse(ctx, dst, template)
		// Somebody who cleans up may remove it again before it is copied.
		if !missing(template, err) || try == templateTries {
			return err
		}
		if err := makeTemplate(ctx, template, size); err != nil {
			return fmt.Errorf("make scratch disk: %w", noSpace(err, templatesDir))
		}
	}
}

// missing reports whether err is about the template not being there, rather
// than about the copy.
func missing(template string, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = os.Stat(template)
	return errors.Is(err, fs.ErrNotExist)
}

// makeTemplate makes a file system beside path and renames it there.
func makeTemplate(ctx context.Context, path string, size int64) (err error) {
	program, err := findMkfs()
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	sweepTemplates(dir)
	f, err := os.CreateTemp(dir, templateTemp+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	if err := (mkfs{program: program, features: scratchFeatures}).run(ctx, f.Name()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Template is a file in the directory of Scratch's templates.
type Template struct {
	Path    string
	Current bool // Scratch would take it
}

// Templates lists what Scratch has made to copy from, and what it has left
// behind. Any of it may be removed at any time: it is made again when it is
// needed. What is just being made is not listed.
func Templates(dir string) ([]Template, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(dir, templateTemp+"*"))
	if err != nil {
		return nil, err
	}
	var list []Template
	for _, p := range append(found, left...) {
		st, err := os.Lstat(p)
		if err != nil || !st.Mode().IsRegular() {
			continue // gone, or not ours
		}
		name := filepath.Base(p)
		made := strings.HasPrefix(name, fmt.Sprintf("v%d-", templateVersion))
		if strings.HasPrefix(name, templateTemp) && time.Since(st.ModTime()) < templateMaxAge {
			continue
		}
		list = append(list, Template{Path: p, Current: made})
	}
	return list, nil
}

// sweepTemplates drops what a process that was killed has left. What cannot
// be dropped now is tried again next time.
func sweepTemplates(dir string) {
	left, err := filepath.Glob(filepath.Join(dir, templateTemp+"*"))
	if err != nil {
		return
	}
	for _, p := range left {
		if st, err := os.Stat(p); err == nil && time.Since(st.ModTime()) > templateMaxAge {
			_ = os.Remove(p)
		}
	}
}

// findMkfs looks on the PATH and where an ordinary user's PATH does not lead.
func findMkfs() (string, error) {
	for _, p := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(p); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: mkfs.ext4; install the package e2fsprogs", ErrTool)
}

// mkfs is a run of mkfs.ext4.
type mkfs struct {
	program  string
	features string
	args     []string
	own      bool // files of this user's are root's on the disk, others' nobody's
}

func (m mkfs) run(ctx context.Context, path string) error {
	err := m.try(ctx, scratchOptions, path)
	if err != nil && ctx.Err() == nil && !errors.Is(err, unix.ENOSPC) {
		err = m.try(ctx, scratchOptionsOld, path)
	}
	return err
}

func (m mkfs) try(ctx context.Context, options, path string) error {
	args := append([]string{"-q", "-F", "-b", "4096", "-m", "0", "-O", m.features, "-E", options}, m.args...)
	cmd := exec.CommandContext(ctx, m.program, append(args, path)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.WaitDelay = mkfsGrace
	// A Ctrl-C on the terminal is for fcvm, which ends ctx.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if m.own {
		// In a user namespace in which this user is root.
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		msg := strings.TrimSpace(stderr.String())
		if strings.Contains(msg, "No space left") {
			err = unix.ENOSPC
		}
		return fmt.Errorf("mkfs.ext4: %w: %s", err, msg)
	}
	return nil
}

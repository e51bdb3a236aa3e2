package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/test/lab/labapi"
)

const (
	rootName    = "root.ext4" // in the cache
	payloadName = "payload.ext4"
	dataName    = "data.ext4"
	scratchName = "scratch.ext4"
	initrdName  = "initrd"
	scratchSize = 16 << 30 // bytes; a sparse file
)

// rootPackages is what the lab's root has beside Debian's minimum: what fcvm
// and its tests use of a host.
var rootPackages = []string{
	"iproute2", "nftables", "procps", "util-linux", "ca-certificates", "e2fsprogs", "kmod", "curl", "strace", "slirp4netns", "tmux",
}

// programs are those of this module that can go into the lab.
var programs = map[string]string{
	"fcvm":          "./cmd/fcvm",
	"fc-agent":      "./cmd/fc-agent",
	"vmmtest-guest": "./internal/vmm/vmmtest/guest",
	"netpeer":       "./test/e2e/network/netpeer/peer",
}

// labRoot returns the Debian root as a disk.
func labRoot(ctx context.Context, c *cache) (string, error) {
	dir, err := c.get("root", strings.Join(rootPackages, " "), func(dir string) error { return buildRoot(ctx, dir) })
	return filepath.Join(dir, rootName), err
}

func buildRoot(ctx context.Context, dir string) (err error) {
	source, suite, err := hostArchive(ctx)
	if err != nil {
		return err
	}
	disk, err := os.Create(filepath.Join(dir, rootName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	mode := "unshare"
	if os.Getuid() == 0 {
		mode = "root"
	}
	cmd, explain := command(ctx, dir, "mmdebstrap", "--mode="+mode, "--variant=minbase", "--format=tar",
		"--include="+strings.Join(rootPackages, ","), suite, "-", "-")
	cmd.Stdin = strings.NewReader(source)
	r, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w; install it with: apt-get install mmdebstrap", err)
	}
	_, err = rootfs.ConvertTar(ctx, r, nil, disk, rootfs.Options{})
	if err != nil {
		_ = cmd.Cancel()
	}
	return errors.Join(err, explain(cmd.Wait()))
}

// makeDisks makes what belongs to one run.
func (l *lab) makeDisks(ctx context.Context, work string, o options) error {
	payload := filepath.Join(work, "payload")
	if err := fillPayload(ctx, payload, work, o); err != nil {
		return err
	}
	if err := writeInitrd(filepath.Join(work, initrdName), filepath.Join(work, "guest"), l.modules); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	owner := 0
	if o.user {
		owner = labapi.UserID
	}
	if err := diskOf(ctx, filepath.Join(work, payloadName), payload, owner); err != nil {
		return err
	}
	if o.data != "" {
		l.data = true
		// What VMs and templates hold is the host's, and large.
		if err := diskOf(ctx, filepath.Join(work, dataName), o.data, owner, "vms", "scratch"); err != nil {
			return err
		}
	}
	return rootfs.Scratch(ctx, filepath.Join(work, "templates"), scratchSize, filepath.Join(work, scratchName))
}

// fillPayload puts programs, the job and its files together.
func fillPayload(ctx context.Context, dir, work string, o options) error {
	bin, wd := filepath.Join(dir, "bin"), filepath.Join(dir, "work")
	for _, d := range []string{bin, wd} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	build := map[string]string{filepath.Join(work, "guest"): "./test/lab/guest"}
	for name := range strings.SplitSeq(o.programs, ",") {
		pkg, ok := programs[name]
		if !ok {
			return fmt.Errorf("this module has no program %q", name)
		}
		build[filepath.Join(bin, name)] = pkg
	}
	if err := buildPrograms(ctx, build); err != nil {
		return err
	}
	job := labapi.Job{Args: o.job, Env: jobEnv(o), User: o.user, Data: o.data != "", Bench: o.bench, Verbose: o.verbose}
	copies := map[string]string{filepath.Join(bin, "firecracker"): o.firecracker}
	if st, err := os.Stat(o.job[0]); err == nil && st.Mode().IsRegular() {
		name := filepath.Base(o.job[0])
		copies[filepath.Join(bin, name)] = o.job[0]
		job.Args = append([]string{name}, o.job[1:]...)
	}
	for to, from := range copies {
		if err := copyFile(to, from); err != nil {
			return err
		}
	}
	for _, from := range o.copies {
		if err := copyTree(filepath.Join(wd, filepath.Base(from)), from); err != nil {
			return err
		}
	}
	b, err := json.Marshal(job)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, labapi.JobFile), b, 0o644)
}

// jobEnv is how the job finds what the lab has.
func jobEnv(o options) []string {
	env := []string{
		labapi.InsideEnv + "=1",
		// QEMU computes a CRC-32C bit by bit. A table of them, which a library makes
		// at its start, takes 20 ms by the instruction, and 1 ms without.
		"GODEBUG=cpu.sse42=off",
		"FCVM_FIRECRACKER=" + labapi.BinDir + "/firecracker",
		"FCVM_AGENT=" + labapi.BinDir + "/fc-agent",
		"FCVM_TEST_GUEST=" + labapi.BinDir + "/vmmtest-guest",
	}
	if o.data != "" {
		env = append(env, "FCVM_DATA_DIR="+labapi.DataDir, "FCVM_TEST_DATA="+labapi.DataDir)
	}
	return append(env, o.env...)
}

// buildPrograms builds packages of this module to be run anywhere.
func buildPrograms(ctx context.Context, packages map[string]string) error {
	mod, err := output(ctx, "", "go", "env", "GOMOD")
	if err != nil {
		return err
	}
	for path, pkg := range packages {
		cmd, explain := command(ctx, filepath.Dir(string(mod)), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
		if err := cmd.Run(); err != nil {
			return explain(err)
		}
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func copyTree(to, from string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return copyFile(to, from)
	}
	return os.CopyFS(to, os.DirFS(from))
}

// diskOf makes a disk of a directory, without what lies at skip; all of it
// belongs to owner.
func diskOf(ctx context.Context, path, dir string, owner int, skip ...string) (err error) {
	disk, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	layer := rootfs.Layer{Name: dir, Open: func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { _ = w.CloseWithError(archive(w, dir, owner, skip)) }()
		return r, nil
	}}
	if _, err := rootfs.BuildImage(ctx, []rootfs.Layer{layer}, disk, rootfs.Options{}); err != nil {
		return fmt.Errorf("make a disk of %s: %w", dir, err)
	}
	return nil
}

// archive writes dir as a tar archive.
func archive(to io.Writer, dir string, owner int, skip []string) error {
	w := tar.NewWriter(to)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		for _, s := range skip {
			if name == s {
				return fs.SkipDir
			}
		}
		return archiveEntry(w, path, name, owner, d)
	})
	return errors.Join(err, w.Close())
}

func archiveEntry(w *tar.Writer, path, name string, owner int, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	target := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	case !info.Mode().IsRegular() && !info.IsDir():
		return nil // sockets
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	// PAX keeps times to the nanosecond, by which fcvm knows its artifacts.
	h.Name, h.Format, h.Uid, h.Gid, h.Uname, h.Gname = name, tar.FormatPAX, owner, owner, "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.Copy(w, f)
	return err
}

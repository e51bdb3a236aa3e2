package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// minQEMU is the oldest QEMU that emulates AMD's nested paging well enough:
// 7.2 hangs.
const minQEMU = 10

// qemu is a program and what it needs to run from where it was unpacked.
type qemu struct {
	path string
	libs string // LD_LIBRARY_PATH; empty: the host's own
	data []string
}

// findQEMU returns the one that is asked for, or the host's if it is new
// enough, or one from the distribution's packages.
func findQEMU(ctx context.Context, c *cache, path string) (qemu, error) {
	if path != "" {
		q := qemu{path: path}
		return q, q.check(ctx)
	}
	if p, err := exec.LookPath("qemu-system-x86_64"); err == nil {
		if q := (qemu{path: p}); q.check(ctx) == nil {
			return q, nil
		}
	}
	dir, err := c.get("qemu", "1", func(dir string) error { return fetchQEMU(ctx, dir) })
	if err != nil {
		return qemu{}, fmt.Errorf("%w\n(or give QEMU %d or newer with -qemu)", err, minQEMU)
	}
	q := unpackedQEMU(dir)
	return q, q.check(ctx)
}

func unpackedQEMU(dir string) qemu {
	usr := filepath.Join(dir, "usr")
	return qemu{
		path: filepath.Join(usr, "bin", "qemu-system-x86_64"),
		libs: strings.Join([]string{
			filepath.Join(usr, "lib", "x86_64-linux-gnu"), filepath.Join(dir, "lib", "x86_64-linux-gnu"),
		}, ":"),
		data: []string{filepath.Join(usr, "share", "qemu"), filepath.Join(usr, "share", "seabios")},
	}
}

// fetchQEMU unpacks QEMU and those of the libraries that the host lacks.
func fetchQEMU(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp(dir, "apt-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	a, err := privateApt(ctx, work)
	if err != nil {
		return err
	}
	install := "qemu-system-x86"
	if a.suite == "bookworm" {
		install += "/bookworm-backports"
	}
	packages, err := a.plan(ctx, "/var/lib/dpkg/status", install)
	if err != nil {
		return err
	}
	if err := a.unpack(ctx, dir, packages); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "usr", "share", "doc")); err != nil {
		return err
	}
	return unpackedQEMU(dir).check(ctx)
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.\d+`)

func (q qemu) check(ctx context.Context) error {
	cmd, explain := command(ctx, "/", q.path, "--version")
	cmd.Env = q.env()
	out, err := cmd.Output()
	if err != nil {
		return explain(err)
	}
	m := qemuVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("%s --version says %.40q", q.path, out)
	}
	if major, err := strconv.Atoi(string(m[1])); err != nil || major < minQEMU {
		return fmt.Errorf("%s is QEMU %s; the lab needs %d or newer", q.path, m[1], minQEMU)
	}
	return nil
}

func (q qemu) env() []string {
	env := []string{"PATH=/usr/bin:/bin"}
	if q.libs != "" {
		env = append(env, "LD_LIBRARY_PATH="+q.libs)
	}
	return env
}

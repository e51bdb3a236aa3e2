package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// minQEMU is the oldest QEMU that the lab is tried with: 7.2 hangs. None is
// perfect: 10.0.2 and 10.0.13 were seen to reset a guest in mid-run, and these
// and 11.1.3 to kill the lab's own kernel between VMRUN and VMLOAD.
//
// One cause is known. VMRUN with an interrupt to inject (helper_vmrun, in
// target/i386/tcg/system/svm_helper.c) leaves its vector in the CPU's
// exception_index. A CPU that is asked to leave its guest before the next
// #VMEXIT then delivers that interrupt once more, whether the guest takes
// interrupts or not. With exception_index left at -1 there, two guests of
// two booted on one emulating thread (-accel tcg,thread=single), which asks all
// the time; without, none did, of the same build of 10.0.13. Threads of their
// own for the CPUs, the default, make it rare. The copy that the lab fetches for
// itself is mended (vmrunFault); what a host has, or is given by -qemu, is not.
var minQEMU = version{10, 0, 13}

// version is major, minor and micro.
type version [3]int

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// qemu is a program, and what it needs to run from where it was unpacked.
type qemu struct {
	command []string // with the dynamic loader in front of an unpacked one
	data    []string
}

// findQEMU returns the one that is asked for, or the host's if it is new
// enough, or one from the distribution's packages.
func findQEMU(ctx context.Context, c *cache, path string) (qemu, error) {
	if path != "" {
		q := qemu{command: []string{path}}
		return q, q.check(ctx)
	}
	if p, err := exec.LookPath("qemu-system-x86_64"); err == nil {
		if q := (qemu{command: []string{p}}); q.check(ctx) == nil {
			return q, nil
		}
	}
	dir, err := c.get("qemu", minQEMU.String()+" mended", func(dir string) error { return fetchQEMU(ctx, dir) })
	if err != nil {
		return qemu{}, fmt.Errorf("%w\n(or give QEMU %s or newer with -qemu)", err, minQEMU)
	}
	q := unpackedQEMU(dir)
	return q, q.check(ctx)
}

func (q qemu) program() string { return q.command[len(q.command)-1] }

func unpackedQEMU(dir string) qemu {
	usr := filepath.Join(dir, "usr")
	libs := filepath.Join(usr, "lib", "x86_64-linux-gnu")
	return qemu{
		command: []string{
			filepath.Join(libs, "ld-linux-x86-64.so.2"), "--library-path", libs,
			filepath.Join(usr, "bin", "qemu-system-x86_64"),
		},
		data: []string{filepath.Join(usr, "share", "qemu"), filepath.Join(usr, "share", "seabios")},
	}
}

// fetchQEMU unpacks QEMU and all that it is linked with, down to the C library:
// it may come from a later release of the distribution than the host is.
func fetchQEMU(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp(dir, "apt-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	a, err := privateApt(ctx, work, true)
	if err != nil {
		return err
	}
	packages, err := a.plan(ctx, "qemu-system-x86")
	if err != nil {
		return err
	}
	if err := a.unpack(ctx, dir, packages); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "usr", "share", "doc")); err != nil {
		return err
	}
	q := unpackedQEMU(dir)
	mended, err := vmrunFault.apply(q.program())
	if err != nil {
		return err
	}
	if !mended {
		fmt.Fprintf(os.Stderr, "lab: %s is another build than the one that can be mended: it will lose guests\n", q.program())
	}
	return q.check(ctx)
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)\.(\d+)`)

func (q qemu) check(ctx context.Context) error {
	cmd, explain := command(ctx, "/", q.command[0], append(q.command[1:len(q.command):len(q.command)], "--version")...)
	out, err := cmd.Output()
	if err != nil {
		return explain(err)
	}
	program := q.program()
	m := qemuVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("%s --version says %.40q", program, out)
	}
	var v version
	for i := range v {
		if v[i], err = strconv.Atoi(string(m[i+1])); err != nil {
			return fmt.Errorf("%s --version says %.40q", program, out)
		}
	}
	if slices.Compare(v[:], minQEMU[:]) < 0 {
		return fmt.Errorf("%s is QEMU %s; the lab needs %s or newer", program, v, minQEMU)
	}
	return nil
}

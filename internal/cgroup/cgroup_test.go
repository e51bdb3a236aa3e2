package cgroup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = time.Minute

// helperArg makes the test's own program one that takes memory: BYTES are
// written to, and then it waits for its stdin to end.
const helperArg = "take-memory"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == helperArg {
		b := bytes.Repeat([]byte{1}, helperMemory)
		_, _ = os.Stdout.WriteString("taken\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		_, _ = os.Stdout.Write(b[:1])
		return
	}
	os.Exit(m.Run())
}

const helperMemory = 96 << 20

// need skips a test where there are no groups to be had. FCVM_TEST_CGROUP says
// by whom they must be had.
func need(t *testing.T, id string, l Limits) *Group {
	t.Helper()
	g, err := Open(t.Context(), id, l, nil)
	want := os.Getenv("FCVM_TEST_CGROUP")
	if errors.Is(err, ErrNone) && want == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if want != "" && g.By() != want {
		t.Fatalf("the group is made by %s, want %s", g.By(), want)
	}
	return g
}

// start starts the helper in the group.
func start(t *testing.T, g *Group) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", helperArg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if f := g.File(); f != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := g.Adopt(t.Context(), cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return cmd, in
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func isGone(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

func TestGroup(t *testing.T) {
	g := need(t, "0123456789ab", Limits{Memory: 256 << 20, CPUs: 3, IOWeight: 150})
	cmd, _ := start(t, g)
	t.Logf("%s", g)
	for file, want := range map[string]string{
		"memory.max": "268435456", "cpu.max": "300000 100000", "io.weight": "default 150", "memory.oom.group": "1",
	} {
		controller, _, _ := strings.Cut(file, ".")
		if slices.ContainsFunc(g.Missing(), func(m string) bool { return strings.Contains(m, controller) }) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(g.Dir(), file))
		if errors.Is(err, os.ErrNotExist) && controller == "io" || g.By() == BySystemd && file == "memory.oom.group" {
			continue // not in this kernel; systemd decides
		}
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
	if own, err := hostFS().groupOf(cmd.Process.Pid); err != nil || filepath.Base(own) != filepath.Base(g.Dir()) {
		t.Errorf("the process is in %s, %v", own, err)
	}
	if g.OutOfMemory() {
		t.Error("out of memory")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Close(ctx); err != nil {
		t.Error(err)
	}
	isGone(t, g.Dir())
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("what was in the group ended with %v", err)
	}
	if err := g.Close(ctx); err != nil { // once more
		t.Error(err)
	}
}

// A group is made again under its name as soon as it is closed.
func TestAgain(t *testing.T) {
	for range 5 {
		g := need(t, "aaaaaaaaaaaa", Limits{Memory: 256 << 20})
		start(t, g)
		if err := g.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		isGone(t, g.Dir())
	}
}

// The owner dies, and somebody else removes its group.
func TestRemove(t *testing.T) {
	const id = "bbbbbbbbbbbb"
	g := need(t, id, Limits{Memory: 256 << 20})
	cmd, _ := start(t, g)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 { // the second time it is gone already
		if err := Remove(ctx, g.Dir(), id); err != nil {
			t.Error(err)
		}
		isGone(t, g.Dir())
	}
	if cmd.Wait() == nil {
		t.Error("what was in it lived on")
	}
}

// A link in a VM's directory leads nowhere but to that VM's group.
func TestRemoveOthers(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"/", "", dir, filepath.Join(dir, "fcvm-000000000000"), "fcvm-bbbbbbbbbbbb", "/sys/fs/cgroup"} {
		if err := Remove(t.Context(), path, "bbbbbbbbbbbb"); !errors.Is(err, ErrForeign) {
			t.Errorf("%q was taken for a VM's group", path)
		}
	}
	kept := filepath.Join(dir, "fcvm-bbbbbbbbbbbb") // of the right name, and no group
	if err := os.Mkdir(kept, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), kept, "bbbbbbbbbbbb"); err == nil {
		t.Error("a directory that is no group was taken for one")
	}
}

func TestMemoryLimit(t *testing.T) {
	g := need(t, "cccccccccccc", Limits{Memory: helperMemory / 2})
	cmd := exec.Command("/proc/self/exe", helperArg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if f := g.File(); f != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	} else {
		t.Skip("by systemd a process is there before its group")
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || !g.OutOfMemory() {
		t.Errorf("with half the memory that it needs it ended with %v; out of memory: %v", err, g.OutOfMemory())
	}
}

func TestIORate(t *testing.T) {
	d, err := DeviceOf(os.TempDir())
	if err != nil {
		t.Skip(err)
	}
	g := need(t, "dddddddddddd", Limits{Memory: 256 << 20, IORate: 10 << 20, Device: d})
	start(t, g)
	if len(g.Missing()) > 0 {
		t.Skip(g.Missing())
	}
	if got := read(t, filepath.Join(g.Dir(), "io.max")); !strings.HasPrefix(got, d.Number+" rbps=10485760 wbps=10485760") {
		t.Errorf("io.max is %q, the disk is %+v", got, d)
	}
}

// fakeHost is what kinds of hosts show.
func fakeHost(t *testing.T, groups, mounts string) host {
	t.Helper()
	dir := t.TempDir()
	self := filepath.Join(dir, "self")
	if err := os.Mkdir(self, 0o755); err != nil {
		t.Fatal(err)
	}
	pid := filepath.Join(dir, strconv.Itoa(os.Getpid()))
	if err := os.Symlink("self", pid); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cgroup": groups, "mountinfo": strings.ReplaceAll(mounts, "ROOT", dir)} {
		if err := os.WriteFile(filepath.Join(self, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte("cpuset cpu io memory pids\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return host{proc: dir, run: filepath.Join(dir, "run"), uid: 1000, env: func(string) string { return "" }}
}

const unified = "30 23 0:26 / ROOT rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

func TestHosts(t *testing.T) {
	for name, tc := range map[string]struct {
		groups, mounts string
		want           string // of the error; or "own " and the group
	}{
		"unified":     {"0::/user.slice/x\n", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + unified, "own /user.slice/x"},
		"v1":          {"4:memory:/\n1:cpu:/\n", "", "cgroup v1 only"},
		"not mounted": {"0::/\n", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "not mounted"},
		"a part":      {"0::/x\n", strings.Replace(unified, " / ROOT", " /docker/1 ROOT", 1), "not mounted"},
		"hidden":      {"0::/../../x\n", unified, "out of sight"},
		"garbage":     {"0:\n\x00", "- cgroup2\n", "cgroup v1 only"},
	} {
		t.Run(name, func(t *testing.T) {
			h := fakeHost(t, tc.groups, tc.mounts)
			tr, err := h.tree()
			if own, ok := strings.CutPrefix(tc.want, "own "); ok {
				if err != nil || tr.own != filepath.Join(h.proc, own) {
					t.Errorf("%+v, %v", tr, err)
				}
				return
			}
			if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v; want %q", err, tc.want)
			}
		})
	}
	h := fakeHost(t, "0::/\n", unified)
	if err := os.WriteFile(filepath.Join(h.proc, "cgroup.controllers"), []byte("hugetlb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.tree(); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "cgroup v1: boot it with") {
		t.Errorf("a hybrid host: %v", err)
	}
}

// Where systemd runs and does not answer, and nothing is delegated, the error
// says both.
func TestNothingToBeHad(t *testing.T) {
	h := fakeHost(t, "0::/session\n", unified)
	if err := os.MkdirAll(filepath.Join(h.run, "systemd", "system"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := h.open(t.Context(), "0123456789ab", Limits{}, nil)
	if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "systemd does not answer") || !strings.Contains(err.Error(), "Delegate=yes") {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	h := host{run: "/run", uid: 0}
	if a := h.addresses(); len(a) != 2 || a[1].address != "unix:path=/run/systemd/private" || a[1].bus {
		t.Errorf("root: %+v", a)
	}
	h = host{run: "/run", uid: 7, env: func(k string) string {
		return map[string]string{"DBUS_SESSION_BUS_ADDRESS": "unix:path=/x", "XDG_RUNTIME_DIR": "relative"}[k]
	}}
	if a := h.addresses(); len(a) != 3 || a[0].address != "unix:path=/x" || a[1].address != "unix:path=/run/user/7/bus" {
		t.Errorf("user: %+v", a)
	}
}

func TestWholeDisk(t *testing.T) {
	sys := t.TempDir()
	disk := filepath.Join(sys, "devices", "sda")
	part := filepath.Join(disk, "sda1")
	if err := os.MkdirAll(part, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{filepath.Join(disk, "dev"): "8:0\n", filepath.Join(part, "partition"): "1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(sys, "dev", "block"), 0o755); err != nil {
		t.Fatal(err)
	}
	for number, dir := range map[string]string{"8:0": disk, "8:1": part} {
		if err := os.Symlink(dir, filepath.Join(sys, "dev", "block", number)); err != nil {
			t.Fatal(err)
		}
		if got, err := wholeDisk(sys, number); err != nil || got != "8:0" {
			t.Errorf("%s: %q, %v", number, got, err)
		}
	}
	if _, err := deviceOf(sys, "/proc/self"); err == nil || !strings.Contains(err.Error(), "not on one disk") {
		t.Errorf("/proc: %v", err)
	}
	if _, err := deviceOf(sys, filepath.Join(sys, "nothing")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file that is not there: %v", err)
	}
}

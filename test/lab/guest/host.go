package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/test/lab/labapi"
)

const (
	scratch = "/scratch"
	newRoot = "/newroot"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

func mountAll(ms []mount) error {
	for _, m := range ms {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

var early = []mount{
	{"devtmpfs", "/dev", "devtmpfs", 0, ""},
	{"proc", "/proc", "proc", 0, ""},
	{"sysfs", "/sys", "sysfs", 0, ""},
}

// late is mounted on the new root, whose /dev, /proc and /sys are new ones.
var late = []mount{
	{"devtmpfs", "/dev", "devtmpfs", 0, ""},
	{"devpts", "/dev/pts", "devpts", 0, "mode=0620,gid=5,ptmxmode=0666"},
	{"tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777"},
	{"proc", "/proc", "proc", 0, ""},
	{"sysfs", "/sys", "sysfs", 0, ""},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
	{"tmpfs", "/run", "tmpfs", 0, "mode=0755"},
}

// slower is how many times as long a change of tasks takes on the emulated CPU, which
// forgets all translations of addresses in each: 50 µs between two processes at the
// ends of pipes, where it was 3 µs on the CPU that emulates it.
const slower = 20

// slices is the scheduler's times, nanoseconds, as Linux 6.1 has them for one CPU.
var slices = map[string]int{"latency_ns": 6_000_000, "min_granularity_ns": 750_000, "wakeup_granularity_ns": 1_000_000}

// lengthenSlices has the scheduler change tasks as seldom as on a CPU that is not
// emulated, for as much of what gets done: with times that are meant for such a CPU,
// one that several VMs share is busy with the changes. It is for benchmarks.
func lengthenSlices() error {
	const debug = "/sys/kernel/debug"
	if err := (mount{"debugfs", debug, "debugfs", 0, ""}).do(); err != nil {
		return err
	}
	for name, ns := range slices {
		if err := os.WriteFile(filepath.Join(debug, "sched", name), []byte(strconv.Itoa(slower*ns)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// layer mounts a read-only disk at target, with a writable layer on the
// scratch disk.
func layer(disk int, target string) error {
	name := fmt.Sprintf("vd%c", 'a'+disk)
	lower := filepath.Join("/lower", name)
	if err := wait(func() error { return mount{"/dev/" + name, lower, "ext4", unix.MS_RDONLY, ""}.do() }); err != nil {
		return err
	}
	upper, work := filepath.Join(scratch, name, "upper"), filepath.Join(scratch, name, "work")
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return err
	}
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// The top of the overlay belongs to whom the top of the disk belongs.
	if err := errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), os.Chmod(upper, os.FileMode(st.Mode&0o777))); err != nil {
		return err
	}
	return mount{"overlay", target, "overlay", 0, "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work}.do()
}

// mountDisks puts the machine's root together and goes there.
func mountDisks() error {
	dev := fmt.Sprintf("/dev/vd%c", 'a'+labapi.DiskScratch)
	if err := wait(func() error { return mount{dev, scratch, "ext4", unix.MS_NOATIME, ""}.do() }); err != nil {
		return err
	}
	if err := layer(labapi.DiskRoot, newRoot); err != nil {
		return err
	}
	if err := layer(labapi.DiskPayload, newRoot+labapi.PayloadDir); err != nil {
		return err
	}
	if _, err := os.Stat(fmt.Sprintf("/dev/vd%c", 'a'+labapi.DiskData)); err == nil {
		if err := layer(labapi.DiskData, newRoot+labapi.DataDir); err != nil {
			return err
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	return mountAll(late)
}

// prepareHost does what an installed system has done when a user logs in.
func prepareHost() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for path, content := range map[string]string{
		"/etc/hostname":    "lab\n",
		"/etc/hosts":       "127.0.0.1 localhost lab\n::1 localhost\n",
		"/etc/resolv.conf": "nameserver 127.0.0.1\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return err
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, dev := range []string{"/dev/kvm", "/dev/net/tun", "/dev/fuse"} {
		if err := os.Chmod(dev, 0o666); err != nil {
			return fmt.Errorf("the lab is no KVM host: %w", err)
		}
	}
	return delegateControllers()
}

// delegateControllers lets the root cgroup's children have limits.
func delegateControllers() error {
	const root = "/sys/fs/cgroup"
	b, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return err
	}
	var on strings.Builder
	for _, c := range strings.Fields(string(b)) {
		fmt.Fprintf(&on, "+%s ", c)
	}
	return os.WriteFile(root+"/cgroup.subtree_control", []byte(on.String()), 0o644)
}

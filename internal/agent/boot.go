package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

const (
	modulesDir  = "/lib/modules"
	bootList    = modulesDir + "/boot.list"  // what /init needs first
	extraList   = modulesDir + "/extra.list" // what can wait
	newRoot     = "/newroot"
	diskTimeout = 30 * time.Second
)

// boot is /init of the initramfs. It does not return: process 1 must not end.
func boot() {
	err := earlyMounts()
	p := parseParams(readFile("/proc/cmdline"))
	spawn := newSpawner(true)
	a := newAgent(p, spawn)
	if err == nil {
		err = loadModules(bootList)
	}
	if err == nil && p.init == initSystemd {
		err = bootSystemd() // returns only when it failed
	}
	// From here on this process stays process 1. It serves at once, so that
	// whoever waits outside learns how far it gets, and why not further.
	go func() { a.fatal(a.listenAndServe()) }()
	go func() {
		if err == nil && p.init != initSystemd {
			err = a.bootHere()
		}
		if err != nil {
			a.log.Error("boot the guest", "error", err)
			a.state.fail(err)
			return
		}
		a.prepare()
	}()
	select {}
}

// bootHere makes the guest root that of this process.
func (a *agent) bootHere() error {
	var err error
	if a.extra, err = readModules(extraList); err != nil {
		return err
	}
	if err := a.loadNow(alwaysModules...); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	return lateMounts()
}

// bootSystemd hands process 1 over to systemd, whose fc-agent.service goes on.
func bootSystemd() error {
	if err := loadModules(extraList); err != nil {
		return err
	}
	if err := copySelf(); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	const systemd = "/lib/systemd/systemd"
	err := unix.Exec(systemd, []string{systemd}, []string{"PATH=" + guestPath})
	return fmt.Errorf("start systemd: %w", err)
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s on %s (%s): %w", m.source, m.target, m.fstype, err)
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

const nodevNosuid = unix.MS_NOSUID | unix.MS_NODEV

func earlyMounts() error {
	return mountAll([]mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", "proc", nodevNosuid | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", nodevNosuid | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", "tmpfs", nodevNosuid, "mode=0755"},
	})
}

// lateMounts is what systemd would mount.
func lateMounts() error {
	if err := mountAll([]mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", nodevNosuid, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", nodevNosuid | unix.MS_NOEXEC, ""},
		{"tmpfs", "/tmp", "tmpfs", nodevNosuid, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", nodevNosuid | unix.MS_NOEXEC, ""},
	}); err != nil {
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
	return delegateControllers()
}

// delegateControllers lets the root cgroup's children have limits.
func delegateControllers() error {
	const root = "/sys/fs/cgroup"
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	var on strings.Builder
	for _, c := range strings.Fields(string(b)) {
		fmt.Fprintf(&on, "+%s ", c)
	}
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte(on.String()), 0o644); err != nil {
		return fmt.Errorf("delegate cgroup controllers: %w", err)
	}
	return nil
}

// switchRoot lays the scratch disk over the guest root and makes that the
// root of this process. The image's disk and the scratch disk stay reachable
// under runDir.
func switchRoot() error {
	const lower = "/lower"
	for i, d := range []mount{
		agentapi.DiskRoot:    {target: lower, fstype: "ext4", flags: unix.MS_RDONLY},
		agentapi.DiskImage:   {target: imageMount, fstype: "ext4", flags: unix.MS_RDONLY},
		agentapi.DiskScratch: {target: scratchDir, fstype: "ext4", flags: unix.MS_NOATIME, data: "nobarrier"},
	} {
		d.source = fmt.Sprintf("/dev/vd%c", 'a'+i)
		if err := waitFor(d.source); err != nil {
			return err
		}
		if err := d.do(); err != nil {
			return err
		}
	}
	upper, work := scratchDir+"/root/upper", scratchDir+"/root/work"
	storage, state := scratchDir+"/containers", scratchDir+"/containers-run"
	for _, dir := range []string{upper, work, storage, state} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("prepare the scratch disk: %w", err)
		}
	}
	// Podman's storage lies on the scratch disk itself: an overlay cannot be
	// the upper layer of an overlay. So does its state: what a container
	// writes to its root is kept there, and is not to fill the memory.
	if err := mountAll([]mount{
		{"overlay", newRoot, "overlay", 0, "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work},
		{storage, newRoot + "/var/lib/containers", "", unix.MS_BIND, ""},
		{state, "/run/containers", "", unix.MS_BIND, ""},
	}); err != nil {
		return err
	}
	// What the initramfs held is memory: nothing reaches it from here on.
	for _, path := range []string{"/init", modulesDir} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("free the initramfs: %w", err)
		}
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := os.MkdirAll(newRoot+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	return unix.Chdir("/")
}

// waitFor waits for a device that the kernel finds on its own time.
func waitFor(path string) error {
	deadline := time.Now().Add(diskTimeout)
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no disk %s after %s", path, diskTimeout)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// copySelf puts the agent where systemd's service finds it.
func copySelf() error {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("copy the agent: %w", err)
	}
	defer func() { _ = in.Close() }()
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("copy the agent: %w", err)
	}
	out, err := os.OpenFile(selfPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return fmt.Errorf("copy the agent: %w", err)
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy the agent: %w", err)
	}
	return nil
}

// powerOff ends the VM in the way that ends both VMMs at once: Firecracker
// has no power button, but exits when the guest resets (reboot=k), and QEMU
// runs with -no-reboot.
func powerOff() {
	unix.Sync()
	freezeDisks()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		slog.Error("power off", "error", err)
	}
}

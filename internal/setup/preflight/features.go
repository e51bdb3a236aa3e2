package preflight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

func checkTun(uid int) Check {
	const dev = "/dev/net/tun"
	c := Check{Name: "tun", Status: OK, Detail: dev + " opens"}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
		return c
	}
	c.Status = Warn
	c.Detail = fmt.Sprintf("%v: Firecracker VMs get no network", err)
	switch {
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		c.Remedy = "sudo chmod 0666 " + dev
	case uid == 0:
		c.Remedy = "modprobe tun; mkdir -p /dev/net; mknod -m 0666 " + dev + " c 10 200"
	default:
		c.Remedy = "sudo modprobe tun"
	}
	return c
}

// checkUserNamespaces really makes one, with what an ordinary user's VM lives
// in. That the child may then make namespaces of its own shows that it has
// the capabilities: AppArmor lets a process make a user namespace and takes
// them away in it.
func checkUserNamespaces(ctx context.Context, uid int) Check {
	c := Check{Name: "user namespaces", Status: OK, Detail: "work"}
	err := tryUserNamespace(ctx)
	if err == nil {
		return c
	}
	c.Status = Warn
	c.Detail = fmt.Sprintf("cannot be used (%v)", err)
	if uid == 0 {
		c.Detail += "; root does not need them"
	} else {
		c.Detail += ": an ordinary user's Firecracker VMs get no network, and no guest root can be built"
	}
	c.Remedy = userNamespaceRemedy(sysctl)
	return c
}

func tryUserNamespace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "true")
	cmd.WaitDelay = probeTimeout
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER,
		Unshareflags:               syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		GidMappingsEnableSetgroups: false,
	}
	err := cmd.Run()
	// Go reports what failed in the child as a failure to start "true".
	var perr *os.PathError
	if errors.As(err, &perr) {
		return perr.Err
	}
	return err
}

// userNamespaceRemedy names the switch that keeps user namespaces off: Debian
// had one of its own, Ubuntu uses AppArmor, every kernel has a limit.
func userNamespaceRemedy(sysctl func(name string) string) string {
	switch {
	case sysctl("kernel.unprivileged_userns_clone") == "0":
		return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1":
		return "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for fcvm that has \"userns,\""
	case sysctl("user.max_user_namespaces") == "0":
		return "sudo sysctl -w user.max_user_namespaces=15000"
	default:
		return "allow user namespaces (in a container: a seccomp profile that lets unshare and clone pass), or run fcvm as root"
	}
}

// sysctl returns a kernel setting, "" where there is none.
func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// checkNftables asks the kernel for its tables. Only root may, and only the
// bridge network, which needs root, uses them.
func checkNftables(uid int) Check {
	c := Check{Name: "nftables", Status: OK}
	if uid != 0 {
		c.Detail = "not needed: only the bridge network uses it, as root"
		return c
	}
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTables()
	}
	if err != nil {
		c.Status = Warn
		c.Detail = fmt.Sprintf("the kernel's tables cannot be read (%v): no bridge network", err)
		c.Remedy = "modprobe nf_tables nft_chain_nat nft_masq, or use another network: --network usernet"
		return c
	}
	c.Detail = "works"
	return c
}

// checkUserfaultfd tries what a VMM does: the device first, then the system
// call, without the restriction to faults from user mode, since KVM's faults
// come from the kernel.
func checkUserfaultfd() Check {
	const dev = "/dev/userfaultfd"
	c := Check{Name: "userfaultfd", Status: OK}
	if f, err := os.OpenFile(dev, os.O_RDWR, 0); err == nil {
		_ = f.Close()
		c.Detail = dev + " opens"
		return c
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno == 0 {
		_ = unix.Close(int(fd))
		c.Detail = "the system call works"
		return c
	}
	c.Status = Warn
	c.Detail = fmt.Sprintf("neither %s nor the system call may be used (%v): no memory-server; clones from files work", dev, errno)
	c.Remedy = "sudo sysctl -w vm.unprivileged_userfaultfd=1"
	if errors.Is(errno, unix.ENOSYS) {
		c.Remedy = "use a host kernel with CONFIG_USERFAULTFD"
	}
	return c
}

package agent

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNamespaces runs a test again, in a child that is root of a network, hostname
// and mounts of its own, where /etc, /run and /var/lib/dbus are empty. It
// reports whether this is the child; what the child says is the test's result.
func inNamespaces(t *testing.T) bool {
	t.Helper()
	const mark = "FCVM_TEST_NAMESPACES"
	if os.Getenv(mark) != "" {
		prepareNamespaces(t)
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		t.Logf("%s", out)
	case cmd.ProcessState == nil:
		t.Skipf("no user namespace to be had: %v", err)
	default:
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

func prepareNamespaces(t *testing.T) {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/etc", "/run", "/var/lib/dbus"} {
		err := unix.Mount("tmpfs", dir, "tmpfs", 0, "")
		if err != nil && (dir != "/var/lib/dbus" || !os.IsNotExist(err)) {
			t.Fatalf("mount on %s: %v", dir, err)
		}
	}
	if err := linkUp("lo"); err != nil {
		t.Fatal(err)
	}
}

// newLink makes eth0, and peer0 as its other end.
func newLink(t *testing.T) {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 9000}, PeerName: "peer0", PeerMTU: 9000}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"eth0", "peer0"} {
		if err := linkUp(name); err != nil {
			t.Fatal(err)
		}
	}
}

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantText(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", path, b, err, want)
	}
}

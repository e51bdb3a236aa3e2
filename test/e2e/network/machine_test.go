package network

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/test/e2e/network/netpeer"
	"github.com/fcvm/fcvm/test/images"
	"github.com/fcvm/fcvm/test/lab/labapi"
)

// peerPort is what guests serve, of TCP and UDP.
const peerPort = "7000"

// userID is the ordinary user's.
const userID = 1000

// account is who runs fcvm on the scratch host.
type account struct {
	user bool     // not root
	dir  string   // of its own data, as newAccount makes it; empty: the data that the tests have
	env  []string // NAME=VALUE

	namespaceless bool // a user to whom user namespaces are forbidden
}

// newAccount makes an account whose data are its own, with the kernel and the
// guest root that are there.
func newAccount(t testing.TB, user bool) account {
	t.Helper()
	a := account{user: user, dir: t.TempDir()}
	a.env = []string{"FCVM_DATA_DIR=" + a.dir, "FCVM_RUNTIME_DIR=" + filepath.Join(a.dir, "run")}
	for _, name := range []string{"kernels", "roots", "setup.json"} {
		if err := os.Symlink(filepath.Join(os.Getenv(envData), name), filepath.Join(a.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// forbidNamespaces runs a command that can make no user namespace
// (namespaces(7), user_namespaces(7)), and has no capability for more than that.
const forbidNamespaces = `echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all "$@"`

// try runs fcvm to its end.
func (a account) try(t testing.TB, args ...string) (string, error) {
	t.Helper()
	// A test's own context is over when its clean-up runs.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), commandTimeout)
	defer cancel()
	cmd := fcvmCommand(ctx, args...)
	cmd.Env = append(cmd.Env, a.env...)
	if a.user {
		// In a user namespace of its own a process is nobody in particular, and
		// yet the owner of what this one owns.
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: userID, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: userID, HostID: os.Getegid(), Size: 1}},
		}
	}
	if a.namespaceless {
		cmd.Path = "/bin/sh"
		cmd.Args = slices.Concat([]string{"sh", "-c", forbidNamespaces, "sh"}, cmd.Args)
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_RESOURCE}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("fcvm %q: %w\n%s", args, err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func (a account) run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := a.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// peerImage is an image whose container is the peer.
func peerImage(t testing.TB) string {
	t.Helper()
	return "oci-archive:" + images.Scratch(t, images.Config{Program: os.Getenv(envPeer), Entrypoint: []string{"/program"}})
}

// machine is a VM that serves peerPort.
type machine struct {
	account
	name string
}

// start starts a VM in the background, until the test's end.
func (a account) start(t testing.TB, image, backend, name string, flags ...string) *machine {
	t.Helper()
	m := &machine{a, name}
	args := slices.Concat([]string{
		"run", "-d", "--vmm", os.Getenv(envDriver), "--network", backend, "--name", name,
		"--wait-ready", "tcp=" + peerPort,
	}, flags, labapi.OneCPU(), []string{image, "serve", peerPort, name})
	began := time.Now()
	_, err := a.try(t, args...)
	for tries := 1; err != nil && labapi.Inside() && tries < labapi.Starts; tries++ {
		t.Logf("not up in the lab, which resets a guest in three or four: %v", err)
		_, _ = a.try(t, "rm", "-f", name)
		_, err = a.try(t, args...)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s is up after %s", name, time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		if t.Failed() {
			if out, err := a.try(t, "logs", "--console", "--tail", "30", name); err == nil {
				t.Logf("the console of %s:\n%s", name, out)
			}
		}
		_, _ = a.try(t, "rm", "-f", name) // it may be gone
	})
	return m
}

// call makes the guest call a server.
func (m *machine) call(t testing.TB, what, addr string, sizes ...int) string {
	t.Helper()
	out, err := m.tryCall(t, what, addr, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (m *machine) tryCall(t testing.TB, what, addr string, sizes ...int) (string, error) {
	t.Helper()
	args := []string{"exec", m.name, "/program", what, addr}
	for _, s := range sizes {
		args = append(args, fmt.Sprint(s))
	}
	return m.try(t, args...)
}

// port is the host's port for the guest's, as "7000/udp".
func (m *machine) port(t testing.TB, guest string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(strings.Split(m.run(t, "port", m.name, guest), "\n")[0])
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// dialHost connects from the host itself.
func dialHost(network, addr string) netpeer.Dial {
	return func() (net.Conn, error) { return net.DialTimeout(network, addr, dialTimeout) }
}

const dialTimeout = 30 * time.Second

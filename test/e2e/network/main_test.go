// Package network tries every network with whole VMs, on every driver: what
// package nettest tries without one. It runs on the scratch host of that
// package, so that bridges and rules are not those of this machine. On that
// host VMs of networks that need no root belong to an ordinary user.
//
// What it needs is as in package e2e: $FCVM_TEST_DATA, $FCVM_TEST_VMM,
// $FCVM_TEST_BIN. $FCVM_TEST_BULK is how many bytes are sent each way.
package network

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/network/nettest"
)

// Limits are generous: guests may be emulated, on a machine that is busy.
const (
	setupTimeout   = 20 * time.Minute
	commandTimeout = 15 * time.Minute
)

// What this program tells itself on the scratch host.
const (
	envPrepared = "FCVM_NETWORK_TEST_DIR" // a directory for the run
	envRealRoot = "FCVM_NETWORK_TEST_ROOT"
	envBin      = "FCVM_TEST_BIN"
	envData     = "FCVM_TEST_DATA"
	envDriver   = "FCVM_TEST_VMM"
	envPeer     = "FCVM_NETWORK_TEST_PEER" // the guest's program
)

func TestMain(m *testing.M) {
	if os.Getenv(envPrepared) != "" {
		nettest.Main(m, nil)
	}
	flag.Parse()
	if list := flag.Lookup("test.list"); list != nil && list.Value.String() != "" {
		os.Exit(m.Run()) // which only lists, and needs nothing
	}
	if testing.Short() {
		fmt.Println("network: skipped: -short")
		return
	}
	code, err := prepareAndRun()
	if err != nil {
		fmt.Fprintln(os.Stderr, "network: prepare:", err)
		code = 1
	}
	os.Exit(code)
}

// prepareAndRun does what the scratch host, which has no way to the world,
// could not, and runs this program's tests there.
func prepareAndRun() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "fn-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := filepath.Abs("../../..")
	if err != nil {
		return 0, err
	}
	set := map[string]string{envPrepared: dir, envData: filepath.Join(root, "build", "test-data"), envBin: dir, envPeer: filepath.Join(dir, "peer")}
	if os.Geteuid() == 0 {
		set[envRealRoot] = "1"
	}
	for name, value := range set {
		if os.Getenv(name) == "" {
			if err := os.Setenv(name, value); err != nil {
				return 0, err
			}
		}
	}
	if err := build(ctx, root); err != nil {
		return 0, err
	}
	for _, part := range []string{"kernel", "rootfs"} {
		if out, err := fcvmCommand(ctx, "setup", part).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("fcvm setup %s: %w\n%s", part, err, out)
		}
	}
	if os.Getenv(envDriver) == "" {
		out, err := fcvmCommand(ctx, "setup", "preflight", "--format", "{{.Driver}}").Output()
		if err != nil {
			return 0, fmt.Errorf("fcvm setup preflight: %w", err)
		}
		if err := os.Setenv(envDriver, strings.TrimSpace(string(out))); err != nil {
			return 0, err
		}
	}
	runtime.LockOSThread() // of the parent-death signal
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// build builds the programs that are not there.
func build(ctx context.Context, root string) error {
	bin := os.Getenv(envBin)
	for path, source := range map[string]string{
		filepath.Join(bin, "fcvm"): "./cmd/fcvm", filepath.Join(bin, "fc-agent"): "./cmd/fc-agent",
		os.Getenv(envPeer): "./test/e2e/network/netpeer/peer",
	} {
		if _, err := os.Stat(path); err == nil {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, source)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", source, err, out)
		}
	}
	return nil
}

// fcvmCommand is fcvm with the tests' directories.
func fcvmCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(os.Getenv(envBin), "fcvm"), args...)
	cmd.Env = append(os.Environ(), "FCVM_DATA_DIR="+os.Getenv(envData), "FCVM_RUNTIME_DIR="+filepath.Join(os.Getenv(envPrepared), "run"))
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Package e2e runs the built fcvm as its users do: real images in real VMs.
//
// It needs a data directory that is set up. TestMain makes one, or takes
// $FCVM_TEST_DATA. The driver is $FCVM_TEST_VMM, or what `--vmm auto` takes;
// programs are built, or taken from $FCVM_TEST_BIN.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Limits are generous: guests may be emulated, on a machine that is busy.
const (
	setupTimeout = 20 * time.Minute
	runTimeout   = 5 * time.Minute
)

// env is what all tests share; TestMain fills it in before the first one.
var env struct {
	fcvm    string // path of the program
	data    string // the data directory, set up
	runtime string // the runtime directory
	images  string // archives, made on demand
	driver  string // "firecracker" or "qemu"
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("e2e: skipped: -short")
		return
	}
	if list := flag.Lookup("test.list"); list != nil && list.Value.String() != "" {
		os.Exit(m.Run()) // which only lists, and needs nothing
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	tmp, err := os.MkdirTemp("", "fcvm-e2e-")
	if err == nil {
		defer func() { _ = os.RemoveAll(tmp) }()
		err = prepare(tmp)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: prepare:", err)
		return 1
	}
	fmt.Printf("e2e: driver %s, as user %d, with --network auto on %s\n", env.driver, os.Geteuid(), autoNetwork())
	before := snapshotHost()
	code := m.Run()
	if left := leftovers(before); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "e2e: left behind after all tests:\n  %s\n", strings.Join(left, "\n  "))
		return 1
	}
	return code
}

// autoNetwork is what VMs of these tests are connected by unless they say
// otherwise.
func autoNetwork() string {
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	out, err := command(ctx, "setup", "preflight", "--format", "{{.Network}}").Output()
	if err != nil {
		return "an unknown network: " + err.Error()
	}
	return strings.TrimSpace(string(out))
}

func prepare(tmp string) error {
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	defer cancel()
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	bin := os.Getenv("FCVM_TEST_BIN")
	if bin == "" {
		bin = filepath.Join(tmp, "bin")
		if err := build(ctx, root, bin); err != nil {
			return err
		}
	}
	env.fcvm = filepath.Join(bin, "fcvm")
	env.runtime = filepath.Join(tmp, "run")
	if env.data = os.Getenv("FCVM_TEST_DATA"); env.data == "" {
		env.data = filepath.Join(root, "build", "test-data")
	}
	if env.images = os.Getenv("FCVM_TEST_IMAGES"); env.images == "" {
		env.images = filepath.Join(root, "build", "images")
	}
	for _, part := range []string{"kernel", "rootfs"} {
		cmd := command(ctx, "setup", part)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("fcvm setup %s: %w", part, err)
		}
	}
	return findDriver(ctx)
}

func build(ctx context.Context, root, bin string) error {
	for _, name := range []string{"fcvm", "fc-agent"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, name), "./cmd/"+name)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// findDriver asks what fcvm would take by itself.
func findDriver(ctx context.Context) error {
	if env.driver = os.Getenv("FCVM_TEST_VMM"); env.driver != "" {
		return nil
	}
	out, err := command(ctx, "setup", "preflight", "--format", "json").Output()
	if err != nil {
		return fmt.Errorf("fcvm setup preflight: %w", withStderr(err))
	}
	var report struct {
		Driver string `json:"driver"`
	}
	if err := decode(out, &report); err != nil {
		return err
	}
	env.driver = report.Driver
	return nil
}

// command is fcvm with the tests' directories.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, env.fcvm, args...)
	cmd.Env = append(os.Environ(), "FCVM_DATA_DIR="+env.data, "FCVM_RUNTIME_DIR="+env.runtime)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w\n%s", err, exit.Stderr)
	}
	return err
}

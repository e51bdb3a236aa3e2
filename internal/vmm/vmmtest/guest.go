package vmmtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/setup/initramfs"
)

// Environment variables that say where tests find what they boot.
const (
	// EnvData is a data directory that `fcvm setup kernel` has filled.
	EnvData = "FCVM_TEST_DATA"
	// EnvGuest is the program vmmtest/guest, where there is no Go to build it.
	EnvGuest = "FCVM_TEST_GUEST"
)

// Guest is what the suite boots: absolute paths.
type Guest struct {
	Kernel  string
	Modules string // directory with the modules and boot.list
	Initrd  string // with the test guest as /init
}

// FindGuest finds the kernel and makes the initramfs. It skips the test where
// no kernel is installed.
func FindGuest(t *testing.T) Guest {
	t.Helper()
	data := os.Getenv(EnvData)
	if data == "" {
		t.Skipf("no kernel to boot: set %s to a data directory of fcvm setup", EnvData)
	}
	m, err := setup.New(paths.Layout{Data: data}, runtime.GOARCH, "").Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.Kernel == nil {
		t.Skipf("no kernel to boot: there is none in %s; run fcvm setup kernel", data)
	}
	dir := filepath.Join(paths.Layout{Data: data}.Kernels(), m.Kernel.ID)
	g := Guest{Kernel: filepath.Join(dir, "vmlinux"), Modules: filepath.Join(dir, "modules")}
	g.Initrd = filepath.Join(t.TempDir(), "initrd")
	if err := writeInitrd(g.Initrd, guestProgram(t), g.Modules); err != nil {
		t.Fatal(err)
	}
	return g
}

// guestProgram returns the path of the guest's program.
func guestProgram(t *testing.T) string {
	t.Helper()
	if p := os.Getenv(EnvGuest); p != "" {
		return p
	}
	path := filepath.Join(t.TempDir(), "guest")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/fcvm/fcvm/internal/vmm/vmmtest/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test guest (or set %s): %v\n%s", EnvGuest, err, out)
	}
	return path
}

// writeInitrd writes an initramfs. Without a program it is one that the
// kernel cannot start from.
func writeInitrd(path, program, modules string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := initramfs.NewWriter(f)
	for _, d := range []string{"dev", "proc", "sys", "lib", "lib/modules"} {
		if err := w.Dir(d, 0o755); err != nil {
			return err
		}
	}
	if err := w.Char("dev/console", 0o600, 5, 1); err != nil {
		return err
	}
	files := map[string]string{}
	if program != "" {
		files["init"] = program
		entries, err := os.ReadDir(modules)
		if err != nil {
			return err
		}
		for _, e := range entries {
			files["lib/modules/"+e.Name()] = filepath.Join(modules, e.Name())
		}
	}
	for name, from := range files {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := w.File(name, 0o755, b); err != nil {
			return err
		}
	}
	return w.Close()
}

package volume

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vm"
)

// device makes a block device with ext4 in it.
func device(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes loop devices")
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", file).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4 (Debian package e2fsprogs): %v: %s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device is to be had here: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return dev
}

// The host and a VM that writes do not have a device at the same time; VMs that
// read have it together.
func TestDevice(t *testing.T) {
	dev, dir := device(t), t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // where the test has failed
	mount := func() error { return unix.Mount(dev, dir, "ext4", 0, "") }
	if err := mount(); err != nil {
		t.Skipf("mount %s: %v", dev, err)
	}
	for _, readOnly := range []bool{false, true} {
		h, err := Device(dev, readOnly)
		if err == nil {
			_ = h.Close()
		}
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "mounted at "+dir) {
			t.Errorf("while it is mounted, read-only %t: %v", readOnly, err)
		}
	}
	// Its journal is in use, and no VM was killed.
	if _, err := (Flags{Volumes: []string{dev + ":/a:ro"}}).Resolve(); !errors.Is(err, ErrInUse) || errors.Is(err, errUnclean) {
		t.Errorf("resolved while it is mounted: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}

	w, err := Device(dev, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := mount(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mounted while a VM writes to it: %v", err)
	}
	for _, readOnly := range []bool{false, true} {
		if _, err := Device(dev, readOnly); !errors.Is(err, ErrInUse) {
			t.Errorf("beside a writer, read-only %t: %v", readOnly, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	var readers []*Hold
	for range 3 {
		r, err := Device(dev, true)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	if _, err := Device(dev, false); !errors.Is(err, ErrInUse) {
		t.Errorf("written beside readers: %v", err)
	}
	for _, r := range readers {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Something else than a mount that has a device is said, too.
func TestDeviceInOtherUse(t *testing.T) {
	dev := device(t)
	other, err := os.OpenFile(dev, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	for _, readOnly := range []bool{false, true} {
		if _, err := Device(dev, readOnly); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "lsblk") {
			t.Errorf("read-only %t: %v", readOnly, err)
		}
	}
}

// VMs that read a device and start at the same moment do not disturb one another.
func TestReadersAtOnce(t *testing.T) {
	dev := device(t)
	failed := make(chan error)
	const readers = 8
	for range readers {
		go func() {
			h, err := Device(dev, true)
			if err == nil {
				err = h.Close()
			}
			failed <- err
		}()
	}
	for range readers {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// What was last written is said to be torn only when nobody is still writing it.
func TestUncleanDiskInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	disk(t, path, true)
	flags := Flags{Volumes: []string{path + ":/a:ro"}}
	w, err := Device(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flags.Resolve(); !errors.Is(err, ErrInUse) {
		t.Errorf("while a VM writes to it: %v", err)
	}
	_ = w.Close()
	if _, err := flags.Resolve(); !errors.Is(err, errUnclean) {
		t.Errorf("when nobody does: %v", err)
	}
	if m, err := (Flags{Volumes: []string{path + ":/a"}}).Resolve(); err != nil || m[0].Kind != vm.MountDisk {
		t.Errorf("to be written: %+v, %v", m, err)
	}
}

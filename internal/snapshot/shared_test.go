package snapshot

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A disk that a guest shares with others is what it was, or its snapshot is not
// started.
// writeDisk makes a disk, and returns what is in it.
func writeDisk(t *testing.T) (path string, c Contents) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := ContentsOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, c
}

func TestCheckDisks(t *testing.T) {
	for name, c := range map[string]struct {
		change func(path string) error
		want   string // empty: it may be started
	}{
		"as it was":  {func(string) error { return nil }, ""},
		"only read":  {func(p string) error { _, err := os.ReadFile(p); return err }, ""},
		"touched":    {func(p string) error { return os.Chtimes(p, time.Now(), time.Now().Add(time.Nanosecond)) }, "was written since"},
		"written":    {func(p string) error { return os.WriteFile(p, []byte("b"), 0o600) }, "was written since"},
		"longer":     {func(p string) error { return os.Truncate(p, 2) }, "was written since"},
		"made again": {func(p string) error { return errors.Join(os.Rename(p, p+".old"), os.WriteFile(p, []byte("a"), 0o600)) }, "was written since"},
		"gone":       {os.Remove, "is gone"},
	} {
		path, was := writeDisk(t)
		m := Manifest{Name: "warm", Disks: []Disk{
			{ID: "root", Name: "rootfs.ext4", ReadOnly: true},
			{ID: "volume0", Name: "volume0", ReadOnly: true, Path: path, Contents: was},
			{ID: "volume1", Name: "volume1", ReadOnly: true, Path: "/of/a/snapshot/of/old"},
		}}
		if err := c.change(path); err != nil {
			t.Fatal(err)
		}
		err := m.CheckDisks()
		if (err != nil) != (c.want != "") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (!errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// On another host a disk is a copy, which is known by its time and size.
func TestCheckDisksElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		copied time.Duration // how much later the copy's time is
		text   string
		want   string // empty: it may be started
	}{
		"with its time":   {0, "a", ""},
		"at another time": {time.Second, "a", "rsync -t"},
		"of another size": {0, "ab", "rsync -t"},
	} {
		path, was := writeDisk(t)
		at := was.Stamp.MTime.Add(c.copied)
		// Beside it, so that it has not the same number.
		if err := errors.Join(os.WriteFile(path+".copy", []byte(c.text), 0o600), os.Rename(path+".copy", path), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
		m := Manifest{Name: "warm", Imported: true, Disks: []Disk{{ID: "volume0", Name: "volume0", ReadOnly: true, Path: path, Contents: was}}}
		err := m.CheckDisks()
		if (err != nil) != (c.want != "") || (err != nil && (!errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.want))) {
			t.Errorf("%s: %v", name, err)
		}
		m.Imported = false
		if err := m.CheckDisks(); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s, where it was taken: %v", name, err)
		}
	}
}

// Nothing but what is in a block device says that somebody has written to it.
func TestContentsOfADevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device is to be had here: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	defer func() { _ = exec.Command("losetup", "--detach", dev).Run() }()
	before, err := ContentsOf(dev)
	if err != nil || before.Size != 1<<20 || before.Head == "" {
		t.Fatalf("%+v, %v", before, err)
	}
	if again, err := ContentsOf(dev); err != nil || !again.equal(before) {
		t.Errorf("without a change: %+v, %v", again, err)
	}
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{1}, 1024)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if after, err := ContentsOf(dev); err != nil || after.equal(before) {
		t.Errorf("with its superblock written: %+v, %v", after, err)
	}
}

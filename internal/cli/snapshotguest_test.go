package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/snapshot"
)

// installed puts a file into the data directory, in a directory named by its
// digest, and returns that name.
func (h *host) installed(parent, file, content string) string {
	h.t.Helper()
	sum := sha256.Sum256([]byte(content))
	id := hex.EncodeToString(sum[:])[:16]
	h.put(filepath.Join(parent, id, file), content)
	return id
}

func (h *host) put(path, content string) {
	h.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

// guestOf makes a kernel, a root and an image for a snapshot.
func (h *host) guestOf(m *snapshot.Manifest) {
	h.t.Helper()
	m.Needs.KernelID = h.installed(h.layout().Kernels(), "vmlinux", "kernel")
	h.put(filepath.Join(h.layout().Kernels(), m.Needs.KernelID, "modules", "boot.list"), "")
	m.Needs.RootID = h.installed(h.layout().Roots(), "rootfs.ext4", "root")
	m.Needs.ImageDigest = h.importRoot("img", "content")
}

func (h *host) imageDisk(digest string) string {
	return filepath.Join(h.layout().Images(), "disks", strings.TrimPrefix(digest, "sha256:"), "image.ext4")
}

func TestSnapshotTravelsWithItsGuest(t *testing.T) {
	h, there := newHost(t), newHost(t)
	m := h.snapshot("warm", h.guestOf)
	file := filepath.Join(t.TempDir(), "warm.fcvm")
	h.ok("snapshot", "export", "--with-guest", "warm", file)
	code, out, errs := there.fcvm("snapshot", "import", file)
	if code != 0 || out != "warm\n" || strings.Contains(errs, "not here") {
		t.Fatalf("import: code %d, %q, %q", code, out, errs)
	}
	for _, path := range []string{
		filepath.Join("kernels", m.Needs.KernelID, "vmlinux"), filepath.Join("kernels", m.Needs.KernelID, "modules", "boot.list"),
		filepath.Join("roots", m.Needs.RootID, "rootfs.ext4"),
	} {
		want, err1 := os.ReadFile(filepath.Join(h.data, path))
		got, err2 := os.ReadFile(filepath.Join(there.data, path))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(want, got) {
			t.Errorf("%s: %q, not %q: %v", path, got, want, err)
		}
	}
	want, err1 := os.ReadFile(h.imageDisk(m.Needs.ImageDigest))
	got, err2 := os.ReadFile(there.imageDisk(m.Needs.ImageDigest))
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(want, got) {
		t.Errorf("the image's disk differs: %v", err)
	}
	// What the snapshot needs is kept for it, and a second one finds it there.
	there.put(there.layout().Setup(), `{"schema":1}`)
	if out := there.ok("system", "prune", "--force"); out != "Nothing to remove.\n" {
		t.Errorf("prune: %s", out)
	}
	if out := there.ok("snapshot", "import", "--name", "again", file); out != "again\n" {
		t.Errorf("import again: %q", out)
	}
	if left, err := filepath.Glob(filepath.Join(h.layout().Snapshots(), ".*")); err != nil || len(left) != 0 {
		t.Errorf("export left %v, %v", left, err)
	}
}

func TestSnapshotOfAGuestThatIsNotWhole(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(h *host, m *snapshot.Manifest)
		want   string
	}{
		"no kernel": {func(_ *host, m *snapshot.Manifest) { m.Needs.KernelID = strings.Repeat("a", 16) }, "there is no kernel"},
		"no root":   {func(_ *host, m *snapshot.Manifest) { m.Needs.RootID = strings.Repeat("a", 16) }, "there is no guest root"},
		"no image":  {func(_ *host, m *snapshot.Manifest) { m.Needs.ImageDigest = "sha256:" + strings.Repeat("a", 64) }, "no such image"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.snapshot("warm", func(m *snapshot.Manifest) { h.guestOf(m); tc.change(h, m) })
			file := filepath.Join(t.TempDir(), "warm.fcvm")
			h.says(`fcvm: export snapshot warm: .*`+tc.want+`.*`, "snapshot", "export", "--with-guest", "warm", file)
			if _, err := os.Stat(file); err == nil {
				t.Error("there is an archive")
			}
		})
	}
}

// An archive is somebody else's: what it carries is what its id says, or nothing.
func TestHostileGuestsAreRefused(t *testing.T) {
	const other = "0123456789abcdef"
	for name, tc := range map[string]struct {
		change func(h *host, m *snapshot.Manifest)
		want   string
	}{
		"another kernel": {func(h *host, m *snapshot.Manifest) {
			dir := h.layout().Kernels()
			m.Needs.KernelID = other
			h.rename(filepath.Join(dir, h.installed(dir, "vmlinux", "kernel")), filepath.Join(dir, other))
		}, "the kernel that came is not " + other},
		"another root": {func(h *host, m *snapshot.Manifest) {
			dir := h.layout().Roots()
			m.Needs.RootID = other
			h.rename(filepath.Join(dir, h.installed(dir, "rootfs.ext4", "root")), filepath.Join(dir, other))
		}, "the guest root that came is not " + other},
		"a kernel with more in it": {func(h *host, m *snapshot.Manifest) {
			h.put(filepath.Join(h.layout().Kernels(), m.Needs.KernelID, "modules", ".hidden"), "")
		}, "no file of a kernel"},
		"another disk": {func(h *host, m *snapshot.Manifest) {
			disk := h.imageDisk(m.Needs.ImageDigest)
			b, err := os.ReadFile(disk)
			if err != nil {
				h.t.Fatal(err)
			}
			b[len(b)-1]++
			h.put(disk, string(b))
		}, "snapshot cannot be started here: the disk that is made here .* is not the one"},
	} {
		t.Run(name, func(t *testing.T) {
			h, there := newHost(t), newHost(t)
			h.snapshot("warm", func(m *snapshot.Manifest) { h.guestOf(m); tc.change(h, m) })
			file := filepath.Join(t.TempDir(), "warm.fcvm")
			h.ok("snapshot", "export", "--with-guest", "warm", file)
			there.says(`(?:[^\n]*\n)*fcvm: import snapshot: .*`+tc.want+`.*`, "snapshot", "import", file)
			if out := there.ok("snapshot", "ls", "-q"); out != "" {
				t.Errorf("snapshots: %q", out)
			}
			for _, dir := range []string{"kernels", "roots", "snapshots"} {
				if left, _ := filepath.Glob(filepath.Join(there.data, dir, ".*")); len(left) != 0 {
					t.Errorf("left: %v", left)
				}
			}
			if _, err := os.Stat(filepath.Join(there.data, "kernels", other)); err == nil {
				t.Error("the kernel is installed")
			}
			if _, err := os.Stat(filepath.Join(there.data, "roots", other)); err == nil {
				t.Error("the root is installed")
			}
		})
	}
}

func (h *host) rename(from, to string) {
	h.t.Helper()
	if err := os.Rename(from, to); err != nil {
		h.t.Fatal(err)
	}
}

// A disk that is there and is another one cannot be used, and cannot be replaced
// without being asked.
func TestImportBesideAnotherDiskOfTheImage(t *testing.T) {
	h, there := newHost(t), newHost(t)
	m := h.snapshot("warm", h.guestOf)
	file := filepath.Join(t.TempDir(), "warm.fcvm")
	h.ok("snapshot", "export", "--with-guest", "warm", file)
	images := filepath.Join(there.data, "images")
	if err := os.MkdirAll(there.data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(images, os.DirFS(h.layout().Images())); err != nil {
		t.Fatal(err)
	}
	disk := there.imageDisk(m.Needs.ImageDigest)
	if err := os.Chmod(disk, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("other"), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	there.says(`fcvm: import snapshot: snapshot cannot be started here: .*fcvm image rm `+m.Needs.ImageDigest+`.*`, "snapshot", "import", file)
}

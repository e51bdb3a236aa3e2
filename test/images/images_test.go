package images

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fcvm/fcvm/internal/image"
)

// directory is where the images of this package's tests are kept: where those
// of the end-to-end tests are, so that they are made once.
func directory(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not there: test images are made on Debian or Ubuntu", tool)
		}
	}
	if dir := os.Getenv("FCVM_TEST_IMAGES"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "build", "images")
}

func TestImages(t *testing.T) {
	dir := directory(t)
	store, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{"busybox": "busybox", "nginx": "nginx", "redis": "redis-server", "python3": "python3", "terminal": "tmux", "fio": "fio"}
	for _, n := range Names() {
		t.Run(n, func(t *testing.T) {
			oci, err := OCIArchive(t.Context(), dir, n)
			if err != nil {
				t.Fatal(err)
			}
			docker, err := DockerArchive(t.Context(), dir, n)
			if err != nil {
				t.Fatal(err)
			}
			first, err := store.Ensure(t.Context(), "oci-archive:"+oci, image.EnsureOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{"docker-archive:" + docker, Serve(t, dir, n)} {
				img, err := store.Ensure(t.Context(), ref, image.EnsureOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if img.Digest != first.Digest || !img.Cached {
					t.Errorf("%s is another image: %+v", ref, img)
				}
			}
			if command := slices.Concat(first.Config.Entrypoint, first.Config.Cmd); len(command) == 0 {
				t.Error("it has no command")
			}
			stat := debugfs(t, first.Disk, "stat /rootfs/usr/bin/"+programs[n])
			if !strings.Contains(stat, "Inode:") {
				stat = debugfs(t, first.Disk, "stat /rootfs/usr/sbin/"+programs[n])
			}
			if !strings.Contains(stat, "Inode:") {
				t.Errorf("%s is not in it: %s", programs[n], stat)
			}
			if sh := debugfs(t, first.Disk, "stat /rootfs/usr/bin/sh"); !strings.Contains(sh, "symlink") {
				t.Errorf("it has no sh: %s", sh)
			}
		})
	}
}

func debugfs(t *testing.T, disk, request string) string {
	t.Helper()
	path := "/usr/sbin/debugfs"
	if _, err := os.Stat(path); err != nil {
		t.Skip("debugfs (package e2fsprogs) is not installed")
	}
	out, err := exec.Command(path, "-R", request, disk).CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestBusybox(t *testing.T) {
	path, err := Busybox(t.Context(), directory(t))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "echo", "hello").Output()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestVariant(t *testing.T) {
	dir := directory(t)
	store, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	var digests []string
	for _, label := range []string{"k=1", "k=2"} {
		img, err := store.Ensure(t.Context(), "oci-archive:"+Variant(t, dir, "busybox", label), image.EnsureOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if img.Cached || "k="+img.Config.Labels["k"] != label {
			t.Errorf("%s: %+v", label, img)
		}
		digests = append(digests, img.Digest)
	}
	if digests[0] == digests[1] {
		t.Error("two variants are one image")
	}
}

func TestScratch(t *testing.T) {
	store, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.Ensure(t.Context(), "oci-archive:"+Scratch(t, Config{User: "7"}), image.EnsureOptions{})
	if err != nil || len(img.Config.Cmd) != 0 || img.Config.User != "7" {
		t.Errorf("%+v, %v", img, err)
	}
	_, err = store.Ensure(t.Context(), "oci-archive:"+Scratch(t, Config{Architecture: "s390x"}), image.EnsureOptions{})
	if !errors.Is(err, image.ErrPlatform) {
		t.Errorf("another architecture: %v", err)
	}
}

func TestMade(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	count := 0
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			_, err := made(context.Background(), dir, "x", "", func(tmp string) error {
				mu.Lock()
				defer mu.Unlock()
				count++
				return os.WriteFile(filepath.Join(tmp, "made"), []byte("x"), 0o600)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if count != 1 {
		t.Errorf("made %d times", count)
	}
	if _, err := Image(t.Context(), dir, "unheard-of"); !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v, want %v", err, ErrUnknown)
	}
}

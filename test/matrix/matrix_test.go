package matrix

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"

	"github.com/fcvm/fcvm/test/images"
	"github.com/fcvm/fcvm/test/tree"
)

// maxMemory is what a conversion may take, bytes.
const maxMemory = 200 << 20

// need skips a test that a tool is missing for.
func need(tb testing.TB, tools ...string) {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("only root can unpack images and mount disks")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			tb.Skipf("%s is not installed", tool)
		}
	}
}

// program is fcvm as it is installed: the tests' own race detector would say
// nothing true of memory and time.
func program(tb testing.TB) string {
	tb.Helper()
	if dir := os.Getenv("FCVM_TEST_BIN"); dir != "" {
		return filepath.Join(dir, "fcvm")
	}
	path := filepath.Join(tb.TempDir(), "fcvm")
	run(tb, "go", "build", "-o", path, "github.com/fcvm/fcvm/cmd/fcvm")
	return path
}

// buildDisk has fcvm make a disk in a data directory of its own, and returns
// it and the most memory that this took, bytes.
func buildDisk(tb testing.TB, fcvm, ref string) (disk string, memory int64) {
	tb.Helper()
	cmd := exec.Command(fcvm, "image", "build-disk", "--quiet", ref)
	cmd.Env = append(os.Environ(), "FCVM_DATA_DIR="+tb.TempDir())
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// What wait4 tells is at least what this process had when it started it.
	tick := time.NewTicker(memoryPoll)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				tb.Fatalf("build-disk %s: %v\n%s", ref, err, errs.String())
			}
			return strings.TrimSpace(out.String()), memory
		case <-tick.C:
			memory = max(memory, peak(cmd.Process.Pid))
		}
	}
}

// memoryPoll is how often a process's memory is looked at. The kernel keeps the
// peak, so only what comes after the last look is missed.
const memoryPoll = 5 * time.Millisecond

// peak is the most memory that a process has had, bytes (proc(5), VmHWM); 0
// when it has ended.
func peak(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0
	}
	return kib << 10
}

// mount returns where a disk's image is.
func mount(tb testing.TB, disk string) string {
	tb.Helper()
	dir := tb.TempDir()
	run(tb, "mount", "-o", "loop,ro", disk, dir)
	tb.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			tb.Errorf("umount: %v: %s", err, out)
		}
	})
	return filepath.Join(dir, "rootfs")
}

// compare compares the disk that fcvm makes of an image with a tree.
func compare(t *testing.T, fcvm, ref, want string, free ...string) {
	t.Helper()
	disk, memory := buildDisk(t, fcvm, ref)
	t.Logf("%s: %d MiB of memory", ref[strings.LastIndexByte(ref, '/')+1:], memory>>20)
	if memory > maxMemory {
		t.Errorf("the conversion took %d MiB of memory, the limit is %d", memory>>20, maxMemory>>20)
	}
	got, err := tree.Read(mount(t, disk), "lost+found")
	if err != nil {
		t.Fatal(err)
	}
	should, err := tree.Read(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range tree.Differences(got, should, free) {
		t.Error(d)
	}
	t.Logf("%d entries", len(got))
}

// TestMatrix is of images whose layers hold all that layers can.
func TestMatrix(t *testing.T) {
	need(t, "umoci", "skopeo", "mount")
	fcvm := program(t)
	for _, img := range Images() {
		t.Run(img.Name, func(t *testing.T) {
			if img.Large && testing.Short() {
				t.Skip("takes a while")
			}
			dir := t.TempDir()
			gz, zst := filepath.Join(dir, "gzip"), filepath.Join(dir, "zstd")
			if err := WriteLayout(gz, img.Layers, compression.GZip); err != nil {
				t.Fatal(err)
			}
			want := Unpack(t, gz)
			compare(t, fcvm, "oci:"+gz, want)
			if err := WriteLayout(zst, img.Layers, compression.ZStd); err != nil {
				t.Fatal(err)
			}
			compare(t, fcvm, "oci:"+zst, want)
			if img.Large {
				return
			}
			for _, kind := range []string{"docker-archive", "oci-archive"} {
				compare(t, fcvm, Archive(t, gz, kind), want)
			}
		})
	}
}

// TestDebianImages is of images made from Debian's packages.
func TestDebianImages(t *testing.T) {
	need(t, "umoci", "skopeo", "mount", "apt-get", "dpkg-deb")
	fcvm := program(t)
	dir := os.Getenv("FCVM_TEST_IMAGES")
	if dir == "" {
		dir = filepath.Join("..", "..", "build", "images")
	}
	// Directories that a layer puts something into without an entry for them:
	// nobody says what time they have then.
	free := map[string][]string{"nginx": {"var", "var/www", "var/www/html"}}
	for _, name := range []string{"busybox", "nginx"} {
		t.Run(name, func(t *testing.T) {
			archive, err := images.OCIArchive(t.Context(), dir, name)
			if err != nil {
				t.Fatal(err)
			}
			layout := t.TempDir()
			run(t, "skopeo", "copy", "--quiet", "--insecure-policy", "oci-archive:"+archive, "oci:"+layout+":x")
			compare(t, fcvm, "oci-archive:"+archive, Unpack(t, layout), free[name]...)
		})
	}
}

// TestOtherBuilders is of images that buildah and umoci made of changes to a
// tree: their whiteouts, opaque directories and times are theirs.
func TestOtherBuilders(t *testing.T) {
	need(t, "umoci", "buildah", "mount")
	fcvm := program(t)
	t.Run("umoci", func(t *testing.T) {
		layout := filepath.Join(t.TempDir(), "layout")
		ByUmoci(t, layout)
		compare(t, fcvm, "oci:"+layout, Unpack(t, layout))
	})
	t.Run("buildah", func(t *testing.T) {
		layout := filepath.Join(t.TempDir(), "layout")
		has := ByBuildah(t, layout)
		compare(t, fcvm, "oci:"+layout, Unpack(t, layout))
		// And as buildah itself has it.
		compare(t, fcvm, "oci:"+layout, has, ".")
	})
}

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

func run(tb testing.TB, args ...string) string {
	tb.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
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

// unpack has umoci unpack the image "x" of a layout.
func unpack(tb testing.TB, layout string) string {
	tb.Helper()
	bundle := filepath.Join(tb.TempDir(), "bundle")
	run(tb, "umoci", "unpack", "--image", layout+":x", bundle)
	return filepath.Join(bundle, "rootfs")
}

// TestMatrix is of images whose layers hold all that layers can.
func TestMatrix(t *testing.T) {
	need(t, "umoci", "skopeo", "mount")
	fcvm := program(t)
	const gib = 1 << 30
	for _, tt := range []struct {
		name  string
		fills []Fill
		large bool
	}{
		{"special", Special(), false},
		{"many layers", ManyLayers(120), false},
		{"100,000 small files", smallFiles(100_000), true},
		{"a file of 2 GiB", bigFile(2 * gib), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.large && testing.Short() {
				t.Skip("takes a while")
			}
			dir := t.TempDir()
			gz, zst := filepath.Join(dir, "gzip"), filepath.Join(dir, "zstd")
			if err := WriteLayout(gz, tt.fills, compression.GZip); err != nil {
				t.Fatal(err)
			}
			want := unpack(t, gz)
			compare(t, fcvm, "oci:"+gz, want)
			if err := WriteLayout(zst, tt.fills, compression.ZStd); err != nil {
				t.Fatal(err)
			}
			compare(t, fcvm, "oci:"+zst, want)
			if tt.large {
				return
			}
			for _, to := range []string{"docker-archive:" + dir + "/d.tar:x:1", "oci-archive:" + dir + "/o.tar:x"} {
				run(t, "skopeo", "copy", "--quiet", "--insecure-policy", "oci:"+gz+":x", to)
				compare(t, fcvm, strings.TrimSuffix(strings.TrimSuffix(to, ":x:1"), ":x"), want)
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
			compare(t, fcvm, "oci-archive:"+archive, unpack(t, layout), free[name]...)
		})
	}
}

// TestOtherBuilders is of images that buildah and umoci made of changes to a
// tree: their whiteouts, opaque directories and times are theirs.
func TestOtherBuilders(t *testing.T) {
	need(t, "umoci", "buildah", "mount")
	fcvm := program(t)
	t.Run("umoci", func(t *testing.T) {
		layout, dir := filepath.Join(t.TempDir(), "layout"), t.TempDir()
		run(t, "umoci", "init", "--layout", layout)
		run(t, "umoci", "new", "--image", layout+":x")
		run(t, "sh", "-c", "cd '"+dir+"' && mkdir -p a/b c && echo 1 >a/b/f && echo 2 >a/g && ln a/g a/h && ln -s ../a c/l && mkfifo c/p && mknod c/n c 1 3 && chown 42:43 a/g")
		run(t, "umoci", "insert", "--image", layout+":x", dir, "/")
		run(t, "umoci", "insert", "--image", layout+":x", "--whiteout", "/a/b/f")
		run(t, "umoci", "insert", "--image", layout+":x", "--opaque", dir+"/c", "/a")
		compare(t, fcvm, "oci:"+layout, unpack(t, layout))
	})
	t.Run("buildah", func(t *testing.T) {
		storage := t.TempDir()
		buildah := func(args ...string) string {
			all := append([]string{"buildah", "--storage-driver", "vfs", "--root", storage + "/root", "--runroot", storage + "/run"}, args...)
			return strings.TrimSpace(run(t, all...))
		}
		first := buildah("from", "scratch")
		at := buildah("mount", first)
		run(t, "sh", "-c", "cd '"+at+"' && mkdir -p a/b c d && echo 1 >a/b/f && echo 2 >a/g && ln a/g a/h && echo 3 >c/x && mknod d/n b 8 1 && chown 99999:1 c && chmod 4711 a/g")
		buildah("commit", "--quiet", first, "base")
		buildah("umount", first)
		second := buildah("from", "localhost/base")
		at = buildah("mount", second)
		run(t, "sh", "-c", "cd '"+at+"' && rm a/b/f && rm -r c && mkdir c && echo 4 >c/y && echo 5 >>a/g && mv d e && ln a/h e/hard")
		layout := filepath.Join(t.TempDir(), "layout")
		buildah("commit", "--quiet", second, "oci:"+layout+":x")
		buildah("commit", "--quiet", second, "changed")
		buildah("umount", second)
		compare(t, fcvm, "oci:"+layout, unpack(t, layout))
		// And as buildah itself has it.
		third := buildah("from", "localhost/changed")
		compare(t, fcvm, "oci:"+layout, buildah("mount", third), ".")
		buildah("umount", third)
	})
}

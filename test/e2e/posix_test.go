package e2e

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/test/posix"
)

// buildProgram builds a static program of this repository that a test runs in a
// container, alone in its directory, and returns its path.
func buildProgram(t *testing.T, pkg string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	build := exec.Command("go", "build", "-o", path, pkg)
	build.Dir, build.Env = root, append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("no Go here to build %s with: %v\n%s", pkg, err, out)
	}
	return path
}

// TestFileSystems tries what POSIX says on a live share, a disk and the
// container's root.
func TestFileSystems(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	bin := filepath.Dir(buildProgram(t, "./test/posix/tryfs"))
	box := startBox(t, "-v", t.TempDir()+":/share", "--mount", "type=bind,map-mode=block,source="+bin+",target=/disk", "--cap-add", "MKNOD")
	for dir, lack := range map[string][]string{"/share": posix.SharesLack(), "/disk": nil, "/var": nil} {
		r := fcvm(t, "exec", box, "/disk/tryfs", dir)
		got := strings.Split(strings.TrimSuffix(r.stdout, "done\n"), "\n")
		got = slices.DeleteFunc(got, func(s string) bool {
			// The root is an overlay, and Linux 6.1's has no O_TMPFILE; later ones have.
			return s == "" || s == "O_TMPFILE" && dir == "/var"
		})
		slices.Sort(got)
		slices.Sort(lack)
		if r.code != 0 || !strings.HasSuffix(r.stdout, "done\n") || !slices.Equal(got, lack) {
			t.Errorf("%s: code %d, these failed:\n%q\nand these were to:\n%q\n%s", dir, r.code, got, lack, r.stderr)
		}
	}
}

// TestFio writes at random places with fio, in blocks of many sizes, and has it
// verify each block's checksum: from one process and from four.
func TestFio(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	share := t.TempDir()
	id := detach(t, []string{"-v", share + ":/share", "-v", "fio-volume:/volume"}, "fio", "tail", "-f", "/dev/null")
	t.Cleanup(func() {
		fcvm(t, "rm", "-f", id)
		fcvm(t, "volume", "rm", "fio-volume").want(t, 0, "fio-volume\n")
	})
	for _, dir := range []string{"/share", "/volume", "/var/tmp"} {
		for _, jobs := range []string{"1", "4"} {
			r := fcvm(t, "exec", id, "fio", "--name=v", "--directory="+dir, "--rw=randrw", "--bsrange=512-64k", "--bs_unaligned", "--size=4m",
				"--numjobs="+jobs, "--thread", "--ioengine=psync", "--fallocate=none", "--fsync=64", "--end_fsync=1",
				"--verify=crc32c", "--verify_fatal=1", "--minimal")
			if r.code != 0 || r.stderr != "" || strings.Count(r.stdout, ";v;") != len(strings.Split(strings.TrimSpace(r.stdout), "\n")) {
				t.Errorf("%s, %s jobs: code %d, %.200s; stderr:\n%s", dir, jobs, r.code, r.stdout, r.stderr)
			}
		}
	}
	if files, err := filepath.Glob(share + "/v.*"); err != nil || len(files) < 4 {
		t.Errorf("files on the share: %q, %v", files, err)
	}
}

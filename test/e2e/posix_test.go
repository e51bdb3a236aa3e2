package e2e

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/test/posix"
)

// TestFileSystems tries what POSIX says on a live share, a disk and the
// container's root.
func TestFileSystems(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/posix", "./test/posix/tryfs")
	build.Dir, build.Env = root, append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("no Go here to build the program with: %v\n%s", err, out)
	}
	box := startBox(t, "-v", t.TempDir()+":/share", "--mount", "type=bind,map-mode=block,source="+bin+",target=/disk", "--cap-add", "MKNOD")
	for dir, lack := range map[string][]string{"/share": posix.SharesLack(), "/disk": nil, "/var": nil} {
		r := fcvm(t, "exec", box, "/disk/posix", dir)
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

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// newImageTree makes an image with directories, links and a file.
func newImageTree(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "image")
	for _, dir := range []string{"srv/app", "run", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"var/run": "/run", "out": "../../../..", "nowhere": "/gone", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	writeText(t, filepath.Join(root, "file"), "")
	return root
}

func TestLacksWorkDir(t *testing.T) {
	image := newImageTree(t)
	for name, tc := range map[string]struct {
		c    agentapi.Container
		want bool
	}{
		"none":             {agentapi.Container{}, false},
		"the root":         {agentapi.Container{WorkDir: "/"}, false},
		"there":            {agentapi.Container{WorkDir: "/srv/app/"}, false},
		"not there":        {agentapi.Container{WorkDir: "/new"}, true},
		"nor above":        {agentapi.Container{WorkDir: "/new/a/b"}, true},
		"relative":         {agentapi.Container{WorkDir: "new"}, false},
		"a file":           {agentapi.Container{WorkDir: "/file"}, false},
		"below a file":     {agentapi.Container{WorkDir: "/file/x"}, false},
		"a loop":           {agentapi.Container{WorkDir: "/loop"}, false},
		"over a link":      {agentapi.Container{WorkDir: "/var/run/x"}, true},
		"a link out of it": {agentapi.Container{WorkDir: "/out/srv/app"}, false},
		"outside of it":    {agentapi.Container{WorkDir: "/out" + image}, true},
		"a volume":         {agentapi.Container{WorkDir: "/new", Volumes: []agentapi.Volume{{Target: "/new"}}}, false},
		"below a mount":    {agentapi.Container{WorkDir: "/new/a", Mounts: []agentapi.Mount{{Target: "/new"}}}, false},
		"beside a mount":   {agentapi.Container{WorkDir: "/new", Mounts: []agentapi.Mount{{Target: "/ne"}}}, true},
	} {
		if got, err := lacksWorkDir(&tc.c, image); got != tc.want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := lacksWorkDir(&agentapi.Container{WorkDir: "/x"}, image+"/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image that is not there: %v", err)
	}
}

func TestMakeDirs(t *testing.T) {
	for dir, want := range map[string]string{
		"/new/a":       "new/a",
		"/srv/app/x/":  "srv/app/x",
		"/var/run/x":   "run/x",
		"/out/x":       "x",
		"/srv/../y/z":  "y/z",
		"/srv/app":     "srv/app",
		"/file/x":      "",
		"/proc/self/x": "proc/self/x",
	} {
		t.Run(dir, func(t *testing.T) {
			image := newImageTree(t)
			err := makeDirs(image, dir)
			if want == "" {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			var st unix.Stat_t
			if serr := unix.Lstat(filepath.Join(image, want), &st); serr != nil || err != nil || st.Mode != unix.S_IFDIR|0o755 {
				t.Errorf("%v, %v, mode %o", err, serr, st.Mode)
			}
			if all, _ := os.ReadDir(filepath.Dir(image)); len(all) != 1 {
				t.Errorf("something was made outside of it: %v", all)
			}
		})
	}
}

// A link that leads nowhere in the image may lead into a mount.
func TestMakeDirsBehindALinkIntoAMount(t *testing.T) {
	for _, dir := range []string{"/nowhere", "/nowhere/x"} {
		image := newImageTree(t)
		if err := makeDirs(image, dir); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		if to, err := os.Readlink(filepath.Join(image, "nowhere")); err != nil || to != "/gone" {
			t.Errorf("%s: the link is %q, %v", dir, to, err)
		}
	}
}

// The image stays as it is, and the overlay's root is like the image's.
func TestRootFor(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	image, dir := newImageTree(t), "/run/layer"
	if err := os.Chmod(image, 0o711); err != nil {
		t.Fatal(err)
	}
	if root, err := rootFor(&agentapi.Container{WorkDir: "/srv/app"}, image, dir); root != image+":O" || err != nil {
		t.Errorf("%q, %v", root, err)
	}
	root, err := rootFor(&agentapi.Container{WorkDir: "/new/a"}, image, dir)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
		t.Skipf("no overlay to be had: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(root + "/new/a"); err != nil || !st.IsDir() {
		t.Errorf("%v", err)
	}
	if st, err := os.Stat(root); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := os.Stat(root + "/srv/app"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(image + "/new"); err == nil {
		t.Error("the image has it, too")
	}
}

package agent

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/rootfs"
	whole "github.com/fcvm/fcvm/test/tree"
)

// webImage is an image's tree, with what it has at /srv/web.
func webImage(t *testing.T) (root, web string) {
	t.Helper()
	root = t.TempDir()
	web = filepath.Join(root, "srv/web")
	when := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	err := errors.Join(
		os.MkdirAll(web+"/sub/empty", 0o755), os.MkdirAll(root+"/srv/spool", 0o755), os.WriteFile(root+"/file", nil, 0o644),
		os.WriteFile(web+"/index.html", []byte("welcome"), 0o640), os.Link(web+"/index.html", web+"/sub/same"),
		os.WriteFile(web+"/tool", []byte("#!"), 0o755), os.Truncate(web+"/tool", 1<<20),
		os.Symlink("/etc/passwd", web+"/link"), os.Symlink("/srv/web", root+"/www"), os.Symlink("loop", root+"/loop"),
		os.Chown(web+"/index.html", 33, 44), os.Lchown(web+"/link", 33, 44), os.Chown(web, 1000, 1001), os.Chown(root+"/srv/spool", 8, 9),
		os.Chmod(web+"/tool", 0o755|os.ModeSetuid), os.Chmod(web, 0o750|os.ModeSetgid), os.Chmod(root+"/srv/spool", 0o777|os.ModeSticky),
		unix.Mkfifo(web+"/fifo", 0o600), unix.Mknod(web+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Setxattr(web+"/sub", "user.on.dir", []byte("yes"), 0), unix.Setxattr(web+"/tool", "user.on.file", []byte("no"), 0),
		os.Chtimes(web+"/sub", when, when), os.Chtimes(web, when, when),
	)
	if err != nil {
		t.Fatal(err)
	}
	return root, web
}

// needMark skips where volumes cannot be marked as they are in a guest.
func needMark(t *testing.T) {
	t.Helper()
	if err := unix.Setxattr(t.TempDir(), unfinished, []byte{'1'}, 0); os.Getuid() != 0 || err != nil {
		t.Skipf("this needs root, and a file system with its attributes: %v", err)
	}
}

func furnishFrom(t *testing.T, dir, image string, m agentapi.Mount) error {
	t.Helper()
	m.Own = true
	return furnish(dir, m, func() (*tree, error) { return openTree(image) })
}

// sameTrees compares all that there is of two trees.
func sameTrees(t *testing.T, got, want string, free ...string) {
	t.Helper()
	g, err := whole.Read(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := whole.Read(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range whole.Differences(g, w, free) {
		t.Error(d)
	}
}

// names lists a directory, in one line.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestVolumeGetsWhatTheImageHas(t *testing.T) {
	needMark(t)
	image, web := webImage(t)
	for name, tt := range map[string]struct{ target, want string }{
		"a directory":        {"/srv/web", web},
		"a link to it":       {"/www", web},
		"an empty directory": {"/srv/spool", image + "/srv/spool"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(dir+"/lost+found", 0o700); err != nil {
				t.Fatal(err)
			}
			if err := furnishFrom(t, dir, image, agentapi.Mount{Target: tt.target, Seed: true}); err != nil {
				t.Fatal(err)
			}
			sameTrees(t, dir, tt.want)
		})
	}
}

func TestVolumeIsFilledOnce(t *testing.T) {
	needMark(t)
	image, web := webImage(t)
	m := agentapi.Mount{Target: "/srv/web", Seed: true}
	dir, copied := t.TempDir(), t.TempDir()
	err := errors.Join(furnishFrom(t, dir, image, m), furnishFrom(t, copied, image, m))
	for _, d := range []string{dir, web} {
		err = errors.Join(err, os.RemoveAll(d+"/sub"), os.WriteFile(d+"/index.html", []byte("mine"), 0o600), os.Chown(d, 5, 5))
	}
	when := time.Now()
	for _, f := range []string{dir, web, dir + "/index.html", web + "/index.html"} {
		err = errors.Join(err, os.Chtimes(f, when, when))
	}
	if err != nil {
		t.Fatal(err)
	}
	other, _ := webImage(t)
	if err := furnishFrom(t, dir, other, m); err != nil {
		t.Fatal(err)
	}
	sameTrees(t, dir, web)
}

func TestVolumeStaysAsItIs(t *testing.T) {
	needMark(t)
	image, _ := webImage(t)
	outside := t.TempDir()
	err := errors.Join(os.WriteFile(outside+"/secret", nil, 0o600), os.Symlink(outside, image+"/out"),
		os.Symlink("../../../../../.."+outside, image+"/above"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		target string
		has    []string
		nocopy bool
		want   string
	}{
		"there is no such directory": {target: "/none/such"},
		"it is a file":               {target: "/file"},
		"it is below a file":         {target: "/file/x"},
		"links in a circle":          {target: "/loop"},
		"a link out of the image":    {target: "/out"},
		"a link above the image":     {target: "/above"},
		"nocopy":                     {target: "/srv/web", has: []string{"lost+found/"}, nocopy: true},
		"made by an older fcvm":      {target: "/srv/web", has: []string{"lost+found/", "mine"}, want: "mine"},
		"what e2fsck has found":      {target: "/srv/web", has: []string{"lost+found/", "lost+found/#12"}, want: "lost+found"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, n := range tt.has {
				if path := filepath.Join(dir, n); strings.HasSuffix(n, "/") {
					err = os.Mkdir(path, 0o700)
				} else {
					err = os.WriteFile(path, nil, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := furnishFrom(t, dir, image, agentapi.Mount{Target: tt.target, Seed: !tt.nocopy}); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(dir, &st); err != nil || st.Uid != 0 || names(t, dir) != tt.want {
				t.Errorf("it has %q and is user %d's (%v), want %q", names(t, dir), st.Uid, err, tt.want)
			}
		})
	}
}

// What a copy leaves that did not come to its end is in nobody's way, and is not
// taken for the whole.
func TestVolumeThatIsHalfFilled(t *testing.T) {
	needMark(t)
	image, web := webImage(t)
	bad := t.TempDir()
	// No archive has such an attribute.
	if err := errors.Join(os.MkdirAll(bad+"/srv/web/d/e", 0o755), unix.Setxattr(bad+"/srv/web/d/e", "user.a=b", nil, 0)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := agentapi.Mount{Target: "/srv/web", Seed: true}
	if err := furnishFrom(t, dir, bad, m); err == nil || names(t, dir) != "d" {
		t.Fatalf("it was to fail in the middle: %v, %q", err, names(t, dir))
	}
	if err := checkFinished(dir, m); err == nil || !strings.Contains(err.Error(), "without :ro") {
		t.Errorf("to read it: %v", err)
	}
	if err := furnishFrom(t, dir, image, m); err != nil {
		t.Fatal(err)
	}
	sameTrees(t, dir, web)
	if err := checkFinished(dir, m); err != nil {
		t.Error(err)
	}
	// Killed just before it counted.
	if err := unix.Setxattr(dir, unfinished, []byte{'1'}, 0); err != nil {
		t.Fatal(err)
	}
	if err := furnishFrom(t, dir, image, agentapi.Mount{Target: "/srv/web"}); err != nil {
		t.Fatal(err)
	}
	sameTrees(t, dir, t.TempDir(), ".")
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", fi, err)
	}
}

// TestVolumeDisk: a disk as fcvm makes it, in the kernel's hands.
func TestVolumeDisk(t *testing.T) {
	needMark(t)
	image, web := webImage(t)
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := rootfs.Volume(t.Context(), disk, rootfs.MinScratch, ""); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", disk, dir).CombinedOutput(); err != nil {
		t.Skipf("this machine does not mount disks: %v: %s", err, out)
	}
	mounted := true
	unmount := func() {
		if err := unix.Unmount(dir, 0); mounted && err != nil {
			t.Error(err)
		}
		mounted = false
	}
	t.Cleanup(unmount)
	if names(t, dir) != "lost+found" {
		t.Errorf("it has %q", names(t, dir))
	}
	m := agentapi.Mount{Target: "/srv/web", Seed: true}
	err := errors.Join(os.WriteFile(web+"/large", []byte(strings.Repeat("x", 32<<20)), 0o600), furnishFrom(t, dir, image, m))
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "fcvm volume create --size") {
		t.Errorf("what does not fit: %v", err)
	}
	if err := errors.Join(os.Remove(web+"/large"), furnishFrom(t, dir, image, m)); err != nil {
		t.Fatal(err)
	}
	sameTrees(t, dir, web)
	unmount()
	if out, err := exec.Command("/sbin/e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shareFiles makes a directory to be shared.
func shareFiles(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shared")
	for _, err := range []error{
		os.MkdirAll(dir+"/sub/deeper", 0o755), os.WriteFile(dir+"/hello", []byte("from the host\n"), 0o644),
		os.WriteFile(dir+"/sub/tool", []byte("#!/bin/sh\necho tool\n"), 0o755), os.Symlink("/etc/hostname", dir+"/away"),
		os.Symlink("../hello", dir+"/sub/link"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLiveShare(t *testing.T) {
	dir, single, ro := shareFiles(t), filepath.Join(t.TempDir(), "single"), shareFiles(t)
	if err := os.WriteFile(single, []byte("one file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	box := startBox(t, "-v", dir+":/data", "--map", ro+":/ro:ro", "--mount", "type=bind,src="+single+",dst=/etc/single", "-v", "/anonymous", "--mount", "type=tmpfs,target=/mem,tmpfs-size=1m")
	sh := func(script string) result { t.Helper(); return fcvm(t, "exec", box, "sh", "-c", script) }

	sh("cd /data && cat hello sub/link && sub/tool && stat -c '%u %a' hello").want(t, 0, "from the host\nfrom the host\ntool\n0 644\n")
	// A link leads to the container's files, never to the host's.
	sh("cat /data/away").want(t, 0, box)
	sh("cat /etc/single; echo changed >/etc/single; cat /etc/single").want(t, 0, "one file\nchanged\n")
	if b, err := os.ReadFile(single); err != nil || string(b) != "changed\n" {
		t.Errorf("%q, %v", b, err)
	}
	sh("echo x >/ro/new; echo x >/ro/hello; rm /ro/hello; touch /anonymous/ok && cat /ro/hello; df /mem | grep -c tmpfs").want(t, 0, "from the host\n1\n")

	sh("cd /data && mkdir -p a/b && echo new >a/b/file && chmod 640 a/b/file && mv a z && ln -s b/file z/soft && ln z/b/file z/hard && echo more >>z/b/file && sync z/b/file").want(t, 0, "")
	for name, want := range map[string]string{"z/b/file": "new\nmore\n", "z/soft": "new\nmore\n", "z/hard": "new\nmore\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if fi, err := os.Stat(dir + "/z/b/file"); err != nil || fi.Mode() != 0o640 {
		t.Errorf("%v, %v", fi, err)
	}
	sh(`cd /data && name=$(printf 'a\377\001 b') && echo odd >"$name" && truncate -s 1073741824 sparse && echo end >>sparse && stat -c %s sparse`).want(t, 0, "1073741828\n")
	if b, err := os.ReadFile(dir + "/a\xff\x01 b"); err != nil || string(b) != "odd\n" {
		t.Errorf("%q, %v", b, err)
	}
	testShareChanges(t, box, dir)
}

// testShareChanges changes a file on the host that the guest has just seen.
func testShareChanges(t *testing.T, box, dir string) {
	for i := range 3 {
		text := strings.Repeat("changed", i+1)
		fcvm(t, "exec", box, "sh", "-c", "cat /data/hello && ls -l /data >/dev/null")
		if err := os.WriteFile(dir+"/hello", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		fcvm(t, "exec", box, "cat", "/data/hello").want(t, 0, text)
	}
}

func TestShareOfManyFiles(t *testing.T) {
	dir := t.TempDir()
	const files = 300 // an emulated guest of a busy host takes tens of milliseconds for each
	r := run(t, []string{"-v", dir + ":/data"}, "busybox", "sh", "-c", fmt.Sprintf(
		"cd /data && mkdir d && i=0; while [ $i -lt %d ]; do echo $i >d/$i; i=$((i+1)); done; ls d | wc -l; cat d/* | wc -l; rm d/1*; ls d | wc -l", files))
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	var n, lines, left int
	if _, err := fmt.Sscan(r.stdout, &n, &lines, &left); err != nil || n != files || lines != files {
		t.Errorf("%q", r.stdout)
	}
	found := 0
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found++
		}
		return err
	})
	if err != nil || found != left {
		t.Errorf("%d files are left on the host, %d in the guest, %v", found, left, err)
	}
}

func TestSharesThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		arg   string
		words []string
	}{
		{dir + "/none:/data", []string{"-v", "no such file"}},
		{dir + ":data", []string{"absolute path"}},
		{dir + ":/", []string{"root"}},
		{dir + ":/data:rx", []string{"ro, rw or nocopy"}},
		{dir + ":/data:ro,noexec", []string{"option noexec cannot be honoured"}},
		{"/dev/null:/data", []string{"neither"}},
		{"sp ace:/data", []string{"volume's name"}},
	} {
		run(t, []string{"-v", c.arg}, "busybox", "true").wantError(t, 125, c.words...)
	}
	run(t, []string{"-v", dir + ":/data", "-v", dir + ":/data/"}, "busybox", "true").wantError(t, 125, "two mounts at /data")
	run(t, []string{"--mount", "type=nfs,source=x,target=/data"}, "busybox", "true").wantError(t, 125, "bind, volume, tmpfs or disk")
}

// A clone has a connection of its own to the share, and its own copy of disks
// that can be written.
func TestClonesHaveShares(t *testing.T) {
	dir := shareFiles(t)
	box := startBox(t, "-v", dir+":/data", "--map-mode", "live", "--mount", "type=bind,map-mode=block,source="+dir+",target=/block")
	fcvm(t, "exec", box, "sh", "-c", "echo before >/block/f; echo shared >/data/f; sync").want(t, 0, "")
	fcvm(t, "clone", box, "--exec", "cat /data/f /block/f; echo clone >/data/g; echo mine >/block/f").want(t, 0, "shared\nbefore\n")
	if b, err := os.ReadFile(dir + "/g"); err != nil || string(b) != "clone\n" {
		t.Errorf("%q, %v", b, err)
	}
	fcvm(t, "exec", box, "cat", "/block/f", "/data/g").want(t, 0, "before\nclone\n")

	snapshotOf(t, box, "sharing")
	if err := os.Rename(dir, dir+".gone"); err != nil {
		t.Fatal(err)
	}
	r := fcvm(t, "clone", "--snapshot", "sharing", "--name", "lonely", "--verbose", "--exec", "true")
	if err := os.Rename(dir+".gone", dir); err != nil {
		t.Fatal(err)
	}
	r.wantError(t, 125, dir)
	if strings.Contains(r.stderr, "in "+env.data) { // it says where a VM's directory is
		t.Errorf("something was made for a clone that cannot be:\n%s", r.stderr)
	}
}

// A clone has a copy of a named volume that the original writes to, and shares one
// that it only reads, which stays for as long as a snapshot needs it.
func TestClonesHaveVolumes(t *testing.T) {
	t.Cleanup(func() { fcvm(t, "volume", "rm", "-f", "drafts", "books") })
	fcvm(t, "volume", "create", "--size", "64m", "books").want(t, 0, "books\n")
	run(t, []string{"-v", "books:/books", "--network", "none"}, "busybox", "sh", "-c", "echo printed >/books/f").want(t, 0, "")
	id := detach(t, []string{"--name", "writer", "--network", "none", "-v", "drafts:/drafts", "-v", "books:/books:ro"},
		"busybox", "sh", "-c", "echo first >/drafts/f; sync; sleep 1000")
	eventually(t, "first draft", func() bool { return fcvm(t, "exec", id, "cat", "/drafts/f").stdout == "first\n" })
	fcvm(t, "clone", "writer", "--exec", "cat /drafts/f /books/f; echo mine >/drafts/f; sync").want(t, 0, "first\nprinted\n")
	fcvm(t, "exec", "writer", "cat", "/drafts/f").want(t, 0, "first\n")
	snapshotOf(t, "writer", "written")
	fcvm(t, "rm", "-f", "writer").want(t, 0, "writer\n")
	fcvm(t, "volume", "rm", "books").wantError(t, 125, "snapshot written needs it")
	fcvm(t, "volume", "rm", "drafts").want(t, 0, "drafts\n") // the snapshot has its own
	fcvm(t, "clone", "--snapshot", "written", "--exec", "cat /drafts/f /books/f").want(t, 0, "first\nprinted\n")
	fcvm(t, "snapshot", "rm", "written").want(t, 0, "written\n")
	fcvm(t, "volume", "rm", "books").want(t, 0, "books\n")
}

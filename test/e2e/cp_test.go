package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestCopy(t *testing.T) {
	box := startBox(t)
	t.Run("there and back", func(t *testing.T) { testCopyThereAndBack(t, box) })
	t.Run("sparse", func(t *testing.T) { testCopySparse(t, box) })
	t.Run("archives", func(t *testing.T) { testCopyArchives(t, box) })
	t.Run("owners", func(t *testing.T) { testCopyOwners(t, box) })
	t.Run("wrong places", func(t *testing.T) { testCopyWrong(t, box) })
}

func testCopyThereAndBack(t *testing.T, box string) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	data := make([]byte, 20<<20)
	_, _ = rand.Read(data)
	for _, err := range []error{
		os.MkdirAll(src+"/sub/deeper", 0o755), os.WriteFile(src+"/sub/data", data, 0o640), os.WriteFile(src+"/run", []byte("#!/bin/sh\n"), 0o755),
		os.WriteFile(src+"/sub/deeper/empty", nil, 0o400), os.Symlink("sub/data", src+"/link"), os.Symlink("/etc/hostname", src+"/away"),
		os.Link(src+"/run", src+"/sub/same"), os.Chmod(src+"/sub/deeper", 0o710),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fcvm(t, "cp", src, box+":/tmp").want(t, 0, "")
	fcvm(t, "exec", box, "sh", "-c", `cd /tmp/src && stat -c "%n %a %h %U" run sub/data sub/deeper sub/deeper/empty && readlink link && readlink away`).
		want(t, 0, "run 755 2 root\nsub/data 640 1 root\nsub/deeper 710 2 root\nsub/deeper/empty 400 1 root\nsub/data\n/etc/hostname\n")
	fcvm(t, "cp", box+":/tmp/src/.", dir+"/back").want(t, 0, "")
	got, err := os.ReadFile(dir + "/back/sub/data")
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	for name, mode := range map[string]fs.FileMode{"run": 0o755, "sub/data": 0o640, "sub/deeper/empty": 0o400} {
		if fi, err := os.Stat(dir + "/back/" + name); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if to, err := os.Readlink(dir + "/back/away"); err != nil || to != "/etc/hostname" {
		t.Errorf("link to %q, %v", to, err)
	}
	// A file into a directory, and as another name.
	fcvm(t, "cp", src+"/run", box+":/tmp/src/sub").want(t, 0, "")
	fcvm(t, "cp", box+":/tmp/src/sub/run", dir+"/renamed").want(t, 0, "")
	if b, err := os.ReadFile(dir + "/renamed"); err != nil || string(b) != "#!/bin/sh\n" {
		t.Errorf("%q, %v", b, err)
	}
	// A link in the container leads to the container's files, not to the host's.
	fcvm(t, "cp", "-L", box+":/tmp/src/away", dir+"/hostname").want(t, 0, "")
	if b, err := os.ReadFile(dir + "/hostname"); err != nil || strings.TrimSpace(string(b)) != box {
		t.Errorf("the container's host name: %q, %v", b, err)
	}
}

func testCopySparse(t *testing.T, box string) {
	const size = 1 << 30
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err == nil {
		_, err = f.WriteAt([]byte("the end"), size-7)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	fcvm(t, "cp", path, box+":/var/tmp/").want(t, 0, "")
	fcvm(t, "exec", box, "sh", "-c", "cd /var/tmp; stat -c %s sparse; tail -c 7 sparse; [ $(stat -c %b sparse) -lt 1000 ]").want(t, 0, fmt.Sprintf("%d\nthe end", size))
	fcvm(t, "cp", box+":/var/tmp/sparse", path+".back").want(t, 0, "")
	fi, err := os.Stat(path + ".back")
	if err != nil {
		t.Fatal(err)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || fi.Size() != size || st.Blocks > 1000 {
		t.Errorf("%d bytes in %d blocks", fi.Size(), st.Blocks)
	}
}

func testCopyArchives(t *testing.T, box string) {
	out := fcvm(t, "exec", box, "sh", "-c", "mkdir -p /tmp/a/b /tmp/x && echo hello >/tmp/a/b/c && tar c -C /tmp a")
	if out.code != 0 {
		t.Fatal(out.stderr)
	}
	fcvmIn(t, strings.NewReader(out.stdout), "cp", "-", box+":/tmp/x").want(t, 0, "")
	fcvm(t, "exec", box, "cat", "/tmp/x/a/b/c").want(t, 0, "hello\n")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(out.stdout)); err != nil {
		t.Fatal(err)
	}
	_ = z.Close()
	fcvm(t, "exec", box, "rm", "-r", "/tmp/x/a").want(t, 0, "")
	fcvmIn(t, bytes.NewReader(packed.Bytes()), "cp", "-", box+":/tmp/x").want(t, 0, "")
	fcvm(t, "exec", box, "cat", "/tmp/x/a/b/c").want(t, 0, "hello\n")
	fcvmIn(t, bytes.NewReader(packed.Bytes()[:packed.Len()/2]), "cp", "-", box+":/tmp/x").wantError(t, 125, "unexpected EOF")
	r := fcvm(t, "cp", box+":/tmp/x/a", "-")
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	fcvmIn(t, strings.NewReader(r.stdout), "exec", "-i", box, "tar", "t").want(t, 0, "a/\na/b/\na/b/c\n")
	fcvmIn(t, strings.NewReader("this is none"), "cp", "-", box+":/tmp/x").wantError(t, 125, "bad archive")
	fcvmIn(t, strings.NewReader(out.stdout), "cp", "-", box+":/tmp/none").wantError(t, 125, "/tmp/none", "no such file")
}

func testCopyOwners(t *testing.T, box string) {
	fcvm(t, "exec", box, "sh", "-c", "mkdir /tmp/o; touch /tmp/o/f; chown -R user:adm /tmp/o").want(t, 0, "")
	dir := t.TempDir()
	fcvm(t, "cp", box+":/tmp/o", dir+"/mine").want(t, 0, "")
	owner := func(path string) string {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		st, _ := fi.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
	}
	if got, want := owner(dir+"/mine/f"), fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()); got != want {
		t.Errorf("owner %s, want %s", got, want)
	}
	r := fcvm(t, "cp", "-a", box+":/tmp/o", dir+"/same")
	if os.Getuid() != 0 {
		r.wantError(t, 125, "leave out -a")
		return
	}
	r.want(t, 0, "")
	if got := owner(dir + "/same/f"); got != "1000:4" {
		t.Errorf("owner %s, want 1000:4", got)
	}
	fcvm(t, "cp", "-a", dir+"/same", box+":/tmp").want(t, 0, "")
	fcvm(t, "exec", box, "stat", "-c", "%u:%g", "/tmp/same/f").want(t, 0, "1000:4\n")
}

func testCopyWrong(t *testing.T, box string) {
	dir := t.TempDir()
	fcvm(t, "cp", box+":/none", dir).wantError(t, 125, "/none", "no such file")
	fcvm(t, "cp", dir+"/none", box+":/tmp").wantError(t, 125, "none", "no such file")
	fcvm(t, "cp", "/etc/hostname", box+":/dev/null").wantError(t, 125, "/dev/null must be a directory or a regular file")
	fcvm(t, "cp", dir, box+":/etc/passwd").wantError(t, 125, "is a directory")
	fcvm(t, "cp", "/etc/hostname", box+":/none/x").wantError(t, 125, "no such file")
	fcvm(t, "cp", dir, dir).wantError(t, 125, "VM:PATH")
	fcvm(t, "cp", "nosuchvm:/x", dir).wantError(t, 125, "no such VM")
}

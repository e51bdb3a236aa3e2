package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestVolumes(t *testing.T) {
	name := "data" + strings.ReplaceAll(filepath.Base(t.TempDir()), ".", "-") + time.Now().Format("150405.000")
	t.Cleanup(func() { fcvm(t, "volume", "rm", "-f", name) })
	fcvm(t, "volume", "create", "--size", "64m", "-l", "of=test", name).want(t, 0, name+"\n")
	fcvm(t, "volume", "create", name).want(t, 0, name+"\n")
	fcvm(t, "volume", "create", "--size", "1g", name).wantError(t, 125, name, "exists", "64 MiB")

	// What one VM has written the next one reads, also one that may not write.
	run(t, []string{"-v", name + ":/data"}, "busybox", "sh", "-c", "echo kept >/data/f; df -m /data | tail -1 | awk '{print ($2 < 64)}'").want(t, 0, "1\n")
	run(t, []string{"--mount", "source=" + name + ",target=/data,ro"}, "busybox", "sh", "-c", "echo x >/data/g; cat /data/f").want(t, 0, "kept\n")

	box := startBox(t, "-v", name+":/data")
	fcvm(t, "exec", box, "cat", "/data/f").want(t, 0, "kept\n")
	run(t, []string{"-v", name + ":/data"}, "busybox", "true").wantError(t, 125, name, "is in use")
	run(t, []string{"-v", name + ":/data:ro"}, "busybox", "true").wantError(t, 125, name, "is in use")
	fcvm(t, "volume", "rm", name).wantError(t, 125, name, "is in use")
	fcvm(t, "system", "prune", "--all", "--dry-run", "--force")
	var info []struct {
		Name  string `json:"name"`
		InUse bool   `json:"in_use"`
	}
	if r := fcvm(t, "volume", "inspect", name); json.Unmarshal([]byte(r.stdout), &info) != nil || len(info) != 1 || info[0].Name != name || !info[0].InUse {
		t.Errorf("%+v", r)
	}
	if r := fcvm(t, "system", "df", "-v"); !strings.Contains(r.stdout, name) {
		t.Errorf("not in system df:\n%s", r.stdout)
	}
}

func TestVolumeIsMadeOnFirstUse(t *testing.T) {
	name := "first-use-" + time.Now().Format("150405.000")
	t.Cleanup(func() { fcvm(t, "volume", "rm", "-f", name) })
	run(t, []string{"-v", name + ":/data", "--scratch-size", "32m"}, "busybox", "sh", "-c", "touch /data/f; df -m / | tail -1 | awk '{print ($2 < 33)}'").want(t, 0, "1\n")
	fcvm(t, "volume", "inspect", "--format", "{{.SizeMiB}} {{.InUse}}", name).want(t, 0, "16384 false\n")
	if r := fcvm(t, "system", "prune", "--all", "--dry-run"); strings.Contains(r.stdout, name) {
		t.Errorf("a volume would be pruned: %s", r.stdout)
	}
	fcvm(t, "volume", "rm", name).want(t, 0, name+"\n")
	fcvm(t, "volume", "rm", name).wantError(t, 125, "no such volume")
}

// An empty volume gets what the image has at its place, and that directory's owner.
func TestVolumeBeginsAsTheImage(t *testing.T) {
	at := time.Now().Format("150405.000")
	html, bare, data := "html-"+at, "bare-"+at, "data-"+at
	t.Cleanup(func() { fcvm(t, "volume", "rm", "-f", html, bare, data) })
	const (
		page = "<!DOCTYPE html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1>\n"
		show = `cd /var/www/html; read -r line <index.html && echo "$line"; [ ! -e lost+found ]`
	)
	run(t, []string{"-v", html + ":/var/www/html"}, "nginx", "sh", "-c", show+" && echo mine >index.html").want(t, 0, page)
	run(t, []string{"-v", html + ":/var/www/html"}, "nginx", "sh", "-c", show).want(t, 0, "mine\n")
	run(t, []string{"-v", html + ":/var/www/html:ro"}, "nginx", "sh", "-c", show).want(t, 0, "mine\n")
	run(t, []string{"-v", bare + ":/var/www/html:nocopy"}, "nginx", "sh", "-c", "cd /var/www/html; echo *").want(t, 0, "*\n")
	// It is still empty; and Podman does the same with what has no name.
	run(t, []string{"-v", bare + ":/var/www/html"}, "nginx", "sh", "-c", show).want(t, 0, page)
	run(t, []string{"-v", "/var/www/html"}, "nginx", "sh", "-c", show).want(t, 0, page)
	run(t, []string{"--mount", "type=volume,target=/var/www/html,volume-nocopy"}, "nginx", "sh", "-c", "cd /var/www/html; echo *").want(t, 0, "*\n")

	// The directory is empty in the image, and its user's.
	for range 2 {
		run(t, []string{"-v", data + ":/data", "--entrypoint", "sh"}, "redis", "-c", "echo x >>/data/f && echo /data/*").want(t, 0, "/data/f\n")
	}
	run(t, []string{"-v", data + ":/data"}, "busybox", "stat", "-c", "%u %a", "/data", "/data/f").want(t, 0, "101 755\n101 644\n")
}

func TestBlockDirectory(t *testing.T) {
	dir := shareFiles(t)
	if err := os.Link(dir+"/hello", dir+"/sub/same"); err != nil {
		t.Fatal(err)
	}
	run(t, []string{"-v", dir + ":/data", "--map-mode", "block"}, "busybox", "sh", "-c",
		"cd /data && cat hello sub/link && sub/tool && stat -c '%u %a %h' hello && readlink away && rm hello && echo new >file && dd if=/dev/zero of=big bs=1M count=20 2>/dev/null && ls").
		want(t, 0, "from the host\nfrom the host\ntool\n0 644 2\n/etc/hostname\naway\nbig\nfile\nsub\n")
	run(t, []string{"-v", dir + ":/data:ro", "--map-mode", "block"}, "busybox", "sh", "-c", "ls /data; touch /data/new").
		want(t, 1, "away\nhello\nsub\n")
	if b, err := os.ReadFile(dir + "/hello"); err != nil || string(b) != "from the host\n" {
		t.Errorf("the host's own: %q, %v", b, err)
	}
	if _, err := os.Stat(dir + "/file"); err == nil {
		t.Error("what the guest has written is on the host")
	}
}

func TestDiskImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("sh", "-c", "truncate -s 32m "+path+" && PATH=$PATH:/usr/sbin mkfs.ext4 -q "+path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run(t, []string{"-v", path + ":/disk", "--disk-iops", "5000", "--disk-bps", "500m"}, "busybox", "sh", "-c", "echo on disk >/disk/f").want(t, 0, "")
	// Many read it at a time.
	box := startBox(t, "-v", path+":/disk:ro")
	run(t, []string{"--mount", "type=disk,source=" + path + ",target=/disk,readonly"}, "busybox", "sh", "-c", "cat /disk/f; touch /disk/g").want(t, 1, "on disk\n")
	fcvm(t, "exec", box, "cat", "/disk/f").want(t, 0, "on disk\n")
	run(t, []string{"-v", path + ":/disk"}, "busybox", "true").wantError(t, 125, "is in use", ":ro")
	// As a file it is shared when that is asked for.
	run(t, []string{"--mount", "type=bind,source=" + path + ",target=/file,ro"}, "busybox", "stat", "-c", "%s", "/file").want(t, 0, "33554432\n")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, []string{"--mount", "type=disk,source=" + empty + ",target=/disk"}, "busybox", "true").wantError(t, 125, "no ext4 file system")
}

func TestDiskRate(t *testing.T) {
	slow := func(flags ...string) time.Duration {
		t.Helper()
		box := startBox(t, flags...)
		began := time.Now()
		fcvm(t, "exec", box, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=24", "conv=fsync")
		return time.Since(began)
	}
	// The first second's worth is free.
	if took := slow("--disk-bps", "4m"); took < 3*time.Second {
		t.Errorf("24 MiB at 4 MiB a second took %s", took)
	}
	if took := slow(); took > 20*time.Second {
		t.Errorf("24 MiB without a limit took %s", took)
	}
}

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestDockerDaemon takes an image out of Docker's storage, which a script plays:
// there need be no Docker.
func TestDockerDaemon(t *testing.T) {
	noCredentials(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	dir := t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
echo "$@" >>%[1]s/calls
case "$1 $2" in
"image inspect") [ "$6" = app:1 ] || { echo "Error: No such image: $6" >&2; exit 1; }; echo %[2]s ;;
"image save") [ "$6" = app:1 ] || { echo "Error response from daemon: No such image: $6" >&2; exit 1; }; cp %[3]s "$4" ;;
*) exit 2 ;;
esac
`, dir, configDigest(t, img), writeDocker(t, "app:1", img))
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s := openStore(t)
	for i, cached := range []bool{false, true} {
		got, err := s.Ensure(context.Background(), "docker-daemon:app:1", EnsureOptions{})
		if err != nil || got.Digest != configDigest(t, img) || got.Cached != cached {
			t.Fatalf("%d: %+v, %v", i, got, err)
		}
		got.Release()
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil || strings.Count(string(calls), "image save") != 1 {
		t.Errorf("it was asked:\n%s%v", calls, err)
	}
	if _, err := s.Ensure(context.Background(), "docker-daemon:other", EnsureOptions{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "docker has no image other") {
		t.Errorf("an image that is not there: %v", err)
	}
	checkClean(t, s, 1)
	// Its layers are Docker's to keep: it can be saved as long as that has them.
	if path := save(t, s, FormatDocker, Saving{Digest: got(t, s, "docker-daemon:app:1")}); len(load(t, openStore(t), path)) != 1 {
		t.Error("it was not saved")
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := s.Ensure(context.Background(), "docker-daemon:app:1", EnsureOptions{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "needs docker, which is not installed") {
		t.Errorf("without docker: %v", err)
	}
}

func got(t *testing.T, s *Store, ref string) string {
	t.Helper()
	e, err := s.Find(ref, "")
	if err != nil {
		t.Fatal(err)
	}
	return e.Digest
}

// TestContainersStorage takes an image out of the storage that Podman and
// buildah share, where buildah has made it.
func TestContainersStorage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("as a user buildah needs a namespace of its own")
	}
	if _, err := exec.LookPath("buildah"); err != nil {
		t.Skip("buildah is not installed")
	}
	noCredentials(t)
	dir := t.TempDir()
	conf := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "root"), filepath.Join(dir, "run"))
	if err := os.WriteFile(filepath.Join(dir, "storage.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_STORAGE_CONF", filepath.Join(dir, "storage.conf"))
	buildah := func(args ...string) string {
		out, err := exec.Command("buildah", args...).Output()
		if err != nil {
			t.Fatalf("buildah %q: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	c := buildah("from", "scratch")
	root := buildah("mount", c)
	if err := os.WriteFile(filepath.Join(root, "f"), []byte("from buildah"), 0o600); err != nil {
		t.Fatal(err)
	}
	buildah("umount", c)
	buildah("commit", "--quiet", c, "mine")
	s := openStore(t)
	for _, name := range []string{"mine", "localhost/mine", "mine:latest"} {
		img, err := s.Ensure(context.Background(), "containers-storage:"+name, EnsureOptions{})
		if err != nil || catDisk(t, img.Disk, "f") != "from buildah" {
			t.Errorf("%s: %+v, %v", name, img, err)
		}
		img.Release()
	}
	checkClean(t, s, 1)
	if _, err := s.Ensure(context.Background(), "containers-storage:other", EnsureOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}

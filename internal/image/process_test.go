package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/progress"
)

// Variables that turn the test binary into a process that makes one image.
const (
	envDir = "FCVM_TEST_IMAGE_DIR"
	envRef = "FCVM_TEST_IMAGE_REF"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envDir); dir != "" {
		os.Exit(ensureOne(dir, os.Getenv(envRef)))
	}
	os.Exit(m.Run())
}

func ensureOne(dir, ref string) int {
	s, err := Open(dir)
	if err == nil {
		var img Image
		if img, err = s.Ensure(context.Background(), ref, EnsureOptions{Progress: &recorder{}}); err == nil {
			fmt.Println("cached", img.Cached)
			return 0
		}
	}
	fmt.Println(err)
	return 1
}

func command(t *testing.T, dir, ref string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envDir+"="+dir, envRef+"="+ref)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// incompressible is content that takes a while to convert.
func incompressible(n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(b)
	return string(b)
}

func TestEnsureManyProcesses(t *testing.T) {
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": newImage(t, runtime.GOARCH, map[string]string{"f": incompressible(8 << 20)})})
	s := openStore(t)
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for range 6 {
		cmd, out := command(t, s.dir, ref)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	converted := 0
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, outs[i])
		}
		converted += strings.Count(outs[i].String(), "cached false")
	}
	if converted != 1 {
		t.Errorf("converted %d times", converted)
	}
	checkClean(t, s, 1)
}

// TestEnsureKilled: whenever a process is killed, the next one finds nothing
// half-made and can go on.
func TestEnsureKilled(t *testing.T) {
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": newImage(t, runtime.GOARCH, map[string]string{"f": incompressible(16 << 20)})})
	s := openStore(t)
	whole, err := s.Ensure(context.Background(), ref, EnsureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for i := range 10 {
		dir := filepath.Join(t.TempDir(), "images")
		cmd, _ := command(t, dir, ref)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+i*25) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if work, err := os.ReadDir(filepath.Join(dir, "work")); err == nil {
			left += len(work)
		}
		after, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if work, err := os.ReadDir(after.work()); err != nil || len(work) > 0 {
			t.Errorf("after %d: %v left in work: %v", i, work, err)
		}
		if locks, err := os.ReadDir(after.join("locks")); err != nil || len(locks) > 0 {
			t.Errorf("after %d: %v left in locks: %v", i, locks, err)
		}
		img, err := after.Ensure(context.Background(), ref, EnsureOptions{})
		if err != nil || img.Size != whole.Size {
			t.Errorf("after %d: %v, size %d, want %d", i, err, img.Size, whole.Size)
		}
		checkClean(t, after, 1)
	}
	if left == 0 {
		t.Log("no process was killed while it converted")
	}
}

func TestEnsureWaits(t *testing.T) {
	img := newImage(t, runtime.GOARCH, map[string]string{"f": "1"})
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": img})
	s := openStore(t)
	l, err := tryLock(s.lockFor(configDigest(t, img)))
	if err != nil || l == nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	var p recorder
	if _, err := s.Ensure(ctx, ref, EnsureOptions{Progress: &p}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another has the lock: %v", err)
	}
	if len(p.notes) != 1 || !strings.Contains(p.notes[0], "waiting") {
		t.Errorf("notes: %q", p.notes)
	}
	l.release()
	if _, err := s.Ensure(context.Background(), ref, EnsureOptions{}); err != nil {
		t.Error(err)
	}
}

// TestEnsureFullDisk needs root for its small file system.
func TestEnsureFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	noCredentials(t)
	r := startRegistry(t)
	img := newImage(t, runtime.GOARCH, map[string]string{"f": incompressible(8 << 20)})
	l := writeLayout(t, map[string]v1.Image{"": img})
	for _, ref := range []string{"oci:" + l, r.push(t, "app:v1", img), "oci-archive:" + gzipFile(t, tarDir(t, l))} {
		s, err := Open(filepath.Join(dir, "images"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Ensure(context.Background(), ref, EnsureOptions{})
		if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v, want %v that names %s", ref, err, ErrNoSpace, dir)
		}
		checkClean(t, s, 0)
	}
}

// TestEnsureCancelled interrupts a conversion once it reads a layer.
func TestEnsureCancelled(t *testing.T) {
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": newImage(t, runtime.GOARCH, map[string]string{"f": incompressible(8 << 20)})})
	s := openStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := s.Ensure(ctx, ref, EnsureOptions{Progress: canceller{cancel}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	checkClean(t, s, 0)
}

// canceller cancels at the first byte of progress.
type canceller struct{ cancel func() }

func (c canceller) Task(string, int64) progress.Task { return c }
func (c canceller) Note(string)                      {}
func (c canceller) Add(int64)                        { c.cancel() }
func (c canceller) Done(error)                       {}

func TestOpenUnusable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "images")); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v, want an error that names %s", err, file)
	}
}

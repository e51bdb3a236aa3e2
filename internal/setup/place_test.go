package setup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
)

// kernelDir makes a directory with these files of a kernel.
func kernelDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		writeFile(t, filepath.Join(dir, name), content)
	}
	return dir
}

func TestKernelIDIsOfImageAndModules(t *testing.T) {
	base := map[string]string{"vmlinux": "k", "modules/a.ko": "a", "modules/boot.list": "a.ko\n", "modules/extra.list": ""}
	want, err := kernelID(kernelDir(t, base))
	if err != nil || !isID(want) {
		t.Fatalf("id %q: %v", want, err)
	}
	for name, tc := range map[string]struct {
		file, content string
		same          bool
	}{
		"the same":         {"vmlinux", "k", true},
		"an initramfs":     {"initramfs-1-2.cpio", "made of it", true},
		"another image":    {"vmlinux", "K", false},
		"another module":   {"modules/a.ko", "A", false},
		"one more":         {"modules/b.ko", "", false},
		"another list":     {"modules/boot.list", "", false},
		"a moved boundary": {"modules/extra.list", "x", false},
	} {
		dir := kernelDir(t, base)
		writeFile(t, filepath.Join(dir, tc.file), tc.content)
		if got, err := kernelID(dir); err != nil || (got == want) != tc.same {
			t.Errorf("%s: %s, not %s: %v", name, got, want, err)
		}
	}
	if !isKernel(kernelDir(t, base), sha([]byte("k"))[:idLength]) || isKernel(kernelDir(t, base), sha([]byte("K"))[:idLength]) {
		t.Error("an id as it was before, of the image alone, is not known")
	}
}

// VMs and snapshots name a kernel by its id: what is there under an id stays.
func TestKernelLeavesOthersAlone(t *testing.T) {
	s := newTestSetup(t)
	image := elfFile("k")
	old := filepath.Join(s.layout.Kernels(), sha(image)[:idLength]) // as an older fcvm called it
	writeFile(t, filepath.Join(old, kernelFileName), string(image))
	module := writeFile(t, filepath.Join(old, modulesDirName, "old.ko"), "old")
	file := writeFile(t, filepath.Join(t.TempDir(), "k"), string(image))
	var dirs [2]os.FileInfo
	for i := range dirs {
		if err := s.Kernel(t.Context(), KernelOptions{From: file, Force: true}, progress.Discard); err != nil {
			t.Fatal(err)
		}
		m, err := s.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if m.Kernel.ID == filepath.Base(old) {
			t.Errorf("the kernel without modules is %s, too", m.Kernel.ID)
		}
		if dirs[i], err = os.Stat(filepath.Join(s.layout.Kernels(), m.Kernel.ID, kernelFileName)); err != nil {
			t.Fatal(err)
		}
	}
	if !os.SameFile(dirs[0], dirs[1]) {
		t.Error("an identical kernel was replaced")
	}
	if b, err := os.ReadFile(module); err != nil || string(b) != "old" {
		t.Errorf("the kernel of an older fcvm was changed: %q, %v", b, err)
	}
}

func TestPlaceReplacesWhatIsDamagedWhileNobodyLooks(t *testing.T) {
	s := newTestSetup(t)
	work, err := workDir(s.layout.Roots())
	if err != nil {
		t.Fatal(err)
	}
	whole := writeFile(t, filepath.Join(work, rootFileName), "whole")
	final := filepath.Join(s.layout.Roots(), "aaaaaaaaaaaaaaaa")
	damaged := writeFile(t, filepath.Join(final, rootFileName), "damaged")
	is := func(dir string) bool {
		b, err := os.ReadFile(filepath.Join(dir, rootFileName))
		return err == nil && string(b) == "whole"
	}
	release, err := s.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.place(ctx, work, final, is); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while a VM is about to start: %v", err)
	}
	release()
	if err := s.place(t.Context(), work, final, is); err != nil {
		t.Fatal(err)
	}
	if !is(final) {
		t.Errorf("%s is not in the place of %s", whole, damaged)
	}
}

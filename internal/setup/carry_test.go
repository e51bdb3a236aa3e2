package setup

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/progress"
)

func TestKernelAndRootGoToAnotherHost(t *testing.T) {
	here, there := newTestSetup(t), newTestSetup(t)
	kernel := writeFile(t, filepath.Join(t.TempDir(), "k"), string(elfFile("k")))
	if err := here.Kernel(t.Context(), KernelOptions{From: kernel}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	fakeRoot(t, here)
	a, err := here.Artifacts(t.Context()) // makes an initramfs, which is not a part of the kernel
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := here.PackKernel(t.Context(), a.KernelID, &packed); err != nil {
		t.Fatal(err)
	}
	root, err := here.Root(a.RootID)
	if err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(t.TempDir(), "moved")
	copyFile(t, moved, root)
	for range 2 { // what is there stays
		if err := there.UnpackKernel(t.Context(), a.KernelID, bytes.NewReader(packed.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
	if err := there.TakeRoot(t.Context(), a.RootID, moved); err != nil {
		t.Fatal(err)
	}
	got, err := there.ArtifactsOf(a.KernelID, a.RootID)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{a.Kernel, got.Kernel}, {a.Root, got.Root}} {
		want, err1 := os.ReadFile(pair[0])
		have, err2 := os.ReadFile(pair[1])
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(want, have) {
			t.Errorf("%s is not %s: %v", pair[1], pair[0], err)
		}
	}
	if m, err := there.Manifest(); err != nil || m.Kernel != nil || m.Rootfs != nil {
		t.Errorf("new VMs take it: %+v, %v", m, err)
	}
	var again bytes.Buffer
	if err := there.PackKernel(t.Context(), a.KernelID, &again); err != nil || !bytes.Equal(again.Bytes(), packed.Bytes()) {
		t.Errorf("it is packed in another way there: %v", err)
	}
	if _, err := there.Root("cccccccccccccccc"); !errors.Is(err, ErrNotSetUp) {
		t.Errorf("a root that is not there: %v", err)
	}
	if err := there.PackKernel(t.Context(), "../kernels/"+a.KernelID, &again); !errors.Is(err, ErrNotSetUp) {
		t.Errorf("a path for a kernel: %v", err)
	}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, string(b))
}

func TestKernelsFromElsewhereAreChecked(t *testing.T) {
	id, err := kernelID(kernelDir(t, map[string]string{"vmlinux": "k", "modules/boot.list": ""}))
	if err != nil {
		t.Fatal(err)
	}
	good := []tar.Header{{Name: "vmlinux"}, {Name: "modules/boot.list"}}
	for name, tc := range map[string]struct {
		id   string
		add  tar.Header
		want string
	}{
		"as it is":           {id, tar.Header{}, ""},
		"another id":         {"aaaaaaaaaaaaaaaa", tar.Header{}, "is not aaaaaaaaaaaaaaaa"},
		"a path as id":       {"../../etc", tar.Header{}, "is no id"},
		"one more module":    {id, tar.Header{Name: "modules/evil.ko"}, "is not " + id},
		"an initramfs":       {id, tar.Header{Name: "initramfs-1-2.cpio"}, "no file of a kernel"},
		"a path out of it":   {id, tar.Header{Name: "modules/../../../x"}, "no file of a kernel"},
		"an absolute path":   {id, tar.Header{Name: "/etc/x"}, "no file of a kernel"},
		"a hidden file":      {id, tar.Header{Name: "modules/.x"}, "no file of a kernel"},
		"a symbolic link":    {id, tar.Header{Name: "modules/x", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, "no file of a kernel"},
		"a file twice":       {id, tar.Header{Name: "vmlinux"}, "exists"},
		"a size that lies":   {id, tar.Header{Name: "modules/x", Size: maxKernelFile + 1}, "too large"},
		"what is no archive": {id, tar.Header{Name: "cut"}, "cannot use"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestSetup(t)
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			headers := slices.Clone(good)
			if tc.add.Name != "" && tc.add.Name != "cut" {
				headers = append(headers, tc.add)
			}
			for i, h := range headers {
				if h.Mode = 0o600; i == 0 {
					h.Size = 1
				}
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					_, _ = w.Write([]byte("k"))
				}
			}
			_ = w.Close() // a size that lies is an error, too
			archive := b.Bytes()
			if tc.add.Name == "cut" {
				archive = archive[:300]
			}
			err := s.UnpackKernel(t.Context(), tc.id, bytes.NewReader(archive))
			if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, ErrInput) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v", err)
			}
			if got := left(t, s); err != nil && len(got) != 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

func TestRootsFromElsewhereAreChecked(t *testing.T) {
	s := newTestSetup(t)
	disk := writeFile(t, filepath.Join(t.TempDir(), "disk"), "root")
	for _, id := range []string{"aaaaaaaaaaaaaaaa", "../../etc", ""} {
		if err := s.TakeRoot(t.Context(), id, disk); !errors.Is(err, ErrInput) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if got := left(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if _, err := os.Stat(disk); err != nil {
		t.Error(err)
	}
}

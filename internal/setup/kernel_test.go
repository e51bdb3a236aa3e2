package setup

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/progress"
)

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// serve answers GET requests for these paths, and 404 to others.
func serve(t *testing.T, files map[string][]byte) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(b)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestKernelFromURL(t *testing.T) {
	image := elfFile("from afar")
	url := serve(t, map[string][]byte{"/vmlinux": image})
	for name, tc := range map[string]struct {
		path, sum string
		want      error
		says      string
	}{
		"good":        {"/vmlinux", strings.ToUpper(sha(image)), nil, ""},
		"bad sum":     {"/vmlinux", sha([]byte("x")), ErrChecksum, "it should be"},
		"no sum":      {"/vmlinux", "", ErrInput, "--sha256"},
		"not there":   {"/other", sha(image), ErrDownload, "404"},
		"nobody home": {"", sha(image), ErrDownload, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			s, rep := newTestSetup(t), new(notes)
			from := url + tc.path
			if tc.path == "" {
				from = "http://127.0.0.1:1/x"
			}
			err := s.Kernel(t.Context(), KernelOptions{From: from, SHA256: tc.sum}, rep)
			if rep.open != 0 {
				t.Errorf("%d tasks were not ended", rep.open)
			}
			if tc.want != nil {
				if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v", err)
				}
				if got := left(t, s); len(got) != 0 {
					t.Errorf("left: %v", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m, err := s.Manifest()
			if err != nil || m.Kernel.Source != from || !isKernel(filepath.Join(s.layout.Kernels(), m.Kernel.ID), m.Kernel.ID) {
				t.Errorf("manifest %+v, %v", m.Kernel, err)
			}
			if rep.bytes != int64(len(image)) {
				t.Errorf("progress of %d bytes", rep.bytes)
			}
		})
	}
}

func TestKernelStops(t *testing.T) {
	started := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20))
		_ = http.NewResponseController(w).Flush()
		close(started)
		<-r.Context().Done()
	}))
	defer srv.Close()
	s := newTestSetup(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	err := s.Kernel(ctx, KernelOptions{From: srv.URL, SHA256: sha(nil)}, progress.Discard)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := left(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	// It can be done again, from another place.
	kernel := writeFile(t, filepath.Join(t.TempDir(), "k"), string(elfFile("k")))
	if err := s.Kernel(t.Context(), KernelOptions{From: kernel}, progress.Discard); err != nil {
		t.Error(err)
	}
}

func TestKernelIsIdempotent(t *testing.T) {
	s := newTestSetup(t)
	kernel := writeFile(t, filepath.Join(t.TempDir(), "k"), string(elfFile("k")))
	if err := s.Kernel(t.Context(), KernelOptions{From: kernel}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	before, err := s.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	rep := new(notes)
	if err := s.Kernel(t.Context(), KernelOptions{}, rep); err != nil {
		t.Fatal(err)
	}
	after, err := s.Manifest()
	if err != nil || after.Kernel.Installed != before.Kernel.Installed {
		t.Errorf("installed again: %v", err)
	}
	if len(rep.notes) != 1 || !strings.Contains(rep.notes[0], "is installed") {
		t.Errorf("notes %q", rep.notes)
	}
}

// Another package is another kernel, which "is installed" would not get.
func TestKernelFromAnotherPackage(t *testing.T) {
	s := newTestSetup(t)
	work, err := workDir(s.layout.Kernels())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.installKernel(t.Context(), work, &kernelSource{image: elfFile("k"), version: "1", source: "linux-image-1"}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir()) // no apt: whoever asks it is told
	for name, want := range map[string]error{"": nil, "linux-image-1": nil, "linux-image-2": ErrTool} {
		if err := s.Kernel(t.Context(), KernelOptions{Package: name}, progress.Discard); !errors.Is(err, want) {
			t.Errorf("--package %q: %v", name, err)
		}
	}
}

func TestKernelOptionsAreObeyedOrRefused(t *testing.T) {
	image := elfFile("k")
	file := writeFile(t, filepath.Join(t.TempDir(), "k"), string(image))
	for name, tc := range map[string]struct {
		o    KernelOptions
		want error
		says string
	}{
		"file with its sum":     {KernelOptions{From: file, SHA256: strings.ToUpper(sha(image))}, nil, ""},
		"file with another sum": {KernelOptions{From: file, SHA256: sha(nil)}, ErrChecksum, "it should be"},
		"file and package":      {KernelOptions{From: file, Package: "p"}, ErrInput, "--package"},
		"host and package":      {KernelOptions{From: "host", Package: "p"}, ErrInput, "--package"},
		"URL and package":       {KernelOptions{From: "http://127.0.0.1:1/k", SHA256: sha(nil), Package: "p"}, ErrInput, "--package"},
		"modules alone":         {KernelOptions{Modules: "/m"}, ErrInput, "--modules"},
		"package and modules":   {KernelOptions{From: "package", Modules: "/m"}, ErrInput, "--modules"},
		"host and modules":      {KernelOptions{From: "host", Modules: "/m"}, ErrInput, "--modules"},
		"sum alone":             {KernelOptions{SHA256: sha(nil)}, ErrInput, "--sha256"},
		"host and sum":          {KernelOptions{From: "host", SHA256: sha(nil)}, ErrInput, "--sha256"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestSetup(t)
			err := s.Kernel(t.Context(), tc.o, progress.Discard)
			if !errors.Is(err, tc.want) || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v", err)
			}
			if got := left(t, s); err != nil && len(got) != 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

func TestKernelIsOutdated(t *testing.T) {
	for _, tc := range []struct {
		a    Artifact
		want bool
	}{
		{Artifact{Source: "linux-image-6.1.0-56-cloud-amd64"}, true},
		{Artifact{Source: "linux-image-6.1.0-56-cloud-amd64", Format: kernelFormat}, false},
		{Artifact{Source: "/boot/vmlinuz-6.1.0"}, false},
		{Artifact{Source: "https://kernels.example/vmlinux"}, false},
	} {
		if got := outdated(&tc.a); got != tc.want {
			t.Errorf("%+v: %t", tc.a, got)
		}
	}
}

func TestKernelRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"text":  strings.Repeat("text", 2000),
		"empty": "",
		"arm":   strings.Repeat("\x00", 56) + "ARM\x64" + strings.Repeat("\x00", 100),
		"gzip":  "\x1f\x8bxxxxxxxxxx",
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestSetup(t)
			err := s.Kernel(t.Context(), KernelOptions{From: writeFile(t, filepath.Join(dir, name), content)}, progress.Discard)
			if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
			if got := left(t, s); len(got) != 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
	s := newTestSetup(t)
	if err := s.Kernel(t.Context(), KernelOptions{From: filepath.Join(dir, "absent")}, progress.Discard); !errors.Is(err, ErrInput) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	err := s.Kernel(t.Context(), KernelOptions{From: writeFile(t, filepath.Join(dir, "k"), string(elfFile(""))), Modules: filepath.Join(dir, "absent")}, progress.Discard)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("modules that are not there: %v", err)
	}
}

func TestBootable(t *testing.T) {
	arm := append(make([]byte, 56), "ARM\x64 and so on"...)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(arm); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, in := range [][]byte{arm, zipped.Bytes()} {
		if got, err := bootable(in, "arm64"); err != nil || !bytes.Equal(got, arm) {
			t.Errorf("arm64: %d bytes, %v", len(got), err)
		}
	}
	if _, err := bootable(elfFile(""), "arm64"); !errors.Is(err, ErrInput) {
		t.Errorf("ELF on arm64: %v", err)
	}
}

func TestKernelOfHost(t *testing.T) {
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "boot", "vmlinuz-6.1-test"), string(elfFile("host")))
	writeFile(t, filepath.Join(root, "lib/modules/6.1-test/modules.builtin"), "kernel/fs/ext4/ext4.ko\n")
	src, err := kernelOfHost(root, "6.1-test")
	if err != nil {
		t.Fatal(err)
	}
	s := newTestSetup(t)
	work, err := workDir(s.layout.Kernels())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.installKernel(t.Context(), work, src); err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest()
	if err != nil || m.Kernel.Version != "6.1-test" || len(m.Kernel.Files) != 3 {
		t.Errorf("manifest %+v, %v", m.Kernel, err)
	}
	if _, err := kernelOfHost(root, "6.2"); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "fcvm setup kernel") {
		t.Errorf("another release: %v", err)
	}
}

func TestKernelOfHostsThatAreNotDebian(t *testing.T) {
	says := func(version string) string { // the header of a bzImage
		b := make([]byte, 0x300)
		copy(b[0x202:], "HdrS")
		b[0x20e], b[0x20f] = 0x60, 0x00
		return string(b[:0x260]) + version + " (builder) #1\x00"
	}
	for name, tc := range map[string]struct {
		files map[string]string
		want  string // path of the kernel; empty: there is none
	}{
		"Arch": {map[string]string{"lib/modules/6.9/vmlinuz": says("6.9"), "boot/vmlinuz-linux": says("6.9")}, "lib/modules/6.9/vmlinuz"},
		"with all in /usr": {
			map[string]string{"usr/lib/modules/6.9/vmlinuz": "k", "usr/lib/modules/6.9/modules.builtin": ""}, "usr/lib/modules/6.9/vmlinuz",
		},
		"Alpine":          {map[string]string{"boot/vmlinuz-lts": says("6.8"), "boot/vmlinuz-virt": says("6.9")}, "boot/vmlinuz-virt"},
		"another release": {map[string]string{"boot/vmlinuz-virt": says("6.9-rc1"), "lib/modules/6.8/vmlinuz": says("6.9")}, ""},
		"no bzImage":      {map[string]string{"boot/vmlinuz": "short", "boot/vmlinuz-x": says("")[:0x255]}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, content := range tc.files {
				writeFile(t, filepath.Join(root, path), content)
			}
			src, err := kernelOfHost(root, "6.9")
			if tc.want == "" {
				if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "--from FILE") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || src.source != filepath.Join(root, tc.want) || src.version != "6.9" {
				t.Fatalf("%+v, %v", src, err)
			}
			if strings.HasPrefix(tc.want, "usr/") {
				if _, err := src.modules.Open("modules.builtin"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestUnpackKernel(t *testing.T) {
	root := t.TempDir()
	archive := testTar(t, map[string]string{
		"./boot/vmlinuz-1": "kernel", "./lib/modules/1/kernel/a.ko": "a", "./usr/share/doc/x": "x",
		"./boot/../../escape": "x", "./lib/modules/../../../../escape": "x",
	})
	if err := unpackKernel(bytes.NewReader(archive), root); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := filepath.WalkDir(filepath.Dir(root), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil || strings.Join(got, " ") != "boot/vmlinuz-1 lib/modules/1/kernel/a.ko" {
		t.Errorf("unpacked %v, %v", got, err)
	}
	src, err := kernelInTree(root, "package")
	if err != nil || src.version != "1" || string(src.image) != "kernel" {
		t.Errorf("%+v, %v", src, err)
	}
	writeFile(t, filepath.Join(root, "boot", "vmlinuz-2"), "")
	if _, err := kernelInTree(root, "package"); !errors.Is(err, ErrInput) {
		t.Errorf("two kernels: %v", err)
	}
}

package setup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/progress"
)

// envFirecracker makes this test's program answer as Firecracker does.
const envFirecracker = "FCVM_TEST_FIRECRACKER_SAYS"

func TestMain(m *testing.M) {
	if says := os.Getenv(envFirecracker); says != "" && len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println(says)
		return
	}
	os.Exit(m.Run())
}

// testProgram is a program for this machine that says it is Firecracker.
func testProgram(t *testing.T, says string) []byte {
	t.Helper()
	t.Setenv(envFirecracker, says)
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// firecrackerArchive is a release as upstream makes it.
func firecrackerArchive(t *testing.T, name string, program []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	dir := strings.Replace(name, "firecracker", "release", 1)
	for _, f := range []struct {
		name string
		data []byte
	}{
		{dir + "/LICENSE", []byte("licence")},
		{"../../" + name + "-debug", []byte("never unpacked")},
		{dir + "/" + strings.Replace(name, "firecracker", "jailer", 1), []byte("jailer")},
		{dir + "/" + name, program},
	} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// nativeSetup is newTestSetup for the architecture of this test's program.
func nativeSetup(t *testing.T) (*Setup, firecrackerArch) {
	t.Helper()
	s := newTestSetup(t)
	s.arch = runtime.GOARCH
	arch, err := firecrackerFor(s.arch)
	if err != nil {
		t.Skip(err)
	}
	return s, arch
}

func TestFirecrackerDownload(t *testing.T) {
	s, arch := nativeSetup(t)
	name := "firecracker-v9.8.7-" + arch.name
	archive := firecrackerArchive(t, name, testProgram(t, "Firecracker v9.8.7\n\nand a log line"))
	url := serve(t, map[string][]byte{
		"/v9.8.7/" + name + ".tgz":            archive,
		"/v9.8.7/" + name + ".tgz.sha256.txt": []byte(sha(archive) + "  " + name + ".tgz\n"),
	})
	rep := new(notes)
	if err := s.Firecracker(t.Context(), FirecrackerOptions{Version: "9.8.7", Mirror: url + "/"}, rep); err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest()
	if err != nil || m.Firecracker.Version != "v9.8.7" || m.Firecracker.Source != url+"/v9.8.7/"+name+".tgz" {
		t.Fatalf("recorded %+v, %v", m.Firecracker, err)
	}
	if rep.open != 0 || rep.bytes != int64(len(archive)) {
		t.Errorf("%d tasks open, %d bytes of %d", rep.open, rep.bytes, len(archive))
	}
	path := filepath.Join(s.layout.Data, m.Firecracker.Files[0].Path)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o100 == 0 || !strings.HasPrefix(path, s.layout.Bin()) {
		t.Errorf("%s: %v", path, err)
	}
	if got := left(t, s); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
	rep = new(notes)
	if err := s.Firecracker(t.Context(), FirecrackerOptions{}, rep); err != nil || len(rep.notes) != 1 {
		t.Errorf("again: %v, notes %q", err, rep.notes)
	}
}

func TestFirecrackerRefuses(t *testing.T) {
	_, arch := nativeSetup(t)
	name := "firecracker-v9.8.7-" + arch.name
	good := firecrackerArchive(t, name, testProgram(t, "Firecracker v9.8.7"))
	base := "/v9.8.7/" + name + ".tgz"
	files := func(archive []byte, sum string) map[string][]byte {
		return map[string][]byte{base: archive, base + ".sha256.txt": []byte(sum)}
	}
	other := firecrackerArchive(t, "other", []byte("x"))
	text := firecrackerArchive(t, name, []byte("text"))
	for test, tc := range map[string]struct {
		files map[string][]byte
		says  string
		want  error
		text  string
	}{
		"bad checksum":    {files: files(good, sha([]byte("x"))+"  x"), want: ErrChecksum, text: "it should be"},
		"no archive":      {files: map[string][]byte{base + ".sha256.txt": []byte(sha(good))}, want: ErrDownload, text: "404"},
		"no checksum":     {files: map[string][]byte{base: good}, want: ErrDownload, text: "404"},
		"odd checksum":    {files: files(good, "hello"), want: ErrDownload, text: "holds no SHA-256"},
		"without program": {files: files(other, sha(other)), want: ErrInput, text: "no " + name},
		"no gzip":         {files: files([]byte("text"), sha([]byte("text"))), want: ErrInput},
		"truncated":       {files: files(good[:1000], sha(good[:1000])), want: ErrInput},
		"no program":      {files: files(text, sha(text)), want: ErrInput, text: "is no program"},
		"another program": {files: files(good, sha(good)), says: "QEMU 10", want: ErrInput, text: "is no Firecracker"},
	} {
		t.Run(test, func(t *testing.T) {
			if tc.says != "" {
				t.Setenv(envFirecracker, tc.says)
			}
			s, _ := nativeSetup(t)
			rep := new(notes)
			err := s.Firecracker(t.Context(), FirecrackerOptions{Version: "v9.8.7", Mirror: serve(t, tc.files)}, rep)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
			if errors.Is(tc.want, ErrDownload) && !strings.Contains(err.Error(), "--from-file") {
				t.Errorf("does not say how to go on: %v", err)
			}
			if got := left(t, s); len(got) != 0 || rep.open != 0 {
				t.Errorf("left: %v, %d tasks open", got, rep.open)
			}
			if m, err := s.Manifest(); err != nil || m.Firecracker != nil {
				t.Errorf("recorded %+v, %v", m.Firecracker, err)
			}
		})
	}
	s, _ := nativeSetup(t)
	for _, version := range []string{"latest", "1.2", "v1.2.3/../x"} {
		if err := s.Firecracker(t.Context(), FirecrackerOptions{Version: version}, progress.Discard); !errors.Is(err, ErrInput) {
			t.Errorf("version %q: %v", version, err)
		}
	}
	if err := New(paths.Layout{}, "riscv64", "").Firecracker(t.Context(), FirecrackerOptions{}, progress.Discard); !errors.Is(err, ErrInput) {
		t.Errorf("riscv64: %v", err)
	}
}

// TestFirecrackerPinned: a mirror cannot give another program for the version
// whose sum is known.
func TestFirecrackerPinned(t *testing.T) {
	s, arch := nativeSetup(t)
	name := "firecracker-" + firecrackerVersion + "-" + arch.name
	archive := firecrackerArchive(t, name, testProgram(t, "Firecracker "+firecrackerVersion))
	base := "/" + firecrackerVersion + "/" + name + ".tgz"
	url := serve(t, map[string][]byte{base: archive, base + ".sha256.txt": []byte(sha(archive))})
	err := s.Firecracker(t.Context(), FirecrackerOptions{Mirror: url}, progress.Discard)
	if !errors.Is(err, ErrChecksum) || !strings.Contains(err.Error(), arch.sum) {
		t.Errorf("got %v", err)
	}
}

func TestFirecrackerFromFile(t *testing.T) {
	s, _ := nativeSetup(t)
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "fc"), string(testProgram(t, "Firecracker v1.15.0-dev")))
	if err := s.Firecracker(t.Context(), FirecrackerOptions{FromFile: file}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest()
	if err != nil || m.Firecracker.Version != "v1.15.0-dev" || m.Firecracker.Source != file {
		t.Errorf("recorded %+v, %v", m.Firecracker, err)
	}
	foreign := elfFile("")
	foreign[18] = 8 // MIPS
	for name, path := range map[string]string{
		"absent":    filepath.Join(dir, "absent"),
		"directory": dir,
		"text":      writeFile(t, filepath.Join(dir, "text"), "text"),
		"foreign":   writeFile(t, filepath.Join(dir, "foreign"), string(foreign)),
	} {
		if err := s.Firecracker(t.Context(), FirecrackerOptions{FromFile: path}, progress.Discard); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Firecracker(t.Context(), FirecrackerOptions{FromFile: file, Version: "v1.15.0"}, progress.Discard); !errors.Is(err, ErrInput) {
		t.Errorf("file and version: %v", err)
	}
	if after, err := s.Manifest(); err != nil || after.Firecracker.ID != m.Firecracker.ID {
		t.Errorf("after failures: %+v, %v", after.Firecracker, err)
	}
	if got := left(t, s); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}

func TestAll(t *testing.T) {
	s, _ := nativeSetup(t)
	kernel := writeFile(t, filepath.Join(t.TempDir(), "k"), string(elfFile("k")))
	s.arch = "amd64"
	if err := s.Kernel(t.Context(), KernelOptions{From: kernel}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	fakeRoot(t, s)
	s.arch = runtime.GOARCH

	// Nobody answers there.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.firecrackerURL = "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rep := new(notes)
	if err := s.All(t.Context(), AllOptions{Firecracker: true, Fallback: true}, rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.notes) != 3 || !strings.Contains(rep.notes[2], "--from-file") {
		t.Errorf("notes %q", rep.notes)
	}
	if err := s.All(t.Context(), AllOptions{Firecracker: true}, rep); !errors.Is(err, ErrDownload) {
		t.Errorf("without another VMM: %v", err)
	}
	// One that is installed and cannot be used is no Firecracker.
	old := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(old, testProgram(t, "Firecracker v1.0.0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Firecracker(t.Context(), FirecrackerOptions{FromFile: old}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if err := s.All(t.Context(), AllOptions{Firecracker: true}, rep); !errors.Is(err, ErrDownload) {
		t.Errorf("with one that cannot be used: %v", err)
	}
	rep = new(notes)
	if err := s.All(t.Context(), AllOptions{}, rep); err != nil || len(rep.notes) != 2 {
		t.Errorf("without Firecracker: %v, notes %q", err, rep.notes)
	}
	s.agent = ""
	t.Setenv("FCVM_AGENT", "")
	if err := s.All(t.Context(), AllOptions{}, rep); !errors.Is(err, ErrNotSetUp) {
		t.Errorf("without an agent: %v", err)
	}
}

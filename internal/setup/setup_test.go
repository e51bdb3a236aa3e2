package setup

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/progress"
)

// newTestSetup is a setup of an empty data directory, with an agent.
func newTestSetup(t *testing.T) *Setup {
	t.Helper()
	dir := t.TempDir()
	agent := filepath.Join(dir, "fc-agent")
	if err := os.WriteFile(agent, []byte("agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	return New(paths.Layout{Data: filepath.Join(dir, "data"), Runtime: filepath.Join(dir, "run")}, "amd64", agent)
}

// left returns what lies below the data directory, but for locks and the manifest.
func left(t *testing.T, s *Setup) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(s.layout.Data, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path != s.layout.SetupLock() && path != s.layout.Setup() {
			found = append(found, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return found
}

// notes keeps what is reported.
type notes struct {
	mu    sync.Mutex
	notes []string
	tasks []string
	open  int
	bytes int64
}

func (n *notes) Note(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notes = append(n.notes, line)
}

func (n *notes) Task(name string, _ int64) progress.Task {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tasks = append(n.tasks, name)
	n.open++
	return noteTask{n}
}

type noteTask struct{ n *notes }

func (t noteTask) Add(b int64) {
	t.n.mu.Lock()
	defer t.n.mu.Unlock()
	t.n.bytes += b
}

func (t noteTask) Done(error) {
	t.n.mu.Lock()
	defer t.n.mu.Unlock()
	t.n.open--
}

// elfFile is a header of an ELF executable for x86_64, with content after it.
func elfFile(content string) []byte {
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 62)
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = append(b, make([]byte, 28)...)
	b = binary.LittleEndian.AppendUint16(b, 64)
	return append(append(b, make([]byte, 10)...), content...)
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fakeRoot records a guest root that is there.
func fakeRoot(t *testing.T, s *Setup) string {
	t.Helper()
	work, err := workDir(s.layout.Roots())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(work, rootFileName), "root")
	if err := s.installRoot(t.Context(), &Artifact{Version: "test", Source: "test", Format: rootFormat}, work); err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(s.layout.Data, m.Rootfs.Files[0].Path)
}

func TestArtifacts(t *testing.T) {
	s := newTestSetup(t)
	refused := func(want ...string) {
		t.Helper()
		_, err := s.Artifacts(t.Context())
		if !errors.Is(err, ErrNotSetUp) {
			t.Fatalf("got %v", err)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("no %q in %q", w, err)
			}
		}
	}
	refused("no kernel", "no guest root", "run: fcvm setup", s.layout.Data)

	kernel := writeFile(t, filepath.Join(t.TempDir(), "vmlinux"), string(elfFile("one")))
	if err := s.Kernel(t.Context(), KernelOptions{From: kernel}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	refused("no guest root")
	root := fakeRoot(t, s)

	a, err := s.Artifacts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(a.Kernel); err != nil || string(b) != string(elfFile("one")) {
		t.Errorf("kernel %s: %v", a.Kernel, err)
	}
	if a.Root != root || a.RootID == "" || a.KernelID == "" || a.KernelVersion != "vmlinux" || a.Firecracker != "" {
		t.Errorf("artifacts %+v", a)
	}
	b, err := os.ReadFile(a.Initrd)
	if err != nil || !strings.Contains(string(b), "init\x00") || !strings.Contains(string(b), "agent") {
		t.Errorf("initramfs of %d bytes: %v", len(b), err)
	}

	// Another agent gives another initramfs, and the old one goes.
	writeFile(t, s.agent, "a newer agent")
	again, err := s.Artifacts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.Initrd); again.Initrd == a.Initrd || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("initramfs of the old agent: %v", err)
	}

	if err := os.Truncate(root, 1); err != nil {
		t.Skip("root file cannot be changed:", err)
	}
	refused("guest root is damaged", "has changed")
}

func TestManifest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "setup.json")
	m, err := readManifest(path)
	if err != nil || m.Schema != manifestSchema || m.Kernel != nil {
		t.Fatalf("empty: %+v, %v", m, err)
	}
	m.Kernel = &Artifact{ID: "x", Files: []File{{Path: "kernels/x", Size: 3}}}
	if err := m.write(path); err != nil {
		t.Fatal(err)
	}
	back, err := readManifest(path)
	if err != nil || back.Kernel == nil || back.Kernel.Files[0] != m.Kernel.Files[0] {
		t.Errorf("read back %+v, %v", back, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	for _, bad := range []string{"", "{", `{"schema":99}`, "[]"} {
		writeFile(t, path, bad)
		if _, err := readManifest(path); !errors.Is(err, ErrManifest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestWhole(t *testing.T) {
	s := newTestSetup(t)
	for _, path := range []string{"/etc/passwd", "../x", "a/../../x"} {
		if err := s.whole(&Artifact{Files: []File{{Path: path}}}); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLockSweeps(t *testing.T) {
	s := newTestSetup(t)
	work, err := workDir(s.layout.Kernels())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(work, "half", "made"), "x")
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := left(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, err := s.lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second setup at the same time: %v", err)
	}
	unlock()
	if unlock, err = s.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestFindAgent(t *testing.T) {
	s := newTestSetup(t)
	if got, err := s.findAgent(); err != nil || got != s.agent {
		t.Errorf("%s, %v", got, err)
	}
	other := writeFile(t, filepath.Join(t.TempDir(), "other"), "x")
	t.Setenv("FCVM_AGENT", other)
	s.agent = ""
	if got, err := s.findAgent(); err != nil || got != other {
		t.Errorf("%s, %v", got, err)
	}
	t.Setenv("FCVM_AGENT", filepath.Join(t.TempDir(), "absent"))
	if _, err := s.findAgent(); !errors.Is(err, ErrNotSetUp) || !strings.Contains(err.Error(), "FCVM_AGENT") {
		t.Errorf("none: %v", err)
	}
}

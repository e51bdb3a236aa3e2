package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/vmm"
)

// loaded answers as for a machine of this shape.
func loaded(cpus, mib int) func(string, string, []byte) (int, string) {
	return func(method, _ string, _ []byte) (int, string) {
		if method == http.MethodGet {
			return http.StatusOK, fmt.Sprintf(`{"vcpu_count":%d,"mem_size_mib":%d,"smt":false}`, cpus, mib)
		}
		return http.StatusNoContent, ""
	}
}

func TestLoad(t *testing.T) {
	memory := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(memory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := `{"snapshot_path":"/state","mem_backend":{"backend_type":"File","backend_path":"` + memory + `"},"resume_vm":false`
	for _, c := range []struct {
		name, version string
		from          vmm.RestoreFrom
		metadata      string
		mib           int
		want          []string
	}{
		{"a file", "1.13.0", vmm.RestoreFrom{Memory: memory}, "", 512, []string{"PUT /snapshot/load " + file + "}", "GET /machine-config"}},
		{"tracked, of old", "1.13.0-dev", vmm.RestoreFrom{Memory: memory, TrackDirty: true}, "", 512, []string{"PUT /snapshot/load " + file + `,"enable_diff_snapshots":true}`, "GET /machine-config"}},
		{"tracked", "1.14.0", vmm.RestoreFrom{Memory: memory, TrackDirty: true}, "", 512, []string{"PUT /snapshot/load " + file + `,"track_dirty_pages":true}`, "GET /machine-config"}},
		{"tracked in vain", "1.14.1", vmm.RestoreFrom{Memory: memory, TrackDirty: true}, "", 4096, []string{"PUT /snapshot/load " + file + "}", "GET /machine-config"}},
		{"a server", "1.13.0", vmm.RestoreFrom{PageServer: "/server"}, "", 512, []string{`PUT /snapshot/load {"snapshot_path":"/state","mem_backend":{"backend_type":"Uffd","backend_path":"/server"},"resume_vm":false}`, "GET /machine-config"}},
		{"metadata", "1.13.0", vmm.RestoreFrom{Memory: memory}, `{"plan":"{}"}`, 512, []string{"PUT /snapshot/load " + file + "}", "GET /machine-config", `PUT /mmds {"plan":"{}"}`}},
	} {
		f := newFake(t, int64(c.mib)<<20)
		f.answer = loaded(2, c.mib)
		cfg := vmm.Config{CPUs: 2, MemoryMiB: c.mib}
		if c.metadata != "" {
			cfg.Metadata = json.RawMessage(c.metadata)
		}
		c.from.State = "/state"
		if err := f.load(t.Context(), &cfg, c.from, release{c.version}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := cmp.Diff(c.want, f.asked); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

func TestLoadFails(t *testing.T) {
	for _, c := range []struct {
		name         string
		answer       func(string, string, []byte) (int, string)
		incompatible bool
		message      string
	}{
		{"another version", func(string, string, []byte) (int, string) { return fault400("Invalid data version: 7.0.0") }, true, "Invalid data version: 7.0.0"},
		{"a tap in use", func(string, string, []byte) (int, string) {
			return fault400("Error while creating ifreq: Resource busy (os error 16)")
		}, false, "os error 16"},
		{"another shape", loaded(4, 512), true, "4 CPUs"},
	} {
		f := newFake(t, 512<<20)
		f.answer = c.answer
		err := f.load(t.Context(), &vmm.Config{CPUs: 2, MemoryMiB: 512}, vmm.RestoreFrom{State: "/state", Memory: "/memory"}, release{"1.13.0"})
		if err == nil || errors.Is(err, vmm.ErrIncompatible) != c.incompatible || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCheckRestore(t *testing.T) {
	dir := t.TempDir()
	state, memory, empty := filepath.Join(dir, "state"), filepath.Join(dir, "memory"), filepath.Join(dir, "empty")
	for path, size := range map[string]int{state: 9, memory: 2 << 20, empty: 0} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		cfg  vmm.Config
		from vmm.RestoreFrom
		want error
	}{
		{"whole", vmm.Config{MemoryMiB: 2}, vmm.RestoreFrom{State: state, Memory: memory}, nil},
		{"by a server", vmm.Config{MemoryMiB: 2, HugePages: true}, vmm.RestoreFrom{State: state, PageServer: "/server"}, nil},
		{"too small", vmm.Config{MemoryMiB: 4}, vmm.RestoreFrom{State: state, Memory: memory}, vmm.ErrIncompatible},
		{"empty", vmm.Config{MemoryMiB: 2}, vmm.RestoreFrom{State: empty, Memory: memory}, vmm.ErrIncompatible},
		{"no state", vmm.Config{MemoryMiB: 2}, vmm.RestoreFrom{State: state + "x", Memory: memory}, fs.ErrNotExist},
		{"no memory", vmm.Config{MemoryMiB: 2}, vmm.RestoreFrom{State: state, Memory: memory + "x"}, fs.ErrNotExist},
		{"huge pages from a file", vmm.Config{MemoryMiB: 2, HugePages: true}, vmm.RestoreFrom{State: state, Memory: memory}, vmm.ErrUnsupported},
	} {
		if err := checkRestore(&c.cfg, &c.from); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

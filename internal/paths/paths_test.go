package paths

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		flag      string
		env       map[string]string
		uid       int
		data, run string
	}{
		"root":         {"", nil, 0, "/var/lib/fcvm", "/run/fcvm"},
		"root has XDG": {"", map[string]string{"HOME": "/root", "XDG_DATA_HOME": "/d", "XDG_RUNTIME_DIR": "/r"}, 0, "/var/lib/fcvm", "/run/fcvm"},
		"user":         {"", map[string]string{"HOME": "/home/u"}, 1000, "/home/u/.local/share/fcvm", "/tmp/fcvm-1000"},
		"user has XDG": {"", map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "/d", "XDG_RUNTIME_DIR": "/run/user/1000"}, 1000, "/d/fcvm", "/run/user/1000/fcvm"},
		"relative XDG": {"", map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "d", "XDG_RUNTIME_DIR": "./r"}, 1000, "/home/u/.local/share/fcvm", "/tmp/fcvm-1000"},
		"XDG, no home": {"", map[string]string{"XDG_DATA_HOME": "/d"}, 1000, "/d/fcvm", "/tmp/fcvm-1000"},
		"no TMPDIR":    {"", map[string]string{"HOME": "/h", "TMPDIR": "/elsewhere"}, 7, "/h/.local/share/fcvm", "/tmp/fcvm-7"},
		"variables":    {"", map[string]string{"HOME": "/h", "FCVM_DATA_DIR": "/fd", "FCVM_RUNTIME_DIR": "/fr", "XDG_RUNTIME_DIR": "/r"}, 1000, "/fd", "/fr"},
		"root's own":   {"", map[string]string{"FCVM_DATA_DIR": "/fd", "FCVM_RUNTIME_DIR": "/fr"}, 0, "/fd", "/fr"},
		"flag":         {"/flag/", map[string]string{"FCVM_DATA_DIR": "/fd"}, 0, "/flag", "/run/fcvm"},
		"relative":     {"x/../y", map[string]string{"FCVM_RUNTIME_DIR": "r"}, 0, filepath.Join(wd, "y"), filepath.Join(wd, "r")},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Resolve(tc.flag, func(k string) string { return tc.env[k] }, tc.uid)
			if err != nil || l.Data != tc.data || l.Runtime != tc.run {
				t.Errorf("got %+v, %v; want %s and %s", l, err, tc.data, tc.run)
			}
		})
	}
	if _, err := Resolve("", func(string) string { return "" }, 1000); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("nothing to go by: %v", err)
	}
}

func TestSocketLimit(t *testing.T) {
	const id = "0123456789ab"
	fit := SocketLimit - len("/vms/"+id+".sock")
	l := Layout{Runtime: "/" + strings.Repeat("r", fit-1)}
	path, err := l.ControlSocket(id)
	if err != nil || len(path) != SocketLimit {
		t.Errorf("%d bytes: %v", len(path), err)
	}
	l.Runtime += "r"
	if _, err := l.ControlSocket(id); !errors.Is(err, ErrSocketPath) || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("a byte too long: %v", err)
	}
	if _, err := l.MemorySocket(id); !errors.Is(err, ErrSocketPath) {
		t.Errorf("a memory server's, which is longer: %v", err)
	}
	if err := l.RemoveControlSocket(id); err != nil {
		t.Errorf("remove what could not be made: %v", err)
	}
}

func TestRemoveControlSocket(t *testing.T) {
	l := Layout{Runtime: t.TempDir()}
	path, err := l.ControlSocket("x")
	if err != nil {
		t.Skipf("the temporary directory's path is too long: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.RemoveControlSocket("x"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it is left")
	}
}

// Everything lies below the one directory that a person has named.
func TestNamesLieBelowTheirDirectories(t *testing.T) {
	l := Layout{Data: "/data", Runtime: "/run"}
	seen := map[string]bool{}
	for _, p := range []string{
		l.Setup(), l.Lock(), l.SetupLock(), l.Bin(), l.Kernels(), l.Roots(), l.ScratchTemplates(), l.Images(), l.VMs(),
	} {
		if filepath.Dir(p) != "/data" || seen[p] {
			t.Errorf("%s", p)
		}
		seen[p] = true
	}
	d := l.VM("id")
	for _, p := range []string{
		d.Record(), d.Lock(), d.Console(), d.VMMLog(), d.ContainerLog(), d.Scratch(),
		filepath.Join(string(d), KernelName), filepath.Join(string(d), InitrdName), filepath.Join(string(d), RootName),
		filepath.Join(string(d), ImageName), filepath.Join(string(d), VsockName),
	} {
		if filepath.Dir(p) != "/data/vms/id" || seen[p] {
			t.Errorf("%s", p)
		}
		seen[p] = true
	}
}

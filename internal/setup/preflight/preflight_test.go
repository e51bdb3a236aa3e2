package preflight

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/vmm"
)

type fakeDriver struct {
	name string
	a    vmm.Availability
}

func (d fakeDriver) Name() string                           { return d.name }
func (d fakeDriver) Probe(context.Context) vmm.Availability { return d.a }

func TestRun(t *testing.T) {
	usable := fakeDriver{"qemu", vmm.Availability{Usable: true, Program: "/usr/bin/qemu", Version: "10.0", Reason: "emulates, without KVM"}}
	broken := fakeDriver{"firecracker", vmm.Availability{Reason: "KVM runs no ordinary guest"}}
	kvm := func(context.Context) KVM { return KVM{Present: true, Permitted: true} }

	r := Run(t.Context(), Options{DataDir: filepath.Join(t.TempDir(), "data"), KVM: kvm, Drivers: []Driver{broken, usable}})
	if r.Driver != "qemu" || !strings.Contains(r.Why, "without KVM") || !strings.Contains(r.Why, "firecracker: KVM runs no") {
		t.Errorf("driver %q because %q", r.Driver, r.Why)
	}
	seen := map[string]Check{}
	for _, c := range r.Checks {
		if _, twice := seen[c.Name]; twice {
			t.Errorf("check %q comes twice", c.Name)
		}
		seen[c.Name] = c
		if c.Detail == "" {
			t.Errorf("check %q has no detail", c.Name)
		}
		if c.Status != OK && c.Remedy == "" {
			t.Errorf("check %q is %s and has no remedy", c.Name, c.Status)
		}
		if c.Status == OK && c.Remedy != "" {
			t.Errorf("check %q is ok and has the remedy %q", c.Name, c.Remedy)
		}
	}
	if seen["kvm"].Status != Warn || seen["firecracker"].Status != Warn || seen["qemu"].Status != OK {
		t.Errorf("kvm, firecracker, qemu: %+v %+v %+v", seen["kvm"], seen["firecracker"], seen["qemu"])
	}

	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, back); d != "" {
		t.Error("JSON loses something:", d)
	}
}

func TestRunWithoutDriver(t *testing.T) {
	r := Run(t.Context(), Options{DataDir: t.TempDir(), Drivers: []Driver{fakeDriver{"qemu", vmm.Availability{Reason: "not installed"}}}})
	if r.OK || r.Driver != "" || !strings.Contains(r.Why, "qemu: not installed") {
		t.Errorf("report %+v", r)
	}
}

func TestKVMCheck(t *testing.T) {
	for _, tc := range []struct {
		name   string
		kvm    KVM
		status Status
		want   string
	}{
		{"works", KVM{true, true, true, true, "", ""}, OK, "ordinary guest"},
		{"absent", KVM{}, Warn, "not there"},
		{"forbidden", KVM{Present: true}, Warn, "not be opened"},
		{"paravirtual", KVM{Present: true, Permitted: true}, Warn, "no ordinary guest"},
		{"own words", KVM{Present: true, Reason: "mine", Remedy: "do"}, Warn, "mine"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := checkKVM(t.Context(), func(context.Context) KVM { return tc.kvm })
			if c.Status != tc.status || !strings.Contains(c.Detail, tc.want) || (c.Status != OK && c.Remedy == "") {
				t.Errorf("got %+v", c)
			}
		})
	}
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	if c := checkDisk(filepath.Join(dir, "a", "b")); c.Status == Fail {
		t.Errorf("directory to be made: %+v", c)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if c := checkDisk(path); c.Status != Fail || !strings.Contains(c.Remedy, "--data-dir") {
			t.Errorf("%s: %+v", path, c)
		}
	}
	if os.Getuid() == 0 {
		t.Log("running as root: an unwritable directory cannot be made")
		return
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if c := checkDisk(filepath.Join(dir, "x")); c.Status != Fail {
		t.Errorf("unwritable: %+v", c)
	}
}

func TestParseCPU(t *testing.T) {
	for _, tc := range []struct{ in, model, flag string }{
		{"processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu vmx sse\n", "Xeon", "vmx"},
		{"model name\t: EPYC\nflags\t\t: fpu svm\nmodel name\t: other\n", "EPYC", "svm"},
		{"model name\t: Plain\nflags\t\t: fpu svm_lock\n", "Plain", ""},
		{"processor\t: 0\nFeatures\t: fp asimd\n", "", ""},
		{"", "", ""},
	} {
		if m, f := parseCPU([]byte(tc.in)); m != tc.model || f != tc.flag {
			t.Errorf("%q: %q %q", tc.in, m, f)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for _, tc := range []struct {
		in           string
		major, minor int
		ok           bool
	}{
		{"6.1.0-56-cloud-amd64", 6, 1, true},
		{"5.10-rc1", 5, 10, true},
		{"6.18", 6, 18, true},
		{"6", 0, 0, false},
		{"x.y", 0, 0, false},
		{"", 0, 0, false},
	} {
		major, minor, ok := parseRelease(tc.in)
		if ok != tc.ok || ok && (major != tc.major || minor != tc.minor) {
			t.Errorf("%q: %d %d %v", tc.in, major, minor, ok)
		}
	}
}

func TestParseMemAvailable(t *testing.T) {
	got, err := parseMemAvailable([]byte("MemTotal: 10 kB\nMemAvailable:     2048 kB\n"))
	if err != nil || got != 2048<<10 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, in := range []string{"", "MemAvailable: x kB\n", "MemAvailable: -1 kB\n", "MemAvailable: 99999999999999999 kB\n"} {
		if _, err := parseMemAvailable([]byte(in)); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	for in, want := range map[string]string{
		"0::/user.slice/a\n":    "/user.slice/a",
		"5:cpu:/x\n0::/y\n":     "/y",
		"5:cpu:/x\n":            "/",
		"":                      "/",
		"10:memory:/m\n1:name:": "/",
	} {
		if got := parseCgroup([]byte(in)); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestHasSubIDs(t *testing.T) {
	const file = "alice:100000:65536\n1002:1:65536\nshort:1:100\nbad:1:x\nodd\n"
	for _, tc := range []struct {
		name string
		uid  int
		want bool
	}{
		{"alice", 1000, true},
		{"bob", 1002, true},
		{"short", 1003, false},
		{"bad", 1004, false},
		{"carol", 1005, false},
	} {
		if got := hasSubIDs([]byte(file), tc.name, tc.uid); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestUserNamespaceRemedy(t *testing.T) {
	for name, value := range map[string]string{
		"kernel.unprivileged_userns_clone":             "0",
		"kernel.apparmor_restrict_unprivileged_userns": "1",
		"user.max_user_namespaces":                     "0",
	} {
		got := userNamespaceRemedy(func(n string) string {
			if n == name {
				return value
			}
			return ""
		})
		if !strings.Contains(got, name) {
			t.Errorf("%s=%s: remedy %q", name, value, got)
		}
	}
	if got := userNamespaceRemedy(func(string) string { return "" }); got == "" {
		t.Error("no remedy when no switch is known")
	}
}

func TestToolCheck(t *testing.T) {
	tl := tool{name: "x", programs: []string{"a"}, rootOnly: []string{"b"}, pkg: "pkg", purpose: "p"}
	have := func(name string) func(string) string {
		return func(p string) string { return map[string]string{name: "/bin/" + name}[p] }
	}
	for _, uid := range []int{0, 1000} {
		if c := tl.check(uid, have("a")); c.Status != OK || c.Detail != "/bin/a" {
			t.Errorf("user %d, first program: %+v", uid, c)
		}
	}
	if c := tl.check(0, have("b")); c.Status != OK || c.Detail != "/bin/b" {
		t.Errorf("root, second program: %+v", c)
	}
	if c := tl.check(1000, have("b")); c.Status != Warn || !strings.Contains(c.Remedy, "pkg") || strings.Contains(c.Detail, "b is") {
		t.Errorf("ordinary user, root's program: %+v", c)
	}
	tl.always = true
	if c := tl.check(0, have("")); c.Status != Fail || !strings.Contains(c.Remedy, "pkg") {
		t.Errorf("none: %+v", c)
	}
}

func TestRootfsTools(t *testing.T) {
	names := func(uid int) string {
		var s []string
		for _, c := range RootfsTools(t.Context(), uid) {
			if c.Status != OK && c.Remedy == "" {
				t.Errorf("%s has no remedy", c.Name)
			}
			s = append(s, c.Name)
		}
		return strings.Join(s, ", ")
	}
	if got := names(0); got != "mmdebstrap" {
		t.Errorf("root: %s", got)
	}
	if got := names(54321); got != "mmdebstrap, newuidmap, subordinate ids, user namespaces" {
		t.Errorf("ordinary user: %s", got)
	}
}

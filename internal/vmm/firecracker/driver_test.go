package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
)

// script makes a program of a few lines of shell in place of Firecracker.
func script(t *testing.T, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbe(t *testing.T) {
	t.Setenv("PATH", "/usr/bin:/bin")
	good, bad := kvm.Result{RunsGuest: true}, kvm.Result{Reason: "there is no /dev/kvm", Remedy: "get one"}
	says := func(version string) string {
		return script(t, fmt.Sprintf("echo 'Firecracker v%s'; echo; echo '2026-01-01T00:00:00 [anonymous-instance:main] exiting'", version))
	}
	for _, c := range []struct {
		name, program   string
		k               kvm.Result
		usable          bool
		version, reason string
	}{
		{"usable", says("1.13.0-dev"), good, true, "1.13.0-dev", "with KVM"},
		{"the oldest", says("1.8.0"), good, true, "1.8.0", "with KVM"},
		{"the next major", says("2.0.1"), good, true, "2.0.1", "with KVM"},
		{"too old", says("1.7.9"), good, false, "1.7.9", "older than 1.8"},
		{"no KVM", says("1.13.0"), bad, false, "1.13.0", "there is no /dev/kvm"},
		{"another program", script(t, "echo something else"), good, false, "", "something else"},
		{"fails", script(t, "exit 3"), good, false, "", "exit status 3"},
		{"not there", "/nonexistent/firecracker", good, false, "", "no such file"},
	} {
		a := New(c.program, func() kvm.Result { return c.k }, nil).Probe(t.Context())
		if a.Usable != c.usable || a.Version != c.version || !strings.Contains(a.Reason, c.reason) || a.Usable == (a.Remedy != "") {
			t.Errorf("%s: %+v", c.name, a)
		}
	}
}

func TestNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	d := New("", func() kvm.Result { return kvm.Result{RunsGuest: true} }, nil)
	if a := d.Probe(t.Context()); a.Usable || a.Remedy == "" {
		t.Errorf("%+v", a)
	}
	if _, err := d.Start(t.Context(), vmm.Config{}); !errors.Is(err, vmm.ErrUnavailable) {
		t.Error(err)
	}
}

// A Firecracker that ends before it answers is not waited for, and what it
// wrote last is the reason.
func TestStartReportsTheEnd(t *testing.T) {
	cfg := testConfig(t)
	var err error
	for _, f := range []struct {
		name string
		to   **os.File
	}{{"console.log", &cfg.Console}, {"vmm.log", &cfg.VMMLog}} {
		if *f.to, err = os.Create(filepath.Join(cfg.Dir, f.name)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = (*f.to).Close() }()
	}
	// A socket of a Firecracker before it does not keep a new one from starting.
	if err := os.WriteFile(filepath.Join(cfg.Dir, apiSocket), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := New(script(t, "test -e "+apiSocket+" && exit 9; echo first; echo 'bad luck' >&2; exit 5"), kvm.Look, nil)
	_, err = d.Start(t.Context(), cfg)
	if !errors.Is(err, vmm.ErrExited) || !strings.Contains(err.Error(), "bad luck") {
		t.Errorf("%v", err)
	}
}

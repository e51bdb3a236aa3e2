package cli

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/setup/preflight"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
)

// parse runs a command whose run function only keeps its options.
func parse[O any](t *testing.T, newCommand func(*app, func(context.Context, *app, *O) error) *cobra.Command, args string) O {
	t.Helper()
	var got O
	cmd := newCommand(newApp(System{}), func(_ context.Context, _ *app, o *O) error {
		got = *o
		return nil
	})
	cmd.SetArgs(strings.Fields(args))
	if err := cmd.Execute(); err != nil {
		t.Fatalf("%s %s: %v", cmd.Name(), args, err)
	}
	return got
}

func TestSetupFlagsMakeTheOptions(t *testing.T) {
	if d := cmp.Diff(
		setup.KernelOptions{From: "https://x/k", SHA256: "ab", Modules: "/m", Package: "p", Force: true},
		parse(t, newSetupKernelCommand, "--from https://x/k --sha256 ab --modules /m --package p --force").kernel,
	); d != "" {
		t.Errorf("kernel (-want +got):\n%s", d)
	}
	root := parse(t, newSetupRootfsCommand, "--suite trixie --include a,b --include c --mirror http://m --force -q")
	if !root.quiet {
		t.Error("-q is not heard")
	}
	if d := cmp.Diff(
		setup.RootfsOptions{Suite: "trixie", Include: []string{"a", "b", "c"}, Mirror: "http://m", Force: true}, root.rootfs,
		cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Layers" }, cmp.Ignore()),
	); d != "" {
		t.Errorf("rootfs (-want +got):\n%s", d)
	}
	if got := parse(t, newSetupRootfsCommand, "--from-image x").rootfs.FromImage; got != "x" {
		t.Errorf("--from-image gives %q", got)
	}
	if d := cmp.Diff(
		setup.FirecrackerOptions{FromFile: "f", Force: true},
		parse(t, newSetupFirecrackerCommand, "--from-file f --force").firecracker,
	); d != "" {
		t.Errorf("firecracker (-want +got):\n%s", d)
	}
	if got := parse(t, newSetupFirecrackerCommand, "--version v1.13.1").firecracker.Version; got != "v1.13.1" {
		t.Errorf("--version gives %q", got)
	}
}

func TestSetupInstallsFirecrackerWhereNoneCanBeUsed(t *testing.T) {
	works := kvm.Result{RunsGuest: true}
	usable := vmm.Availability{Usable: true, Program: "/p"}
	old := vmm.Availability{Program: "/p", Reason: "Firecracker 1.0 is older than 1.8"}
	for name, tc := range map[string]struct {
		kvm      kvm.Result
		fc, qemu vmm.Availability
		own      bool
		want     setup.AllOptions
	}{
		"none":             {works, vmm.Availability{}, usable, false, setup.AllOptions{Firecracker: true, Fallback: true}},
		"none, no QEMU":    {works, vmm.Availability{}, vmm.Availability{}, false, setup.AllOptions{Firecracker: true}},
		"too old":          {works, old, vmm.Availability{}, false, setup.AllOptions{Firecracker: true}},
		"usable":           {works, usable, usable, false, setup.AllOptions{Fallback: true}},
		"the person's own": {works, old, usable, true, setup.AllOptions{Fallback: true}},
		"no KVM":           {kvm.Result{}, old, usable, false, setup.AllOptions{Fallback: true}},
	} {
		if got := worthInstalling(tc.kvm, tc.fc, tc.qemu, tc.own); got != tc.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestPreflightReportsForPeopleAndMachines(t *testing.T) {
	h := newHost(t)
	code, out, errs := h.fcvm("setup", "preflight", "--format", "json")
	if errs != "" || (code != 0 && code != exitNo) {
		t.Fatalf("code %d, stderr %q", code, errs)
	}
	var r preflight.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.OK != (code == 0) || len(r.Checks) == 0 || r.Why == "" {
		t.Errorf("code %d, report %+v", code, r)
	}
}

func TestPreflightNamesEachRemedy(t *testing.T) {
	r := preflight.Report{
		OK: true, Driver: "qemu", Why: "by emulation",
		Checks: []preflight.Check{
			{Name: "cpu", Status: preflight.OK, Detail: "amd64"},
			{Name: "user namespaces", Status: preflight.Warn, Detail: "off\x1b", Remedy: "sysctl -w x=1"},
		},
	}
	var b strings.Builder
	if err := printReport(&b, r); err != nil {
		t.Fatal(err)
	}
	want := "ok    cpu              amd64\n" +
		"warn  user namespaces  off?\n" +
		"                       -> sysctl -w x=1\n" +
		"\nfcvm run works here, by qemu: by emulation\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	r.OK = false
	b.Reset()
	if err := printReport(&b, r); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(b.String(), "\nfcvm run does not work here: by emulation\n") {
		t.Errorf("got\n%s", b.String())
	}
}

func TestPreflightSaysWhichNetworkAndWhyNoOther(t *testing.T) {
	for want, r := range map[string]preflight.Report{
		"by qemu: x; VMs are connected by bridge\n":                {OK: true, Network: "bridge"},
		"by qemu: x; VMs are connected by usernet (bridge: why)\n": {OK: true, Network: "usernet", NetworkWhy: "bridge: why"},
		"by qemu: x; there is no network for VMs: why\n":           {OK: true, NetworkWhy: "why"},
		"does not work here: x\n":                                  {Network: "usernet", NetworkWhy: "bridge: why"},
	} {
		r.Driver, r.Why = "qemu", "x"
		var b strings.Builder
		if err := printReport(&b, r); err != nil || !strings.HasSuffix(b.String(), want) {
			t.Errorf("%v, got %q, want %q", err, b.String(), want)
		}
	}
}

func TestSetupProgressStaysOnTerminalsAndInLogs(t *testing.T) {
	step := func(rep progress.Reporter) error {
		rep.Task("unpack kernel", 0).Done(nil)
		return nil
	}
	var log strings.Builder
	if err := newApp(System{Stderr: &log}).withProgress(false, step); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(log.String(), "unpack kernel: done in ") {
		t.Errorf("log %q", log.String())
	}
	m := newTerminal(t)
	if err := newApp(System{Stderr: m.tty}).withProgress(false, step); err != nil {
		t.Fatal(err)
	}
	m.waitFor("the step", func() bool { return strings.Contains(m.output(), "unpack kernel: done in ") })
	log.Reset()
	if err := newApp(System{Stderr: &log}).withProgress(true, step); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Errorf("-q says %q", log.String())
	}
}

func TestRunWithSetupInstallsBeforeItRuns(t *testing.T) {
	t.Setenv("FCVM_AGENT", "")
	h := newHost(t)
	// An agent that cannot be found ends the setup before anything is fetched.
	code, out, errs := h.fcvm("run", "--setup", "img")
	if code != exitFailed || out != "" || !strings.Contains(errs, "fc-agent") {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, errs)
	}
}

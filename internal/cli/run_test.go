package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
)

// defaultSpec is what `fcvm run IMAGE` asks for.
func defaultSpec() vm.Spec {
	return vm.Spec{
		Image: "img", Driver: "auto", CPUs: defaultCPUs, MemoryMiB: defaultMemoryMiB, Init: vm.InitAgent, Logs: vm.LogsStream, LogMiB: 64,
		Remove: true, Network: vm.NetworkSpec{Backend: "auto", Mode: vm.ModeAuto}, ScratchMiB: vm.DefaultScratchMiB,
	}
}

func TestRunFlagsMakeTheSpec(t *testing.T) {
	envFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(envFile, []byte("A=file\nB=file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		change func(*vm.Spec)
	}{
		{"img", func(*vm.Spec) {}},
		{"img sh -c x", func(s *vm.Spec) { s.Container.Command = []string{"sh", "-c", "x"} }},
		{"img -it --rm=false", func(s *vm.Spec) { s.Container.Command = []string{"-it", "--rm=false"} }},
		{"-i -- img -- x", func(s *vm.Spec) {
			s.Container.Interactive = true
			s.Container.Command = []string{"--", "x"}
		}},
		{"-e A=1 --env A=2 -e HOME -e UNSET -e EMPTY= img", func(s *vm.Spec) {
			s.Container.Env = []string{"A=2", "HOME=/home/me", "EMPTY="}
		}},
		{"-e B=flag --env-file " + envFile + " img", func(s *vm.Spec) { s.Container.Env = []string{"A=file", "B=flag"} }},
		{"-w /srv -u 1:2 --hostname h img", func(s *vm.Spec) {
			s.Container.WorkDir, s.Container.User, s.Container.Hostname = "/srv", "1:2", "h"
		}},
		{"--entrypoint /bin/sh img", func(s *vm.Spec) { s.Container.Entrypoint = []string{"/bin/sh"} }},
		{"--entrypoint= img", func(s *vm.Spec) { s.Container.Entrypoint = []string{} }},
		{`--entrypoint ["a","b_c"] img`, func(s *vm.Spec) { s.Container.Entrypoint = []string{"a", "b_c"} }},
		{"-l a=b=c --label d img", func(s *vm.Spec) { s.Labels = map[string]string{"a": "b=c", "d": ""} }},
		{"--egress a.example,192.0.2.0/24 --egress b.example img", func(s *vm.Spec) {
			s.Network.Egress = []string{"a.example", "192.0.2.0/24", "b.example"}
		}},
		{"--privileged --read-only img", func(s *vm.Spec) { s.Container.Privileged, s.Container.ReadOnly = true, true }},
		{"--cap-add NET_ADMIN,SYS_TIME --cap-add KILL --cap-drop all img", func(s *vm.Spec) {
			s.Container.CapAdd, s.Container.CapDrop = []string{"NET_ADMIN", "SYS_TIME", "KILL"}, []string{"all"}
		}},
		{"--tmpfs /tmp:size=1m,mode=700 --tmpfs /x img", func(s *vm.Spec) {
			s.Container.Tmpfs = []string{"/tmp:size=1m,mode=700", "/x"}
		}},
		{"-it img", func(s *vm.Spec) { s.Container.Interactive, s.Container.TTY = true, true }},
		{"-ti img", func(s *vm.Spec) { s.Container.Interactive, s.Container.TTY = true, true }},
		{"--rm=false --logs both img", func(s *vm.Spec) { s.Remove, s.Logs = false, vm.LogsBoth }},
		{"--cpu 4 --mem 2g --vmm qemu --init systemd img", func(s *vm.Spec) {
			s.CPUs, s.MemoryMiB, s.Driver, s.Init = 4, 2048, "qemu", vm.InitSystemd
		}},
		{"--network usernet -p 8080:80 -p 53:53/udp img", func(s *vm.Spec) {
			s.Network = vm.NetworkSpec{Backend: "usernet", Mode: vm.ModeAuto, Publish: []string{"8080:80", "53:53/udp"}}
		}},
		{"--balloon 128m --io-max 50m img", func(s *vm.Spec) { s.BalloonMiB, s.IORate = 128, 50<<20 }},
		{"--scratch-size 1g --disk-bps 10m --disk-iops 100 img", func(s *vm.Spec) { s.ScratchMiB, s.DiskRate, s.DiskOps = 1024, 10<<20, 100 }},
		{"-v data:/a -v /usr:/b:ro --map /usr:/m --mount type=tmpfs,target=/t --map-mode block img", func(s *vm.Spec) {
			s.Mounts = []vm.Mount{
				{Kind: vm.MountVolume, Source: "data", Target: "/a", SizeMiB: 16384},
				{Kind: vm.MountBlock, Source: "/usr", Target: "/b", ReadOnly: true, SizeMiB: 16384},
				{Kind: vm.MountBlock, Source: "/usr", Target: "/m", SizeMiB: 16384},
				{Kind: vm.MountTmpfs, Target: "/t"},
			}
		}},
		{"--boot-timeout 90s img", func(s *vm.Spec) { s.BootTimeout = 90 * time.Second }},
	} {
		t.Run(c.args, func(t *testing.T) {
			want := defaultSpec()
			c.change(&want)
			got, err := parseRun(t, strings.Fields(c.args)...).spec(lookupIn(map[string]string{"HOME": "/home/me"}))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Container.Command) == 0 {
				got.Container.Command = nil
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("spec (-want +got):\n%s", d)
			}
		})
	}
}

func lookupIn(env map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := env[k]; return v, ok }
}

// parseRun parses the arguments of `fcvm run` and runs nothing.
func parseRun(t *testing.T, args ...string) *runOptions {
	t.Helper()
	var got *runOptions
	cmd := newRunCommand(newApp(System{}), func(_ context.Context, _ *app, o *runOptions) error {
		got = o
		return nil
	})
	cmd.SetArgs(args)
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRunRefusesWhatCannotBeMeant(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		args string
		want string // in the message
	}{
		{"", "no image given"},
		{"--cpu 0 img", "--cpu 0: a VM has 1 to 32 virtual CPUs"},
		{"--cpu 33 img", "--cpu 33"},
		{"--cpu many img", `"many" for "--cpu"`},
		{"--mem 1 img", "--mem 1: a VM has 128 to"},
		{"--mem 0.5 img", "whole number of MiB"},
		{"--mem 512q img", "512, 512m, 2g"},
		{"--mem 256 --balloon 129 img", "--balloon 129: of a VM's 256 MiB it takes 0 to 128"},
		{"--balloon -1 img", "512, 512m, 2g"},
		{"--io-max fast img", "1048576, 50m, 1g"},
		{"--io-max 4k img", "--io-max 4096: it is at least"},
		{"--init sysv img", "it is agent or systemd"},
		{"--vmm xen img", "it is auto, firecracker or qemu"},
		{"--logs syslog img", "it is stream, file or both"},
		{"--pull sometimes img", "it is missing, always or never"},
		{"--network bridge0 img", "it is auto, usernet, bridge, slirp4netns or none"},
		{"--name -x img", `name "-x"`},
		{"--name a/b img", `name "a/b"`},
		{"-p 70000:80 img", `--publish "70000:80"`},
		{"-p a:b:c:d img", `--publish "a:b:c:d"`},
		{"--network none -p 1:1 img", "has no ports to publish"},
		{"--mode rootless --network bridge img", "the bridge needs root"},
		{"--mode rootless --ip 10.201.0.9 img", "the bridge needs root"},
		{"--mode rootless --subnet 10.9.0.0/24 img", "the bridge needs root"},
		{"--network usernet --subnet 10.9.0.0/24 img", "--network bridge alone"},
		{"--mode root img", "it is auto, rootless or privileged"},
		{"--network usernet --ip 10.201.0.9 img", "only --network bridge"},
		{"--ip 10.201.0 img", `--ip "10.201.0": it is not an IP address`},
		{"--dns example.org img", `--dns "example.org": it is not an IP address`},
		{"--hostname a_b. img", "--hostname"},
		{"--dns-search a/b img", "it is a domain"},
		{"--add-host db img", "NAME:IP"},
		{"--egress none,example.org img", "rules out everything else"},
		{"--egress 192.0.2.0/40 img", "--egress"},
		{"--egress= img", "it has an empty entry; none lets the guest connect to nothing"},
		{"--egress , img", "it has an empty entry"},
		{"--egress example.org,,192.0.2.1 img", "it has an empty entry"},
		{"--egress example.org --egress= img", "it has an empty entry"},
		{"--subnet 10.0.0.0/8 img", "which every guest has inside"},
		{"-p 80/sctp img", "tcp or udp"},
		{"-p x:80 img", "host port"},
		{"-p 80:x img", "guest port"},
		{"-p 1.2.3:80:80 img", "is not an IP address"},
		{"-p 8000-8001:80-82 img", "same length"},
		{"-e =x img", "the variable has no name"},
		{"--env-file /nonexistent/env img", "read --env-file /nonexistent/env"},
		{"-l =x img", "the label has no name"},
		{"-w srv img", "absolute path in the container"},
		{"--tmpfs tmp img", "absolute path in the container"},
		{"-w /caf\xe9 img", `--workdir "/caf\xe9" is not UTF-8 text`},
		{"-u ren\xe9 img", `--user "ren\xe9" is not UTF-8 text`},
		{"--tmpfs /caf\xe9 img", `--tmpfs "/caf\xe9" is not UTF-8 text`},
		{"-l k=\xe9 img", `--label "k=\xe9" is not UTF-8 text`},
		{"--entrypoint [a img", "JSON array"},
		{"--boot-timeout -1s img", "--boot-timeout -1s"},
		{"-q --verbose img", "[quiet verbose]"},
		{"--frobnicate img", "unknown flag: --frobnicate"},
		{"-it img", "the input device is not a TTY"},
	} {
		code, out, errs := h.fcvm(append([]string{"run"}, strings.Fields(c.args)...)...)
		if code != exitFailed || out != "" || !strings.HasPrefix(errs, "fcvm: ") || !strings.Contains(errs, c.want) {
			t.Errorf("fcvm run %s: code %d, stdout %q, stderr %q; want %q in it", c.args, code, out, errs, c.want)
		}
	}
}

func TestRunGivesTheSupervisorWhatWasAskedFor(t *testing.T) {
	h := newHost(t)
	h.stdin = strings.NewReader("input")
	h.run = func(_ context.Context, d supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		if o.Name != "n" || o.Pull != image.PullAlways || o.Platform != "linux/arm64" || o.Signals == nil || o.Verbose != nil {
			t.Errorf("options: %+v", o)
		}
		if o.Stdio.In != nil || o.Stdio.Resize != nil {
			t.Error("stdin or a terminal without -i and -t")
		}
		var drivers []string
		for _, v := range d.Drivers {
			drivers = append(drivers, v.Name())
		}
		if !slices.Equal(drivers, []string{"firecracker", "qemu"}) {
			t.Errorf("drivers %q", drivers)
		}
		o.Started()
		_, _ = o.Stdio.Out.Write([]byte("out\x00\n"))
		_, _ = o.Stdio.Err.Write([]byte("err"))
		return supervisor.Result{ExitCode: 7}, nil
	}
	code, out, errs := h.fcvm("run", "--name", "n", "--pull", "always", "--platform", "linux/arm64", "img")
	if code != 7 || out != "out\x00\n" || errs != "err" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestRunPassesStdinOnlyWhenAsked(t *testing.T) {
	h := newHost(t)
	h.stdin = strings.NewReader("input")
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		if o.Stdio.In != h.stdin {
			t.Error("stdin is not passed on")
		}
		return supervisor.Result{}, nil
	}
	h.ok("run", "-i", "img")
}

func TestRunEndsWithTheRightCode(t *testing.T) {
	for _, c := range []struct {
		name   string
		code   int
		err    error
		want   int
		stderr string // "" for nothing
	}{
		{"exit", 3, nil, 3, ""},
		{"not found", 127, &supervisor.StartError{Args: []string{"nope"}, Exit: agentapi.Exit{Code: 127, Failed: true, Error: "no such file"}}, 127, `fcvm: run "nope"`},
		{"not executable", 126, &supervisor.StartError{Args: []string{"/etc"}, Exit: agentapi.Exit{Code: 126, Failed: true, Error: "denied"}}, 126, `fcvm: run "/etc"`},
		{"not set up", 0, setup.ErrNotSetUp, exitFailed, "fcvm: fcvm is not set up\n"},
		{"boot", 0, supervisor.ErrBoot, exitFailed, "fcvm: the guest did not come up\n"},
		{"signal", 143, &supervisor.Interrupted{Signal: syscall.SIGTERM}, 143, "fcvm: interrupted"},
		{"broken pipe", 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}, 141, ""},
		{"disk full", 0, image.ErrNoSpace, exitFailed, "--data-dir"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.run = func(context.Context, supervisor.Deps, supervisor.Options) (supervisor.Result, error) {
				return supervisor.Result{ExitCode: c.code}, c.err
			}
			code, out, errs := h.fcvm("run", "img")
			if code != c.want || out != "" || !strings.Contains(errs, c.stderr) || (c.stderr == "" && errs != "") {
				t.Errorf("code %d (want %d), stdout %q, stderr %q (want %q)", code, c.want, out, errs, c.stderr)
			}
		})
	}
}

func TestRunForwardsSignals(t *testing.T) {
	h := newHost(t)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
			if err := syscall.Kill(os.Getpid(), s); err != nil {
				return supervisor.Result{}, err
			}
			select {
			case got := <-o.Signals:
				if got != s {
					t.Errorf("got %v, want %v", got, s)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("%v does not arrive", s)
			}
		}
		// Writing to a pipe that nobody reads must be an error, not the end.
		return supervisor.Result{}, syscall.Kill(os.Getpid(), syscall.SIGPIPE)
	}
	h.ok("run", "img")
}

func TestRunPrintsTimingsAndVerboseOnStderr(t *testing.T) {
	h := newHost(t)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		o.Verbose("driver qemu\x1b")
		r := supervisor.Result{}
		r.Record.Phases = []vm.Phase{{Name: "image", Duration: 12 * time.Millisecond}, {Name: "container start", Duration: 2 * time.Second}}
		return r, nil
	}
	code, out, errs := h.fcvm("run", "--timings", "--verbose", "img")
	want := "fcvm: driver qemu \nPHASE            TIME\nimage            12ms\ncontainer start  2s\ntotal            2.012s\n"
	if code != 0 || out != "" || errs != want {
		t.Errorf("code %d, stdout %q, stderr:\n%s\nwant:\n%s", code, out, errs, want)
	}
}

func TestRunOnABareHostNamesOneCommand(t *testing.T) {
	h := newHost(t)
	h.run = supervisor.Run
	code, out, errs := h.fcvm("run", "--vmm", "auto", "img")
	if code != exitFailed || out != "" {
		t.Errorf("code %d, stdout %q", code, out)
	}
	if strings.Contains(errs, supervisor.ErrNoDriver.Error()) {
		t.Skip("no VMM on this host")
	}
	if strings.Count(errs, "fcvm setup") != 1 || strings.Count(errs, "\n") != 1 {
		t.Errorf("stderr %q", errs)
	}
}

func TestUnusableDataDirectoryIsSaidPlainly(t *testing.T) {
	h := newHost(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.data = filepath.Join(file, "data")
	for _, args := range [][]string{{"run", "img"}, {"ls"}, {"rm", "x"}, {"logs", "x"}, {"inspect", "x"}, {"setup", "kernel", "-q"}} {
		code, _, errs := h.fcvm(args...)
		if code != exitFailed || !strings.Contains(errs, "data directory") || strings.Count(errs, "\n") != 1 {
			t.Errorf("fcvm %q: code %d, stderr %q", args, code, errs)
		}
	}
}

func TestErrorsCannotSteerTheTerminal(t *testing.T) {
	var b strings.Builder
	printError(&b, errors.New("console:\n\t\x1b]0;evil\x07\r\u202e"))
	if got, want := b.String(), "fcvm: console:\n\t?]0;evil????\n"; got != want && got != "fcvm: console:\n\t?]0;evil???\n" {
		t.Errorf("got %q", got)
	}
}

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
)

// snapshot puts a snapshot of a VM that nobody runs into the data directory.
func (h *host) snapshot(name string, change func(*snapshot.Manifest)) snapshot.Manifest {
	h.t.Helper()
	s := snapshot.New(h.layout().Snapshots())
	d, err := s.Begin(name, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	files := []string{snapshot.MemoryName, snapshot.StateName, "scratch.ext4"}
	for _, f := range files {
		if err := os.WriteFile(d.Path(f), bytes.Repeat([]byte(f), os.Getpagesize()), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	spec := defaultSpec()
	spec.Network.Publish = []string{"127.0.0.1:8080:80/tcp", "0.0.0.0:5353:53/udp", "8443:443/tcp"}
	spec.Restart = vm.Restart{Policy: vm.RestartAlways}
	spec.OnRestore = []string{"own"}
	m := snapshot.Manifest{
		Source: snapshot.Source{ID: "00000000000a", Name: "web"},
		Needs:  snapshot.Needs{Arch: "amd64", Driver: "qemu", VMMVersion: "7.2", CPUs: 2, MemoryMiB: 512, Image: "img", ImageDigest: h.cache("docker.io/needed", false)},
		Spec:   spec, Guest: snapshot.GuestRunning, Link: vm.Link{Interface: "eth0"},
		Disks: []snapshot.Disk{{ID: "scratch", Name: "scratch.ext4"}},
	}
	if change != nil {
		change(&m)
	}
	snap, err := d.Commit(h.t.Context(), m, files)
	if err != nil {
		h.t.Fatal(err)
	}
	snap.HandOver()
	return snap.Manifest
}

func TestSnapshotsAreListedRenamedAndRemoved(t *testing.T) {
	h := newHost(t)
	if out := h.ok("snapshot", "ls"); strings.Count(out, "\n") != 1 {
		t.Errorf("none:\n%s", out)
	}
	a := h.snapshot("warm", nil)
	h.snapshot("auto", func(m *snapshot.Manifest) { m.Key = "k" })
	if out := h.ok("snapshot", "ls"); !regexp.MustCompile(`(?m)^`+a.ID+` +warm +web +img +512m +qemu +`).MatchString(out) || strings.Contains(out, "auto") {
		t.Errorf("ls:\n%s", out)
	}
	if out := h.ok("snapshot", "ls", "-aq"); out != "warm\nauto\n" {
		t.Errorf("ls -aq: %q", out)
	}
	if out := h.ok("snapshot", "ls", "--format", "{{.Name}} {{.Source}} {{.InUse}}"); out != "warm web false\n" {
		t.Errorf("--format: %q", out)
	}
	if out := h.ok("snapshot", "inspect", "--format", "{{.Needs.Driver}} {{.Source.Name}} {{len .Files}}", "warm"); out != "qemu web 3\n" {
		t.Errorf("inspect: %q", out)
	}
	if out := h.ok("snapshot", "verify", "warm"); !strings.Contains(out, "warm") {
		t.Errorf("verify: %q", out)
	}
	h.ok("snapshot", "rename", "warm", "hot")
	h.says(`fcvm: no such snapshot: "warm" \(list them with: fcvm snapshot ls\)`, "snapshot", "rm", "warm")
	h.says(`fcvm: snapshot name is in use: auto is [0-9a-f]{12}; .*`, "snapshot", "rename", "hot", "auto")
	if out := h.ok("snapshot", "rm", "-f", "nobody", "hot"); out != "hot\n" {
		t.Errorf("rm -f: %q", out)
	}
	if out := h.ok("snapshot", "prune", "--force"); !strings.Contains(out, "Removed snapshot auto") {
		t.Errorf("prune: %q", out)
	}
	if out := h.ok("snapshot", "ls", "-a"); strings.Count(out, "\n") != 1 {
		t.Errorf("left:\n%s", out)
	}
}

// One without a name, of which its VM's supervisor has just told whoever has asked for
// it, is left to him.
func TestPruneLeavesWhatSomebodyIsAboutToUse(t *testing.T) {
	h := newHost(t)
	m := h.snapshot("", nil)
	for _, args := range []string{"snapshot prune --all --force", "system prune --all --force"} {
		out := h.ok(strings.Fields(args)...)
		snap, err := snapshotsOf(h.layout()).Hold(m.ID)
		if err != nil {
			t.Fatalf("%s: %s%v", args, out, err)
		}
		snap.HandOver()
	}
	anHourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(h.layout().Snapshots(), m.ID, "manifest.json"), anHourAgo, anHourAgo); err != nil {
		t.Fatal(err)
	}
	h.ok("snapshot", "prune", "--all", "--force")
	if out := h.ok("snapshot", "ls", "-aq"); out != "" {
		t.Errorf("one that nobody has asked for any more is left: %s", out)
	}
}

// Of two who take a snapshot at once, and give it no name, each has one. Who gives it
// a name that is taken by then hears so.
func TestSnapshotsThatAreTakenAtOnce(t *testing.T) {
	h := newHost(t)
	f := &fakeSupervisor{}
	h.supervise(h.running("web"), f)
	first := true
	f.snapshot = func(name string) error {
		if first {
			first = false
			h.snapshot(name, nil) // somebody else's
			return fmt.Errorf("%w: %s", snapshot.ErrNameTaken, name)
		}
		return nil
	}
	if code, out, errs := h.fcvm("snapshot", "create", "web"); code != 0 || out != "web-2\n" {
		t.Errorf("without a name: code %d, %q, %q", code, out, errs)
	}
	first = true
	h.says("fcvm: take a snapshot of web: snapshot name is in use: mine", "snapshot", "create", "--name", "mine", "web")
	f.snapshot = func(string) error { return errors.New("no") }
	h.says("fcvm: take a snapshot of web: no", "snapshot", "create", "web")
}

func TestSnapshotsTravelAsOneFile(t *testing.T) {
	h, there := newHost(t), newHost(t)
	h.snapshot("warm", nil)
	file := filepath.Join(t.TempDir(), "warm.fcvm")
	h.ok("snapshot", "export", "warm", file)
	// What it needs is not there, and does not come with it: that is said.
	code, out, errs := there.fcvm("snapshot", "import", "--name", "other", file)
	if code != 0 || out != "other\n" {
		t.Errorf("import: code %d, %q", code, out)
	}
	for _, want := range []string{"needs the kernel", "needs the guest root", "needs the image img (sha256:", "fcvm snapshot export --with-guest", "fcvm image pull img"} {
		if !strings.Contains(errs, want) {
			t.Errorf("import does not say %q: %q", want, errs)
		}
	}
	var archive bytes.Buffer
	h.stdout = &archive
	if code, _, errs := h.fcvm("snapshot", "export", "warm", "-"); code != 0 {
		t.Fatal(errs)
	}
	there.stdin = &archive
	if code, out, errs := there.fcvm("snapshot", "import", "-"); code != 0 || out != "warm\n" {
		t.Errorf("import from stdin: code %d, %q, %q", code, out, errs)
	}
	if err := os.WriteFile(file, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	there.says(`fcvm: import snapshot: snapshot is damaged: it is no exported snapshot.*`, "snapshot", "import", file)
	there.says(`fcvm: import snapshot: open .*: no such file or directory.*`, "snapshot", "import", file+"x")
}

// What a snapshot needs is not removed, whoever else has gone.
func TestPruneKeepsWhatSnapshotsNeed(t *testing.T) {
	h := newHost(t)
	if err := os.WriteFile(h.layout().Setup(), []byte(`{"schema":1}`), 0o600); err != nil {
		if err = errors.Join(os.MkdirAll(h.data, 0o700), os.WriteFile(h.layout().Setup(), []byte(`{"schema":1}`), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	m := h.snapshot("warm", func(m *snapshot.Manifest) { m.Needs.KernelID = "bbbbbbbbbbbbbbbb" })
	kernel := h.kernel("bbbbbbbbbbbbbbbb")
	image := filepath.Join(h.layout().Images(), "disks", strings.TrimPrefix(m.Needs.ImageDigest, "sha256:"))
	if out := h.ok("system", "prune", "--force"); out != "Nothing to remove.\n" {
		t.Errorf("prune: %s", out)
	}
	if h.left(kernel, image) == "" {
		t.Fatal("it removed what the snapshot needs")
	}
	if out := h.ok("system", "df", "-v"); !regexp.MustCompile(`(?m)^snapshot +` + m.ID + ` +warm +of web`).MatchString(out) {
		t.Errorf("df -v:\n%s", out)
	}
	h.ok("system", "prune", "--all", "--force")
	if left := h.left(kernel, image); left != "" {
		t.Errorf("with --all %s is left", left)
	}
}

func TestCloneMakesTheSpecOfTheOriginal(t *testing.T) {
	h := newHost(t)
	m := h.snapshot("warm", func(m *snapshot.Manifest) { m.Spec.Container.Hostname = "original" })
	original := m.Spec
	for _, c := range []struct {
		args   string
		change func(*vm.Spec)
	}{
		{"", func(*vm.Spec) {}},
		{"-p 8081:80", func(s *vm.Spec) { s.Network.Publish = []string{"8081:80"} }},
		{"--network usernet --egress none", func(s *vm.Spec) { s.Network.Backend, s.Network.Egress = "usernet", []string{"none"} }},
		{"--rm=false --logs both", func(s *vm.Spec) { s.Remove, s.Logs = false, vm.LogsBoth }},
		{"--cpu 2 --mem 512", func(*vm.Spec) {}},
		{"--hostname own", func(s *vm.Spec) { s.Container.Hostname = "own" }},
		{"--hostname host-{n}", func(s *vm.Spec) { s.Container.Hostname = "host-1" }},
		{"--on-restore more", func(s *vm.Spec) { s.OnRestore = []string{"own", "more"} }},
		{"--wait-ready agent", func(s *vm.Spec) {
			s.Gate = vm.Gate{Kind: vm.GateAgent, Timeout: vm.DefaultGateTimeout, Interval: vm.DefaultGateInterval}
		}},
	} {
		want := original
		want.Driver, want.Restart, want.Container.Hostname = "qemu", vm.Restart{}, ""
		want.Network.Publish = []string{"127.0.0.1:0:80/tcp", "0.0.0.0:0:53/udp", "0:443/tcp"}
		c.change(&want)
		h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
			if d := cmp.Diff(want, o.Spec); d != "" {
				t.Errorf("clone %s: %s", c.args, d)
			}
			if o.Clone == nil || o.Clone.Snapshot.Manifest.ID != m.ID || o.Name != "x" {
				t.Errorf("clone %s: %+v", c.args, o)
			}
			return supervisor.Result{}, nil
		}
		h.ok(append([]string{"clone", "--snapshot", "warm", "--name", "x"}, strings.Fields(c.args)...)...)
	}
}

// Somebody who has started a memory server wants it used.
func TestCloneTellsOfAMemoryServer(t *testing.T) {
	h := newHost(t)
	l := paths.Layout{Data: h.data, Runtime: t.TempDir()}
	h.env["FCVM_RUNTIME_DIR"] = l.Runtime
	m := h.snapshot("warm", nil)
	h.run = func(context.Context, supervisor.Deps, supervisor.Options) (supervisor.Result, error) {
		return supervisor.Result{}, nil
	}
	if _, _, errs := h.fcvm("clone", "--snapshot", "warm"); errs != "" {
		t.Errorf("without one: %q", errs)
	}
	s := listenAt(t, l, m.ID)
	for flags, noted := range map[string]bool{"": true, "-q": false, "--memory file": false, "--memory server": false, "--memory auto": false, "--track-dirty": false} {
		_, _, errs := h.fcvm(append([]string{"clone", "--snapshot", "warm"}, strings.Fields(flags)...)...)
		if strings.Contains(errs, "--memory server") != noted {
			t.Errorf("clone %s: %q", flags, errs)
		}
	}
	// One that was killed leaves its socket, and nobody sweeps that while the snapshot
	// is used.
	used, err := snapshotsOf(l).Hold(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer used.Release()
	s.SetUnlinkOnClose(false)
	_ = s.Close()
	if _, _, errs := h.fcvm("clone", "--snapshot", "warm"); errs != "" {
		t.Errorf("with one that was killed: %q", errs)
	}
}

func TestCloneRefuses(t *testing.T) {
	h := newHost(t)
	h.snapshot("warm", nil)
	h.snapshot("unlinked", func(m *snapshot.Manifest) { m.Link = vm.Link{} })
	h.snapshot("up", func(m *snapshot.Manifest) { m.Guest = snapshot.GuestUp })
	h.end(h.create("gone", defaultSpec()), 0)
	huge := defaultSpec()
	huge.HugePages = true
	h.create("huge", huge)
	h.run = func(context.Context, supervisor.Deps, supervisor.Options) (supervisor.Result, error) {
		t.Error("it was started")
		return supervisor.Result{}, nil
	}
	for args, want := range map[string]string{
		"":                                 `.*no VM given.*`,
		"--snapshot warm web":              `.*not both.*`,
		"--snapshot nobody":                `.*no such snapshot: "nobody".*`,
		"nobody":                           `.*no such VM.*`,
		"gone":                             `.*no snapshot was taken of it.*`,
		"huge":                             `(?s).*clone huge: its memory is of huge pages.*fcvm snapshot create --name warm huge\n.*memory-server -d.*--memory server.*`,
		"--snapshot warm --cpu 4":          `.*--cpu 4: a clone has the 2 virtual CPUs of its original.*`,
		"--snapshot warm --mem 1g":         `.*--mem 1024: a clone has the 512 MiB of its original.*`,
		"--snapshot warm -t":               `.*has no terminal.*`,
		"--snapshot warm -n 3":             `.*--count 3: several run in the background.*`,
		"--snapshot warm -n 0 -d":          `.*--count 0.*`,
		"--snapshot warm -n 2 -d -p 80:80": `.*port 80 of the host can be had by one of 2 clones.*`,
		"--snapshot warm -n 2 -d --ip 10.201.0.9":        `.*--ip 10.201.0.9: it can be had by one of 2 clones.*`,
		"--snapshot warm -d -i":                          `.*rule each other out.*`,
		"--snapshot warm --name a/b":                     `.*name "a/b".*`,
		"--snapshot warm --network none":                 `.*the original has a network interface.*`,
		"--snapshot unlinked --network usernet":          `.*the original has no network interface.*`,
		"--snapshot up":                                  `.*before its container was started.*`,
		"--snapshot warm --wait-ready nonsense":          `.*wait-ready.*`,
		"--snapshot warm -d --exec true":                 `.*`,
		"--snapshot warm -n 3 -d --name {n}/x":           `.*name "1/x".*`,
		"--snapshot warm -n 3 -i --exec cat":             `.*--count 3: -i passes stdin to one clone.*`,
		"--snapshot warm -n 2 -d --hostname h":           `.*--hostname h: 2 clones would all have it; put \{n\}.*`,
		"--snapshot warm -n 2 -d --hostname {n}_":        `.*--hostname "2_".*`,
		"--snapshot warm --hostname a/b":                 `.*--hostname "a/b".*`,
		"--snapshot warm --logs stream -d":               `.*--logs stream.*`,
		"--snapshot warm -p nonsense":                    `.*--publish.*`,
		"--snapshot warm -t --exec true":                 `.*--exec has no terminal.*`,
		"--snapshot warm --log-size 0":                   `.*--log-size 0.*`,
		"--snapshot warm --network x":                    `.*network.*`,
		"--snapshot warm --ip 1.2.3.4 --network usernet": `.*--ip.*`,
		"--snapshot warm --egress=":                      `.*--egress.*empty entry.*`,
	} {
		h.says(want, append([]string{"clone"}, strings.Fields(args)...)...)
	}
}

// What cannot be of a VM that runs is refused before that is paused for a snapshot.
func TestCloneOfOneThatRunsRefuses(t *testing.T) {
	h := newHost(t)
	f := &fakeSupervisor{}
	v := h.running("web")
	h.supervise(v, f)
	for _, c := range []struct{ args, want string }{
		{"--cpu 4", `.*--cpu 4: a clone has the 2 virtual CPUs of its original.*`},
		{"--mem 1g", `.*--mem 1024: a clone has the 512 MiB of its original.*`},
		{"-e =x", `.*--env "=x": the variable has no name.*`},
		{"-e A=\xe9", `.*--env "A": its value is not UTF-8 text.*`},
		{"--exec \xe9", `.*"\\xe9" in the command: it is not UTF-8 text.*`},
		{"--on-restore \xe9", `.*--on-restore "\\xe9" is not UTF-8 text.*`},
		{"-t", `.*has no terminal.*`},
		{"--network none", `.*the original has a network interface.*`},
		{"--ip 1.2.3.4 --network usernet", `.*--ip.*`},
		{"-n 2 -d -p 80:80", `.*port 80 of the host can be had by one of 2 clones.*`},
		{"-n 10 -d --hostname {n}_", `.*--hostname "10_".*`},
		{"-p nonsense", `.*--publish.*`},
		{"--wait-ready nonsense", `.*wait-ready.*`},
		{"--memory server", `.*clone web: of the snapshot that is taken of it no memory server runs.*fcvm memory-server -d warm.*`},
		{"", `.*it was asked`},
		{"--cpu 2 --mem 512 --memory auto -e A=x --ip 10.201.0.9", `.*it was asked`},
	} {
		asked := 0
		f.snapshot = func(string) error { asked++; return errors.New("it was asked") }
		if err := v.Update(func(r *vm.Record) error {
			r.Resolved.Driver, r.Resolved.Link = "firecracker", vm.Link{Interface: "eth0"}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		h.says(c.want, append([]string{"clone"}, append(strings.Fields(c.args), "web")...)...)
		if wanted := strings.HasSuffix(c.want, "it was asked"); asked > 0 != wanted {
			t.Errorf("clone %s: asked for %d snapshots", c.args, asked)
		}
	}
	// What has not come up has no link yet, and its supervisor says why there is no snapshot.
	f.snapshot = func(string) error { return vm.ErrNotRunning }
	early := h.create("early", defaultSpec())
	h.supervise(early, f)
	h.says(`fcvm: clone early: .*not running.*`, "clone", "--network", "usernet", "early")
}

func TestClonesHaveNames(t *testing.T) {
	for _, c := range []struct {
		name  string
		count int
		want  []string
	}{
		{"", 2, []string{"", ""}},
		{"web", 1, []string{"web"}},
		{"web", 2, []string{"web-1", "web-2"}},
		{"a-{n}-b", 2, []string{"a-1-b", "a-2-b"}},
		{"{n}", 1, []string{"1"}},
	} {
		o := cloneOptions{name: c.name, count: c.count}
		var got []string
		for n := range c.count {
			got = append(got, o.nameOf(n+1))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q, %d: %q", c.name, c.count, got)
		}
	}
}

// Each process of several knows its number, and one in the foreground is the first.
func TestCloneKnowsItsNumber(t *testing.T) {
	h := newHost(t)
	m := h.snapshot("warm", nil)
	for _, c := range []struct {
		number string
		args   []string
		want   string
	}{
		{"", nil, "web-1"},
		{"1", []string{"-n", "3", "--exec", "true"}, "web-1"},
		{"3", []string{"-n", "3", "--exec", "true"}, "web-3"},
	} {
		if c.number != "" {
			h.env = map[string]string{cloneOfEnv: m.ID, cloneNumberEnv: c.number}
		}
		started := ""
		h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
			started = o.Name
			if o.Spec.Container.Hostname != "of-"+o.Name {
				t.Errorf("%s: the hostname of %s is %s", c.number, o.Name, o.Spec.Container.Hostname)
			}
			return supervisor.Result{}, nil
		}
		h.ok(append([]string{"clone", "--snapshot", "warm", "--name", "web-{n}", "--hostname", "of-web-{n}"}, c.args...)...)
		if started != c.want {
			t.Errorf("%s: %q was started, not %s", c.number, started, c.want)
		}
	}
}

// A VM that does not run is cloned from a snapshot that still says what it was.
func TestLastRun(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	r := vm.Record{Created: at(1), Status: vm.StatusExited, History: []vm.Event{
		{Time: at(1), Status: vm.StatusCreated}, {Time: at(2), Status: vm.StatusStarting}, {Time: at(3), Status: vm.StatusRunning}, {Time: at(9), Status: vm.StatusExited},
	}}
	if got := lastRun(&r); !got.Equal(at(3)) {
		t.Errorf("ended: %s", got)
	}
	r.Status, r.History[3] = vm.StatusPaused, vm.Event{Time: at(9), Status: vm.StatusPaused}
	if got := lastRun(&r); !got.Equal(at(9)) {
		t.Errorf("paused: %s", got)
	}
}

func TestCompletionOffersSnapshots(t *testing.T) {
	h := newHost(t)
	if _, out, _ := h.fcvm("__complete", "clone", "--snapshot", ""); strings.Contains(out, "warm") {
		t.Errorf("before there is one: %q", out)
	}
	h.snapshot("warm", nil)
	_, out, _ := h.fcvm("__complete", "clone", "--snapshot", "w")
	if !strings.Contains(out, "warm\timg, of web") {
		t.Errorf("clone --snapshot: %q", out)
	}
	_, out, _ = h.fcvm("__complete", "snapshot", "rm", "warm", "")
	if strings.Contains(out, "img") {
		t.Errorf("one that was given: %q", out)
	}
}

package setup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/setup/preflight"
)

func testTar(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fakeBuilder puts a shell script first on the PATH as mmdebstrap.
func fakeBuilder(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, c := range preflight.RootfsTools(t.Context(), os.Getuid()) {
		if c.Status != preflight.OK {
			t.Skipf("a guest root cannot be built here: %s", c.Detail)
		}
	}
}

func TestRootfs(t *testing.T) {
	archive := writeFile(t, filepath.Join(t.TempDir(), "root.tar"), string(testTar(t, map[string]string{"./usr/bin/podman": "podman"})))
	args := filepath.Join(t.TempDir(), "args")
	fakeBuilder(t, `printf '%s\n' "$@" > `+args+`
echo "I: running apt-get update..." >&2
echo "noise" >&2
echo "I: creating tarball..." >&2
exec cat `+archive)
	s, rep := newTestSetup(t), new(notes)
	o := RootfsOptions{Suite: "trixie", Mirror: "http://mirror/debian", Include: []string{"strace", "vim"}}
	if err := s.Rootfs(t.Context(), o, rep); err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	a := m.Rootfs
	if a.Version != "debian trixie" || a.Format != rootFormat || a.ID != a.Files[0].SHA256[:idLength] ||
		a.Source != "debian trixie from http://mirror/debian with strace,vim" {
		t.Errorf("recorded %+v", a)
	}
	if got := strings.Join(rep.tasks, "; "); got != "guest root: running apt-get update; guest root: creating tarball" || rep.open != 0 {
		t.Errorf("tasks %q, %d open", got, rep.open)
	}
	b, err := os.ReadFile(args)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\ntrixie\n-\nhttp://mirror/debian\n", "aardvark-dns", ",strace,vim\n", "--variant=minbase", "--components=main\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q among the arguments:\n%s", want, b)
		}
	}
	if got := left(t, s); len(got) != 1 || !strings.HasSuffix(got[0], rootFileName) {
		t.Errorf("left: %v", got)
	}

	// The same again, and what any root satisfies, is there; another is not.
	fakeBuilder(t, "exit 1")
	for _, o := range []RootfsOptions{o, {}} {
		rep := new(notes)
		if err := s.Rootfs(t.Context(), o, rep); err != nil || len(rep.notes) != 1 {
			t.Errorf("%+v: %v, notes %q", o, err, rep.notes)
		}
	}
	for _, o := range []RootfsOptions{{Suite: "trixie"}, {Force: true}} {
		if err := s.Rootfs(t.Context(), o, progress.Discard); !errors.Is(err, ErrBuild) && !errors.Is(err, ErrTool) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if after, err := s.Manifest(); err != nil || after.Rootfs.ID != a.ID || s.whole(after.Rootfs) != nil {
		t.Errorf("after failures: %+v, %v", after.Rootfs, err)
	}
}

func TestRootfsFails(t *testing.T) {
	fakeBuilder(t, `echo "I: running apt-get update..." >&2
for i in $(seq 1 40); do echo "line $i" >&2; done
printf 'E: the last word' >&2
echo >&2
exit 25`)
	s, rep := newTestSetup(t), new(notes)
	err := s.Rootfs(t.Context(), RootfsOptions{Suite: "bookworm", Mirror: "http://m"}, rep)
	if !errors.Is(err, ErrBuild) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"exit status 25", "\n  line 40\n  E: the last word", "bookworm"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
	if strings.Contains(err.Error(), "line 20\n") || rep.open != 0 {
		t.Errorf("%d tasks open, error %v", rep.open, err)
	}
	if got := left(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestRootfsRefusesArchive(t *testing.T) {
	archive := writeFile(t, filepath.Join(t.TempDir(), "root.tar"), string(testTar(t, map[string]string{"../escape": "x"})))
	fakeBuilder(t, "exec cat "+archive)
	s := newTestSetup(t)
	err := s.Rootfs(t.Context(), RootfsOptions{Mirror: "http://m"}, progress.Discard)
	if !errors.Is(err, rootfs.ErrUnsafe) || !errors.Is(err, ErrBuild) {
		t.Errorf("got %v", err)
	}
	if got := left(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestRootfsStops interrupts a builder with a child that does not care.
func TestRootfsStops(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	fakeBuilder(t, `sh -c 'trap "" TERM; echo $$ >> `+pids+`; while :; do sleep 1; done' >/dev/null 2>&1 &
trap 'exit 1' TERM
while [ ! -s `+pids+` ]; do sleep 0.05; done
echo "I: running forever..." >&2
while :; do sleep 0.05; done`)
	s, rep := newTestSetup(t), new(notes)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for {
			rep.mu.Lock()
			n := len(rep.tasks)
			rep.mu.Unlock()
			if n > 0 {
				cancel()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if err := s.Rootfs(ctx, RootfsOptions{Mirror: "http://m"}, rep); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := left(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if st, err := proc.Read(pid); err != nil || st.State == 'Z' {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d is left: %v", pid, syscall.Kill(pid, syscall.SIGKILL))
}

func TestRootfsFromImage(t *testing.T) {
	layers := func(names ...string) func(context.Context, string) ([]rootfs.Layer, error) {
		return func(_ context.Context, ref string) ([]rootfs.Layer, error) {
			if ref != "docker.io/me/root" {
				return nil, fmt.Errorf("asked for %q", ref)
			}
			entries := []rootfs.Entry{{Name: "lib", Mode: os.ModeSymlink, Target: "usr/lib"}}
			for _, n := range names {
				entries = append(entries, rootfs.Entry{Name: n, Mode: 0o755, Content: []byte(n)})
			}
			l, err := rootfs.EntriesLayer("test", entries)
			return []rootfs.Layer{l}, err
		}
	}
	o := RootfsOptions{FromImage: "docker.io/me/root"}
	s, rep := newTestSetup(t), new(notes)

	o.Layers = layers("usr/bin/podman", "usr/bin/crun", "usr/lib/systemd/systemd")
	err := s.Rootfs(t.Context(), o, rep)
	if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "no usr/bin/conmon") || strings.Contains(err.Error(), "no usr/bin/podman") {
		t.Errorf("without conmon: %v", err)
	}
	if got := left(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}

	o.Layers = layers("usr/bin/podman", "usr/bin/crun", "usr/bin/conmon")
	if err := s.Rootfs(t.Context(), o, rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.notes) != 1 || !strings.Contains(rep.notes[0], "--init systemd") || rep.open != 0 {
		t.Errorf("without systemd: notes %q", rep.notes)
	}
	m, err := s.Manifest()
	if err != nil || m.Rootfs.Source != "image docker.io/me/root" {
		t.Errorf("%+v, %v", m.Rootfs, err)
	}

	o.Layers, o.Force = layers("usr/bin/podman", "usr/bin/crun", "usr/bin/conmon", "usr/lib/systemd/systemd"), true
	rep = new(notes)
	if err := s.Rootfs(t.Context(), o, rep); err != nil || len(rep.notes) != 0 {
		t.Errorf("with systemd: %v, notes %q", err, rep.notes)
	}
	o.Suite = "bookworm"
	if err := s.Rootfs(t.Context(), o, rep); !errors.Is(err, ErrInput) {
		t.Errorf("image and suite: %v", err)
	}
}

func TestBuilderCommand(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if findProgram("mmdebstrap") != "" || findProgram("debootstrap") != "" {
		t.Log("mmdebstrap or debootstrap is installed outside of the PATH")
	} else {
		_, err := debianRoot{uid: 1000, release: release{familyDebian, "bookworm"}, options: RootfsOptions{Mirror: "x"}}.command(t.Context())
		if !errors.Is(err, ErrTool) || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
			t.Errorf("got %v", err)
		}
	}
	d := debianRoot{release: release{familyUbuntu, "noble"}, work: "/work", sources: []aptSource{{uri: "http://u", suite: "noble", components: []string{"main"}}}}
	if got := d.debootstrapArgs(); got[len(got)-1] != "http://u" || !slices.Contains(got, "--components=main,universe") || !slices.Contains(got, "/work/tree") {
		t.Errorf("debootstrap: %q", got)
	}
	if got := d.mmdebstrapArgs([]string{"Acquire::x \"y\";"}); got[len(got)-1] != "deb http://u noble main" || !slices.Contains(got, "--aptopt=Acquire::x \"y\";") || !slices.Contains(got, "--mode=root") {
		t.Errorf("mmdebstrap: %q", got)
	}
}

func TestStepName(t *testing.T) {
	for line, want := range map[string]string{
		"I: installing essential packages...":                           "installing essential packages",
		"I: removing tempdir /tmp/x...":                                 "",
		"I: main() received signal PIPE: waiting for setup...":          "",
		"I: success in 3 seconds":                                       "",
		"I: Retrieving adduser 3.134":                                   "downloading packages",
		"I: Configuring podman...":                                      "configuring packages",
		"I: Checking component main on http://deb.debian.org/debian...": "",
		"W: something...":                                               "",
	} {
		name, info := stepName(line)
		if name != want || info != strings.HasPrefix(line, "I: ") {
			t.Errorf("%q: %q, %v", line, name, info)
		}
	}
}

func TestGuestFiles(t *testing.T) {
	built := time.Now()
	seen := map[string]rootfs.Entry{}
	for _, e := range guestFiles(built) {
		if _, twice := seen[e.Name]; twice {
			t.Errorf("%s comes twice", e.Name)
		}
		seen[e.Name] = e
	}
	if !strings.Contains(string(seen["etc/systemd/system/fc-agent.service"].Content), "ExecStart=/run/fcvm/fc-agent serve\n") {
		t.Error("no agent in fc-agent.service")
	}
	if seen["etc/systemd/system/multi-user.target.wants/fc-agent.service"].Target != "/etc/systemd/system/fc-agent.service" {
		t.Error("fc-agent.service is not enabled")
	}
	if seen["etc/systemd/system/apt-daily.timer"].Target != "/dev/null" || !seen["etc/.updated"].ModTime.After(built) {
		t.Error("what delays a boot")
	}
}

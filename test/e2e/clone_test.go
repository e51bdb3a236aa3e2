package e2e

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// counts is a container that counts in a file and in its memory; it has begun
// once it has written "up".
const counts = `i=0; echo up; while :; do i=$((i+1)); echo $i >/count; sleep 0.1; done`

// snapshotOf takes a snapshot of a VM; the test's end removes it.
func snapshotOf(t *testing.T, vm, name string, flags ...string) {
	t.Helper()
	args := append([]string{"snapshot", "create", "--name", name}, flags...)
	r := fcvm(t, append(args, vm)...)
	r.want(t, 0, name+"\n")
	if !strings.Contains(r.stderr, "stood still for ") {
		t.Errorf("it does not say for how long: %q", r.stderr)
	}
	t.Cleanup(func() { fcvm(t, "snapshot", "rm", "-f", name) })
}

// clone starts clones in the background and returns their ids; the test's end
// removes them.
func clone(t *testing.T, args ...string) []string {
	t.Helper()
	r := fcvm(t, append([]string{"clone", "-d"}, args...)...)
	ids := strings.Fields(r.stdout)
	if r.code != 0 || len(ids) == 0 {
		t.Fatalf("clone -d %q: exit code %d, stdout %q; stderr:\n%s", args, r.code, r.stdout, r.stderr)
	}
	t.Cleanup(func() { fcvm(t, append([]string{"rm", "-f"}, ids...)...) })
	return ids
}

// inVM is the output of a command in a VM, without the last line break.
func inVM(t *testing.T, vm string, cmd ...string) string {
	t.Helper()
	r := fcvm(t, append([]string{"exec", vm}, cmd...)...)
	if r.code != 0 {
		t.Fatalf("exec %s %q: exit code %d; stderr:\n%s", vm, cmd, r.code, r.stderr)
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

func countOf(t *testing.T, vm string) int {
	t.Helper()
	// It may be caught in the moment when the file is empty.
	n, err := strconv.Atoi(inVM(t, vm, "sh", "-c", `until n=$(cat /count); [ -n "$n" ]; do :; done; echo "$n"`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A snapshot starts VMs that go on where the original was, each for itself, and
// the original goes on undisturbed.
func TestSnapshotAndClones(t *testing.T) {
	detach(t, []string{"--name", "original", "--no-cache", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	inVM(t, "original", "sh", "-c", "echo original >/who")
	before := countOf(t, "original")
	snapshotOf(t, "original", "warm")
	at := countOf(t, "original")
	if at < before {
		t.Errorf("the original counts %d after %d", at, before)
	}
	inVM(t, "original", "sh", "-c", "echo changed >/who")

	clone(t, "--snapshot", "warm", "--name", "one", "--rm=false")
	if n := countOf(t, "one"); n < before {
		t.Errorf("the clone counts %d, the original had %d", n, before)
	}
	if who := inVM(t, "one", "cat", "/who"); who != "original" {
		t.Errorf("the clone's disk says %q", who)
	}
	inVM(t, "one", "sh", "-c", "echo one >/who")
	clone(t, "--snapshot", "warm", "--name", "two")
	if a, b := inVM(t, "original", "cat", "/who"), inVM(t, "two", "cat", "/who"); a != "changed" || b != "original" {
		t.Errorf("the original says %q, the second clone %q", a, b)
	}

	// A clone is a VM like any other: it can be cloned itself.
	snapshotOf(t, "one", "warmer")
	clone(t, "--snapshot", "warmer", "--name", "three")
	if who := inVM(t, "three", "cat", "/who"); who != "one" {
		t.Errorf("the clone of a clone says %q", who)
	}
	if n := countOf(t, "three"); n < before {
		t.Errorf("the clone of a clone counts %d", n)
	}
	r := fcvm(t, "inspect", "--format", "{{len .Lineage}} {{.Resolved.Snapshot.Name}} {{.Resolved.Snapshot.Source}}", "three")
	r.want(t, 0, "2 warmer one\n")

	fcvm(t, "snapshot", "rm", "warm").wantError(t, 125, "in use", "one", "two")
	fcvm(t, "stop", "-t", "0", "one", "two", "three").want(t, 0, "one\ntwo\nthree\n")
	fcvm(t, "snapshot", "rm", "warm").want(t, 0, "warm\n")
	if countOf(t, "original") <= at {
		t.Error("the original has stopped counting")
	}
}

// What a guest has read of a disk that it shares is right in its clones, too, or there
// are none.
func TestCloneOfAVMWithASharedDisk(t *testing.T) {
	name := "shared-" + time.Now().Format("150405.000")
	t.Cleanup(func() { fcvm(t, "volume", "rm", "-f", name) })
	run(t, []string{"-v", name + ":/data"}, "busybox", "sh", "-c", "echo before >/data/f").want(t, 0, "")
	detach(t, []string{"--name", "reader", "-v", name + ":/data:ro"}, "busybox", "sh", "-c", "cat /data/f; sleep 1000")
	snapshotOf(t, "reader", "read", "--stop")
	run(t, []string{"-v", name + ":/data:ro"}, "busybox", "cat", "/data/f").want(t, 0, "before\n")
	fcvm(t, "clone", "--snapshot", "read", "--exec", "cat /data/f").want(t, 0, "before\n")
	run(t, []string{"-v", name + ":/data"}, "busybox", "sh", "-c", "echo after >/data/f").want(t, 0, "")
	fcvm(t, "clone", "--snapshot", "read", "--exec", "cat /data/f").wantError(t, 125, "read", name, "was written since")
}

// A running VM is cloned as it is; the snapshot for that goes with the last of
// its clones.
func TestCloneOfARunningVM(t *testing.T) {
	detach(t, []string{"--name", "web", "-p", "0:8080", "--wait-ready", "tcp=8080"}, "busybox", "sh", "-c", "echo shared >/index.html; httpd -f -p 8080 -h /")
	ids := clone(t, "-n", "3", "--name", "web-{n}", "web")
	if len(ids) != 3 {
		t.Fatalf("%d ids", len(ids))
	}
	for n := 1; n <= 3; n++ {
		name := fmt.Sprintf("web-%d", n)
		if host := inVM(t, name, "hostname"); host != name {
			t.Errorf("%s has the hostname %q", name, host)
		}
		for _, url := range loopbackURLs(t, name, "8080") {
			eventually(t, "answer of "+name+" at "+url, func() bool {
				resp, err := http.Get(url)
				if err != nil {
					return false
				}
				defer func() { _ = resp.Body.Close() }()
				return resp.StatusCode == http.StatusOK
			})
		}
	}
	if r := fcvm(t, "snapshot", "ls", "-q"); len(strings.Fields(r.stdout)) != 1 {
		t.Errorf("snapshots while clones run: %q", r.stdout)
	}
	fcvm(t, append([]string{"rm", "-f"}, ids...)...)
	if r := fcvm(t, "snapshot", "ls", "-q"); r.stdout != "" {
		t.Errorf("snapshots after the last clone: %q", r.stdout)
	}
}

// A command in a clone of its own.
func TestCloneExec(t *testing.T) {
	detach(t, []string{"--name", "base", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	snapshotOf(t, "base", "base-warm", "--stop")
	if s := status(t, "base"); s.Status != "exited" {
		t.Errorf("after --stop: %+v", s)
	}
	fcvm(t, "clone", "--snapshot", "base-warm", "-e", "WORD=hello", "--exec", `echo "$WORD"; echo err >&2; exit 7`).want(t, 7, "hello\n")
	r := fcvm(t, "clone", "--snapshot", "base-warm", "-n", "3", "--name", "job", "--exec", "hostname")
	r.want(t, 0, "job-1\njob-2\njob-3\n")
	fcvmIn(t, strings.NewReader("through stdin\n"), "clone", "-i", "--exec", "cat", "base").want(t, 0, "through stdin\n") // of the VM that has ended
	fcvm(t, "clone", "--snapshot", "base-warm", "--on-restore", "exit 3", "--exec", "true").wantError(t, 125, "--on-restore", "ended with code 3")
	if r := fcvm(t, "ls", "-aq", "--filter", "name=job"); r.stdout != "" {
		t.Errorf("clones are left: %q", r.stdout)
	}
}

// In the foreground a clone is followed as a run is.
func TestCloneInTheForeground(t *testing.T) {
	r := run(t, []string{"-d", "--name", "talk", "--save-snapshot", "talking", "--wait-ready", "log=^up"}, "busybox", "sh", "-c",
		`trap "echo bye; exit 5" TERM; echo up; while :; do date +%s.%N; sleep 0.2; done`)
	if r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() {
		fcvm(t, "rm", "-f", "talk")
		fcvm(t, "snapshot", "rm", "-f", "talking")
	})
	p := start(t, "clone", "--snapshot", "talking", "--name", "talks", "--timings")
	p.eventually(t, "lines of the clone", func() bool { return strings.Count(p.out.String(), "\n") > 3 })
	fcvm(t, "stop", "talks")
	if code := p.wait(t); code != 5 || !strings.HasSuffix(p.out.String(), "bye\n") {
		t.Errorf("exit code %d, stdout %q; stderr:\n%s", code, p.out.String(), p.errs.String())
	}
	var phases []string
	for _, m := range regexp.MustCompile(`(?m)^(\S+) +[0-9.]+(?:ms|s|µs)$`).FindAllStringSubmatch(p.errs.String(), -1) {
		phases = append(phases, m[1])
	}
	// The namespace is made with the rest of the bridge's network, or by whoever
	// becomes the VMM. QEMU on usernet needs none.
	if i := slices.Index(phases, "namespace"); i >= 0 {
		phases = slices.Delete(phases, i, i+1)
	} else if env.driver != "qemu" || autoNetwork() != "usernet" {
		t.Errorf("no phase is the namespace's; stderr:\n%s", p.errs.String())
	}
	if want := []string{"image", "network", "disks", "spawn", "load", "resume", "agent", "identity", "total"}; !slices.Equal(phases, want) {
		t.Errorf("phases %q, want %q; stderr:\n%s", phases, want, p.errs.String())
	}
}

// A snapshot holds nothing of the network that it was taken on.
func TestCloneOnAnotherNetwork(t *testing.T) {
	networks := []string{"usernet"}
	if os.Geteuid() == 0 {
		networks = append(networks, "bridge")
	}
	for _, from := range networks {
		r := run(t, []string{"-d", "--name", "on-" + from, "--network", from, "--save-snapshot", "net-" + from}, "busybox", "sleep", "inf")
		if r.code != 0 {
			t.Fatal(r.stderr)
		}
		t.Cleanup(func() {
			fcvm(t, "rm", "-f", "on-"+from)
			fcvm(t, "snapshot", "rm", "-f", "net-"+from)
		})
		for _, to := range networks {
			// The gateway answers in each of them.
			fcvm(t, "clone", "--snapshot", "net-"+from, "--network", to, "--exec", "nslookup host.containers.internal >/dev/null && echo found").want(t, 0, "found\n")
		}
	}
}

// A VM that is paused is cloned from a snapshot that was taken since, if there
// is one, and stays paused.
func TestCloneOfAPausedVM(t *testing.T) {
	detach(t, []string{"--name", "still", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	fcvm(t, "pause", "still").want(t, 0, "still\n")
	snapshotOf(t, "still", "frozen")
	clone(t, "--name", "moves", "still")
	r := fcvm(t, "inspect", "--format", "{{.Resolved.Snapshot.Name}}", "moves")
	r.want(t, 0, "frozen\n")
	if s := status(t, "still"); s.Status != "paused" {
		t.Errorf("the original: %+v", s)
	}
	a := countOf(t, "moves")
	time.Sleep(time.Second)
	if b := countOf(t, "moves"); b <= a {
		t.Errorf("the clone counts %d after %d", b, a)
	}
	fcvm(t, "resume", "still").want(t, 0, "still\n")
}

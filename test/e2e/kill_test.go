package e2e

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestKilledSupervisor kills fcvm at random moments of a run. Nothing may be
// left but what the next command sweeps, and the name is free again.
func TestKilledSupervisor(t *testing.T) {
	const rounds = 20
	before := snapshotHost()
	for range rounds {
		p := start(t, runArgs(t, []string{"--name", "victim"}, "busybox", "sh", "-c", "echo up; sleep 1000")...)
		after := time.Duration(rand.Int64N(int64(10 * time.Second)))
		time.Sleep(after)
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.wait(t)
		if r := fcvm(t, "ls", "-a", "-q"); r.code != 0 || r.stdout != "" {
			t.Fatalf("killed after %s; ls: exit code %d, %q; stderr:\n%s", after, r.code, r.stdout, r.stderr)
		}
		if left := leftovers(before); len(left) > 0 {
			t.Fatalf("killed after %s; left behind: %q", after, left)
		}
	}
	run(t, []string{"--name", "victim"}, "busybox", "echo", "alive").want(t, 0, "alive\n")
}

package e2e

import (
	"os"
	"strings"
	"sync"
	"testing"
)

// TestPrune removes all that is not used, beside VMs that run and VMs that are
// about to.
func TestPrune(t *testing.T) {
	id := detach(t, []string{"--name", "keep"}, "busybox", "sleep", "1000")
	run(t, []string{"--name", "gone", "--rm=false"}, "busybox", "true").want(t, 0, "")
	t.Cleanup(func() { fcvm(t, "rm", "-f", "gone") })

	if r := fcvm(t, "system", "df"); r.code != 0 || !strings.Contains(r.stdout, "RECLAIMABLE") {
		t.Errorf("df: exit code %d, %s; stderr:\n%s", r.code, r.stdout, r.stderr)
	}
	fcvmIn(t, strings.NewReader(""), "system", "prune").wantError(t, 125, "nothing was removed", "--force")
	if s := status(t, "gone"); s.Status != "exited" {
		t.Errorf("without an answer: %+v", s)
	}
	r := fcvm(t, "system", "prune", "-a", "--force")
	if r.code != 0 || !strings.Contains(r.stdout, "Removed VM gone") || !strings.Contains(r.stdout, "Freed ") || strings.Contains(r.stdout, "keep") {
		t.Errorf("prune: exit code %d, %s; stderr:\n%s", r.code, r.stdout, r.stderr)
	}
	fcvm(t, "inspect", "gone").wantError(t, 125, "no such VM")

	var vms []struct {
		Resolved struct{ Disks []struct{ Path string } }
	}
	if err := decode([]byte(fcvm(t, "inspect", id).stdout), &vms); err != nil || len(vms) != 1 || len(vms[0].Resolved.Disks) != 3 {
		t.Fatalf("inspect: %+v, %v", vms, err)
	}
	for _, d := range vms[0].Resolved.Disks {
		if _, err := os.Stat(d.Path); err != nil {
			t.Errorf("a disk of a VM that runs: %v", err)
		}
	}
	fcvm(t, "exec", "keep", "sh", "-c", "cat /bin/busybox >/dev/null && echo readable").want(t, 0, "readable\n")
	fcvm(t, "rm", "-f", "keep").want(t, 0, "keep\n")

	// Nobody holds the image now. A run that comes between finds it, or makes it.
	stop := make(chan struct{})
	var pruning sync.WaitGroup
	pruned := 0
	pruning.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if r := fcvm(t, "system", "prune", "-af"); r.code != 0 {
				t.Errorf("prune: exit code %d; stderr:\n%s", r.code, r.stderr)
			}
			pruned++
		}
	})
	for range 2 {
		run(t, nil, "busybox", "echo", "alive").want(t, 0, "alive\n")
	}
	close(stop)
	pruning.Wait()
	t.Logf("pruned %d times beside two runs", pruned)
}

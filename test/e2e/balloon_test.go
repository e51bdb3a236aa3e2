package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// field reads a line "NAME: N kB" as the kernel writes them; MiB.
func field(t *testing.T, text, name string) int {
	t.Helper()
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name+":" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatalf("no %s in %q", name, text)
	return 0
}

// available is what the guest has left, MiB.
func available(t *testing.T, vm string) int {
	t.Helper()
	return field(t, fcvm(t, "exec", "--guest", vm, "cat", "/proc/meminfo").stdout, "MemAvailable")
}

// pss is what the host pays for the VMM and its guest, MiB.
func pss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Skip(err) // a VMM that is not dumpable: only root may look
	}
	return field(t, string(b), "Pss")
}

// TestBalloon takes memory back from a guest while its container runs, and
// gives it back.
func TestBalloon(t *testing.T) {
	const size, slack = 160, 40 // MiB
	detach(t, []string{"--name", "soft", "--mem", "512m", "--no-cache"}, "busybox", "sleep", "1000")
	pid := describe(t, "soft").Resolved.VMM.PID
	use := func() { // as a process that comes and goes does
		fcvm(t, "exec", "soft", "dd", "if=/dev/zero", "of=/dev/null", "bs=220M", "count=1")
	}
	use()
	free, cost := available(t, "soft"), pss(t, pid)
	t.Logf("before: the guest has %d MiB left, the host pays %d", free, cost)

	fcvm(t, "update", "--balloon", strconv.Itoa(size)+"m", "soft").want(t, 0, "soft\n")
	left, pays := free, cost
	defer func() {
		if t.Failed() {
			t.Logf("at last: the guest has %d MiB left, the host pays %d", left, pays)
		}
	}()
	eventually(t, "memory taken back", func() bool {
		left, pays = available(t, "soft"), pss(t, pid)
		return left <= free-size+slack && pays <= cost-size+slack
	})
	t.Logf("balloon of %d MiB: the guest has %d MiB left, the host pays %d", size, available(t, "soft"), pss(t, pid))
	fcvm(t, "inspect", "--format", "{{.Resolved.BalloonMiB}} {{.Spec.BalloonMiB}}", "soft").want(t, 0, fmt.Sprintf("%d 0\n", size))
	fcvm(t, "exec", "soft", "true").want(t, 0, "")

	fcvm(t, "update", "--balloon", "0", "soft").want(t, 0, "soft\n")
	eventually(t, "memory given back", func() bool { return available(t, "soft") >= free-slack })
	use()
	eventually(t, "memory used again", func() bool { return pss(t, pid) >= cost-slack })
	t.Logf("after: the guest has %d MiB left, the host pays %d", available(t, "soft"), pss(t, pid))

	fcvm(t, "update", "--balloon", "385", "soft").wantError(t, 125, "update soft", "--balloon 385: of a VM's 512 MiB it takes 0 to 384")
	fcvm(t, "pause", "soft").want(t, 0, "soft\n")
	fcvm(t, "update", "--balloon", "10", "soft").wantError(t, 125, "VM is paused")
	fcvm(t, "resume", "soft").want(t, 0, "soft\n")
	fcvm(t, "stop", "--time", "0", "soft").want(t, 0, "soft\n")
	fcvm(t, "update", "--balloon", "10", "soft").wantError(t, 125, "not running")
}

// TestBalloonFromTheStart: the guest gives memory up once it is up, and takes
// it back by itself rather than run out of it.
func TestBalloonFromTheStart(t *testing.T) {
	flags := []string{"--name", "small", "--mem", "512", "--balloon", "300"}
	detach(t, flags, "busybox", "sleep", "1000")
	fcvm(t, "inspect", "--format", "{{.Resolved.BalloonMiB}}", "small").want(t, 0, "300\n")
	eventually(t, "small guest", func() bool { return available(t, "small") < 512-300 })
	r := fcvm(t, "exec", "small", "dd", "if=/dev/zero", "of=/dev/null", "bs=150M", "count=1")
	if r.code != 0 {
		t.Errorf("a process that needs what is in the balloon: exit code %d, %s", r.code, r.stderr)
	}
}

package usage

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/proc"
)

// tree starts a shell with a child that is busy, and returns the shell.
func tree(t *testing.T) (pid int, start uint64) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `(while :; do :; done) & echo; read x; kill $!`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if start, err = proc.StartTime(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, start
}

func look(t *testing.T, pid int, start uint64) Usage {
	t.Helper()
	h, err := Look()
	if err != nil {
		t.Fatal(err)
	}
	u, err := h.Of(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUsageIsOfAProcessAndItsChildren(t *testing.T) {
	pid, start := tree(t)
	first := look(t, pid, start)
	if first.Processes != 2 {
		t.Errorf("%d processes; want the shell and its child", first.Processes)
	}
	if first.Memory == nil || *first.Memory < 100<<10 || *first.Memory > 100<<20 {
		t.Errorf("memory: %v", first.Memory)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now := look(t, pid, start)
		if p := now.CPUPercent(first); p > 5 && p < 150 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("a busy child shows as %.1f %% of CPU: %+v", p, now)
		}
	}
}

func TestUsageOfWhatIsGone(t *testing.T) {
	h, err := Look()
	if err != nil {
		t.Fatal(err)
	}
	own, err := proc.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for pid, start := range map[int]uint64{os.Getpid(): own + 1, 1 << 30: 1, 0: 0} {
		if u, err := h.Of(pid, start); !errors.Is(err, ErrGone) {
			t.Errorf("process %d: %+v, %v", pid, u, err)
		}
	}
}

func TestCPUPercentIsNeverNonsense(t *testing.T) {
	now := time.Now()
	a := Usage{Time: now, CPU: 2 * time.Second}
	if p := (Usage{Time: now.Add(time.Second), CPU: 3 * time.Second}).CPUPercent(a); p != 100 {
		t.Errorf("one busy CPU: %f", p)
	}
	for _, b := range []Usage{a, {Time: now.Add(time.Second), CPU: time.Second}, {Time: now.Add(-time.Second), CPU: 3 * time.Second}} {
		if p := b.CPUPercent(a); p != 0 {
			t.Errorf("%+v: %f", b, p)
		}
	}
}

func TestParseValue(t *testing.T) {
	const rollup = "55e0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  10 kB\nPss:  7 kB\nPss_Dirty: 3 kB\n"
	if n, err := parseValue(rollup, "Pss:"); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, bad := range []string{"", "Pss:", "Pss: x kB", "Rss: 1 kB"} {
		if n, err := parseValue(bad, "Pss:"); err == nil {
			t.Errorf("%q: %d", bad, n)
		}
	}
}

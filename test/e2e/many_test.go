package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/fcvm/fcvm/test/lab/labapi"
)

// atOnce is how many VMs are started, and then stopped, at the same time.
const atOnce = 10

// rounds is how often a test or benchmark does something: as often as the environment
// variable says, or as the gate can afford.
func rounds(t testing.TB, variable string, gate int) int {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		return gate
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: it is a number", variable, value)
	}
	return n
}

// TestManyVMs starts and stops $FCVM_TEST_VMS small VMs, ten at a time, beside
// one that runs all the while. None fails, and nothing of them is left: not on
// the host, and not in the one that has seen them come and go.
func TestManyVMs(t *testing.T) {
	n := rounds(t, "FCVM_TEST_VMS", 5)
	detach(t, manyFlags("survivor"), "busybox", "sh", "-c", handlesTERM)
	manyAtOnce(t, []string{"warm-up"}) // makes what is made once
	seen := func() [3]int {
		d := describe(t, "survivor")
		inGuest := fcvm(t, "exec", "--guest", "survivor", "sh", "-c", "ls /proc/1/fd | wc -l")
		ofAgent, err := strconv.Atoi(strings.TrimSpace(inGuest.stdout))
		if err != nil {
			t.Fatalf("the agent's descriptors: exit code %d, %v; stderr:\n%s", inGuest.code, err, inGuest.stderr)
		}
		return [3]int{descriptors(t, d.Supervisor.PID), descriptors(t, d.Resolved.VMM.PID), ofAgent}
	}
	before, had := snapshotHost(), seen()
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("many-%d", i))
	}
	for some := range slices.Chunk(names, atOnce) {
		manyAtOnce(t, some)
		fcvm(t, "exec", "survivor", "echo", "here").want(t, 0, "here\n")
		t.Logf("%s is gone", some[len(some)-1]) // a lab that says nothing is given up
	}
	if left := leftovers(before); len(left) > 0 {
		t.Errorf("left behind by %d VMs:\n%s", n, strings.Join(left, "\n"))
	}
	// What looks at the descriptors holds some itself, for a moment.
	has := had
	eventually(t, "the survivor with as many descriptors as before", func() bool {
		has = seen()
		return has[0] <= had[0] && has[1] <= had[1] && has[2] <= had[2]
	})
	t.Logf("%d VMs; descriptors of the survivor's supervisor, VMM and agent: %v before, %v after", n, had, has)
	fcvm(t, "stop", "survivor").want(t, 0, "survivor\n")
	fcvm(t, "wait", "survivor").want(t, 0, "4\n")
}

// manyFlags are those of a small VM.
func manyFlags(name string) []string {
	return []string{"--name", name, "--cpu", "1", "--mem", "192", "-p", "127.0.0.1::80", "--wait-ready", "log=^up"}
}

// manyAtOnce starts VMs, uses them, and stops them, all at the same time.
func manyAtOnce(t *testing.T, names []string) {
	t.Helper()
	together := func(do func(name string)) {
		var all sync.WaitGroup
		for _, name := range names {
			all.Go(func() { do(name) })
		}
		all.Wait()
	}
	// Those that failed are not there to be used, nor to be removed.
	together(func(name string) {
		start := func() result {
			// Ten at once take ten times as long where one CPU emulates them all.
			return fcvmWithin(t, 3*runTimeout, nil, runArgs(t, append([]string{"-d"}, manyFlags(name)...), "busybox", "sh", "-c", handlesTERM)...)
		}
		r := start()
		for tries := 1; r.code != 0 && labapi.Inside() && tries < labapi.Starts; tries++ {
			t.Logf("%s is not up in the lab, which resets a guest in three or four: %s", name, r.stderr)
			fcvm(t, "rm", "-f", name)
			r = start()
		}
		if r.code != 0 {
			t.Errorf("run %s: exit code %d; stderr:\n%s", name, r.code, r.stderr)
		}
	})
	t.Cleanup(func() { fcvm(t, append([]string{"rm", "-f"}, names...)...) })
	if t.Failed() {
		t.FailNow()
	}
	together(func(name string) {
		fcvm(t, "exec", name, "echo", name).want(t, 0, name+"\n")
		// Ten guests that share two CPUs may not get round to their trap in ten seconds.
		fcvm(t, "stop", "--time", "120", name).want(t, 0, name+"\n")
		fcvm(t, "logs", name).want(t, 0, "up\nbye\n")
		fcvm(t, "wait", name).want(t, 0, "4\n")
	})
	fcvm(t, append([]string{"rm"}, names...)...).want(t, 0, strings.Join(names, "\n")+"\n")
}

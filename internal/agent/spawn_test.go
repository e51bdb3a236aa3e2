package agent

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reaperArg makes the test's own program a process that reaps orphans, as
// process 1 does. In the test's process it would take the exit statuses of
// other tests' children.
const reaperArg = "act-as-process-1"

func reaperMain() {
	if err := reap(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("fine")
}

func reap() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	s := newSpawner(true)
	const many = 50
	errs := make(chan error)
	for i := range many {
		go func() {
			// Each leaves an orphan, and some end before anybody waits.
			ws, err := s.run(exec.Command("/bin/sh", "-c", fmt.Sprintf("(sleep 0.2; exit 99) & exit %d", i)))
			if err == nil && exitCode(ws) != i {
				err = fmt.Errorf("command %d ended with %d", i, exitCode(ws))
			}
			errs <- err
		}()
	}
	for range many {
		if err := <-errs; err != nil {
			return err
		}
	}
	if _, err := s.run(exec.Command("/no/such/command")); err == nil {
		return fmt.Errorf("a command that does not exist was started")
	}
	for limit := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
		if err != nil || len(strings.Fields(string(b))) == 0 {
			return err
		}
		if time.Now().After(limit) {
			return fmt.Errorf("orphans are left: %s", b)
		}
	}
}

func TestProcess1ReapsOrphansAndKnowsItsChildren(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", reaperArg).CombinedOutput()
	if err != nil || string(out) != "fine\n" {
		t.Errorf("%v: %s", err, out)
	}
}

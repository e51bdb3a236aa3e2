package e2e

import (
	"strings"
	"testing"
)

// What is connected to the original by its agent ends in a clone: nobody there
// has asked for it.
func TestSessionsDoNotFollowIntoAClone(t *testing.T) {
	detach(t, []string{"--name", "host", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	session := start(t, "exec", "host", "sh", "-c", "echo ready; sleep 4711; true")
	session.waitOutput(t, "ready")
	term, _ := onScreen(t, command(t.Context(), "exec", "-it", "host", "sh"))
	term.typing(t, "sleep 4712\n")
	term.see(t, "sleep 4712")
	clone(t, "--name", "guest", "host")
	gone(t, "guest", "sleep 4711")
	gone(t, "guest", "sleep 4712")
	if ps := inVM(t, "host", "ps", "-o", "args"); !strings.Contains(ps, "sleep 4711") || !strings.Contains(ps, "sleep 4712") {
		t.Errorf("the original's sessions have ended, too:\n%s", ps)
	}
	n := countOf(t, "guest")
	eventually(t, "more of the container's work", func() bool { return countOf(t, "guest") > n })
}

// A guest with a systemd, which knows the machine's name and id as well.
func TestCloneOfASystemdGuest(t *testing.T) {
	detach(t, []string{"--name", "unit", "--init", "systemd", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	clone(t, "--name", "unit-2", "unit")
	id := func(vm string) string {
		r := fcvm(t, "exec", "--guest", vm, "cat", "/etc/machine-id")
		if r.code != 0 || len(r.stdout) != 33 {
			t.Errorf("the machine id of %s: %+v", vm, r)
		}
		return r.stdout
	}
	if id("unit") == id("unit-2") {
		t.Error("both have one machine id")
	}
	fcvm(t, "exec", "--guest", "unit-2", "sh", "-c", "hostname; systemctl is-active fc-agent; journalctl -q --no-pager -n 1 | wc -l").
		want(t, 0, "unit-2\nactive\n1\n")
}

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

package e2e

import (
	"strings"
	"testing"
)

// TestLogs follows a container through its restarts and through a log that is
// full, and reads what is left when the VM is gone.
func TestLogs(t *testing.T) {
	// Two lives, which together write more than the log keeps: 2000 lines of 1000 bytes each.
	const script = `echo begin; echo oops >&2; yes "$(head -c 999 /dev/zero | tr '\0' x)" | head -n 2000; echo end; exit 3`
	id := detach(t, []string{"--name", "chatty", "--restart", "on-failure:1", "--log-size", "4m"}, "busybox", "sh", "-c", "sleep 1; "+script)
	p := start(t, "logs", "-f", "chatty")
	if code := p.wait(t); code != 0 {
		t.Errorf("logs -f: exit code %d; stderr:\n%s", code, p.errs.String())
	}
	out := p.out.String()
	if n := strings.Count(out, "begin\n"); n != 2 {
		t.Errorf("followed %d lives of 2", n)
	}
	if n := strings.Count(out, "x\n"); n != 4000 || !strings.HasSuffix(out, "x\nend\n") {
		t.Errorf("followed %d lines of 4000; the end: %q", n, out[max(0, len(out)-20):])
	}
	if errs := p.errs.String(); errs != "oops\noops\n" {
		t.Errorf("stderr %q", errs)
	}
	fcvm(t, "wait", id).want(t, 0, "3\n")
	if r := fcvm(t, "logs", id); r.code != 0 || len(r.stdout) < 2<<20 || len(r.stdout) > 3300<<10 || !strings.HasSuffix(r.stdout, "x\nend\n") {
		t.Errorf("logs: exit code %d, %d bytes; stderr:\n%s", r.code, len(r.stdout), r.stderr)
	}
	fcvm(t, "logs", "--tail", "1", id).want(t, 0, "end\n")
	fcvm(t, "logs", "--since", "0s", id).want(t, 0, "")
	if r := fcvm(t, "logs", "-t", "-n", "1", id); !strings.HasSuffix(r.stdout, "Z end\n") && !strings.HasSuffix(r.stdout, "0 end\n") {
		t.Errorf("logs -t: %q", r.stdout)
	}
	if r := fcvm(t, "logs", "--console", id); r.code != 0 {
		t.Errorf("logs --console: exit code %d; stderr:\n%s", r.code, r.stderr)
	}
	fcvm(t, "rm", id).want(t, 0, id+"\n")
	fcvm(t, "logs", id).wantError(t, 125, "no such VM")
}

package e2e

import (
	"strconv"
	"strings"
	"testing"
)

// idle is a container that does nothing, without a process that a test could
// take for its own.
const idle = `trap "exit 0" TERM; echo up; tail -f /dev/null & wait`

// TestHealth follows a container from well to ill and back.
func TestHealth(t *testing.T) {
	id := detach(t, []string{
		"--name", "patient", "--wait-ready", "log=^up", "--health-cmd", "test -e /well",
		"--health-interval", "200ms", "--health-retries", "2", "--health-start-period", "1ms",
	}, "busybox", "sh", "-c", ">/well; "+idle)
	health := func(want string) {
		t.Helper()
		eventually(t, want+" VM", func() bool { return status(t, id).Health == want })
		fcvm(t, "ls", "--filter", "health="+want, "-q").want(t, 0, id+"\n")
	}
	health("healthy")
	fcvm(t, "exec", id, "rm", "/well").want(t, 0, "")
	health("unhealthy")
	if got := fcvm(t, "ls", "--format", "{{.Status}} {{.Health}}").stdout; got != "running unhealthy\n" {
		t.Errorf("ls shows %q", got)
	}
	fcvm(t, "exec", id, "touch", "/well").want(t, 0, "")
	health("healthy")
	var told []string
	for _, e := range eventsOf(t, id) {
		if e.Event == "health" {
			told = append(told, e.Detail)
		}
	}
	if got := strings.Join(told, " "); got != "starting healthy unhealthy healthy" {
		t.Errorf("events of health: %q", got)
	}
}

// TestHealthCheckThatHangs: a check that is given up is killed, deaf as it may be.
func TestHealthCheckThatHangs(t *testing.T) {
	id := detach(t, []string{
		"--wait-ready", "log=^up", "--health-cmd", `trap "" HUP TERM; sleep 4321; true`,
		"--health-interval", "100ms", "--health-timeout", "500ms", "--health-retries", "4",
	}, "busybox", "sh", "-c", idle)
	eventually(t, "unhealthy VM", func() bool { return status(t, id).Health == "unhealthy" })
	// One may be under way, and one on its way out.
	n, err := strconv.Atoi(strings.TrimSpace(fcvm(t, "exec", id, "sh", "-c", "pidof sleep | wc -w").stdout))
	if err != nil || n > 2 {
		t.Errorf("%d checks are running, %v", n, err)
	}
}

// TestImageHealth: an image's own check is run unless the user says otherwise.
func TestImageHealth(t *testing.T) {
	own := detach(t, []string{"--health-interval", "500ms", "--wait-ready", "tcp=6379"}, "redis")
	eventually(t, "healthy VM", func() bool { return status(t, own).Health == "healthy" })
	fcvm(t, "stop", own).want(t, 0, own+"\n")
	without := detach(t, []string{"--no-healthcheck", "--wait-ready", "tcp=6379"}, "redis")
	if s := status(t, without); s.Health != "" && s.Health != "none" {
		t.Errorf("with --no-healthcheck: %+v", s)
	}
}

// TestGatesThatStayClosed: run says which gate it was, why, and what the guest's
// console had last; nothing is left.
func TestGatesThatStayClosed(t *testing.T) {
	for gate, why := range map[string]string{
		"exec=echo nobody home; exit 3": "it ended with code 3: nobody home",
		"log=^never":                    "log=^never",
		"http=http://localhost:81/":     "refused",
	} {
		r := run(t, []string{"-d", "--rm", "--wait-ready", gate + ",timeout=2s"}, "busybox", "sh", "-c", idle)
		r.wantError(t, 125, "did not get ready", gate, "within 2s", why, "console")
	}
	if r := fcvm(t, "ls", "-aq"); r.stdout != "" {
		t.Errorf("left after failed starts: %q", r.stdout)
	}
}

package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

const (
	podman     = "/usr/bin/podman"
	podmanConf = runDir + "/containers.conf"

	// runtimeState is where crun keeps one directory for each container.
	runtimeState = "/run/crun"
)

// podmanRun is the command that runs the container from its exploded root,
// with everything of its image given as flags. The environment is not among
// them: see writePodmanConfig.
func podmanRun(c *agentapi.Container) *exec.Cmd {
	f := flags{
		"run", "--pull=never", "--network=host", "--http-proxy=false",
		"--pidfile=" + pidFile, "--cidfile=" + cidFile,
	}
	if c.TTY {
		// The agent's terminal is the outer one, Podman's the container's.
		f.add("--tty", "--log-driver=none", "--detach-keys=")
	} else {
		// The container writes to the agent's pipes itself: nothing is
		// copied, split or reordered on the way.
		f.add("--log-driver=passthrough")
	}
	f.set("name", c.Name)
	f.on("interactive", c.Interactive)
	f.on("privileged", c.Privileged)
	f.on("read-only", c.ReadOnly)
	f.set("workdir", c.WorkDir)
	f.set("user", c.User)
	f.set("hostname", c.Hostname)
	f.set("stop-signal", c.StopSignal)
	f.each("cap-add", c.CapAdd)
	f.each("cap-drop", c.CapDrop)
	f.each("tmpfs", c.Tmpfs)
	f.each("volume", c.Volumes)
	for k, v := range c.Labels {
		f.add("--label=" + k + "=" + v)
	}
	f.health(c.Health)
	f.add("--rootfs", imageMount+"/"+agentapi.ImageRoot+":O")
	cmd := exec.Command(podman, append(f, c.Args...)...)
	cmd.Env = podmanEnv()
	cmd.Dir = "/"
	return cmd
}

// podmanEnv is the environment of Podman itself, never of a container.
func podmanEnv() []string {
	return []string{
		"PATH=" + guestPath, "HOME=/root", "TERM=xterm", "TMPDIR=/var/tmp",
		"CONTAINERS_CONF=" + podmanConf,
		"DISABLE_HC_SYSTEMD=true", // health checks need no timers of systemd's
	}
}

// flags are arguments of a command line.
type flags []string

func (f *flags) add(args ...string) { *f = append(*f, args...) }

func (f *flags) set(name, value string) {
	if value != "" {
		f.add("--" + name + "=" + value)
	}
}

func (f *flags) on(name string, set bool) {
	if set {
		f.add("--" + name)
	}
}

func (f *flags) each(name string, values []string) {
	for _, v := range values {
		f.set(name, v)
	}
}

// health says an image's health check in Podman's words.
func (f *flags) health(h *agentapi.Health) {
	if h == nil || len(h.Test) == 0 {
		return
	}
	if h.Test[0] == "NONE" {
		f.add("--no-healthcheck")
		return
	}
	f.set("health-cmd", jsonText(h.Test))
	if h.Interval > 0 {
		f.set("health-interval", h.Interval.String())
	}
	if h.Timeout > 0 {
		f.set("health-timeout", h.Timeout.String())
	}
	if h.StartPeriod > 0 {
		f.set("health-start-period", h.StartPeriod.String())
	}
	if h.Retries > 0 {
		f.set("health-retries", strconv.Itoa(h.Retries))
	}
}

// writePodmanConfig writes Podman's configuration (containers.conf(5)). It
// carries the container's environment: so it shows in no process list, is not
// that of Podman itself (PATH, HOME and LD_PRELOAD are the container's own),
// and may hold line breaks, which an --env-file cannot.
func writePodmanConfig(c *agentapi.Container) error {
	env := []string{"PATH=" + guestPath, "TERM=xterm"} // Podman's own defaults
	for _, kv := range c.Env {
		if strings.Contains(kv, "=") { // without it, Podman would look in its own
			env = append(env, kv)
		}
	}
	conf := fmt.Sprintf(`[containers]
env = %s
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "netavark"
`, tomlStrings(env))
	if err := os.WriteFile(podmanConf, []byte(conf), 0o600); err != nil {
		return fmt.Errorf("write Podman's configuration: %w", err)
	}
	return nil
}

// tomlStrings encodes an array of strings. JSON's is TOML's, but for DEL,
// which TOML wants escaped.
func tomlStrings(s []string) string {
	return strings.ReplaceAll(jsonText(s), "\x7f", `\u007f`)
}

// jsonText encodes strings, which cannot fail.
func jsonText(s []string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

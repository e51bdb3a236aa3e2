package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
)

const (
	podman     = "/usr/bin/podman"
	podmanConf = runDir + "/containers.conf"

	// runtimeState is where crun keeps one directory for each container.
	runtimeState = "/run/crun"

	// podmanFiles is where Podman keeps what it mounts into containers.
	podmanFiles = "/run/containers/storage/overlay-containers"

	// podmanExits is where Podman has conmon note how containers end (--exit-dir).
	podmanExits = "/run/libpod/exits"
)

func podmanUserFiles(id string) string { return filepath.Join(podmanFiles, id, "userdata") }

func podmanMonitor(id string) monitorFiles {
	return monitorFiles{pid: filepath.Join(podmanUserFiles(id), "conmon.pid"), exit: filepath.Join(podmanExits, id)}
}

// podmanCommand prepares a run of Podman.
func podmanCommand(c *agentapi.Container) (*exec.Cmd, error) {
	if err := os.WriteFile(podmanConf, []byte(podmanConfig(c)), 0o600); err != nil {
		return nil, fmt.Errorf("write Podman's configuration: %w", err)
	}
	root, err := rootFor(c, imageRoot, ownLayer)
	if err != nil {
		return nil, err
	}
	return podmanRun(c, root), nil
}

// podmanRun is the command that runs the container from its exploded root,
// with everything of its image given as flags. The environment is not among
// them: see podmanConfig.
func podmanRun(c *agentapi.Container, root string) *exec.Cmd {
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
	for i, v := range c.Volumes {
		if v.NoCopy { // of a volume without a name Podman takes no options
			f.add(fmt.Sprintf("--volume=anonymous%d:%s:nocopy", i, v.Target))
		} else {
			f.add("--volume=" + v.Target)
		}
	}
	for _, m := range c.Mounts {
		f.set("volume", bind(m))
	}
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		f.add("--label=" + k + "=" + c.Labels[k])
	}
	f.add("--rootfs", root)
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

// podmanConfig is Podman's configuration (containers.conf(5)). It carries the
// container's environment: so it shows in no process list, is not that of
// Podman itself (PATH, HOME and LD_PRELOAD are the container's own), and may
// hold line breaks, which an --env-file cannot.
func podmanConfig(c *agentapi.Container) string {
	env := []string{"PATH=" + guestPath, "TERM=xterm"} // Podman's own defaults
	for _, kv := range c.Env {
		if strings.Contains(kv, "=") { // without it, Podman would look in its own
			env = append(env, kv)
		}
	}
	return fmt.Sprintf(`[containers]
env = %s
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "netavark"
`, tomlStrings(env))
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

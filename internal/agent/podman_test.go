package agent

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// common are the flags that every run has; the container's root and its
// command come after all flags.
var common = []string{
	"/usr/bin/podman", "run", "--pull=never", "--network=host", "--http-proxy=false",
	"--pidfile=/run/fcvm/pid", "--cidfile=/run/fcvm/cid",
}

func TestPodmanFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		c    agentapi.Container
		want []string
	}{
		"nothing":     {agentapi.Container{}, nil},
		"name":        {agentapi.Container{Name: "web"}, []string{"--name=web"}},
		"interactive": {agentapi.Container{Interactive: true}, []string{"--interactive"}},
		"privileged":  {agentapi.Container{Privileged: true}, []string{"--privileged"}},
		"read-only":   {agentapi.Container{ReadOnly: true}, []string{"--read-only"}},
		"workdir":     {agentapi.Container{WorkDir: "/a b"}, []string{"--workdir=/a b"}},
		"user":        {agentapi.Container{User: "1000:1000"}, []string{"--user=1000:1000"}},
		"hostname":    {agentapi.Container{Hostname: "h"}, []string{"--hostname=h"}},
		"stop signal": {agentapi.Container{StopSignal: "SIGQUIT"}, []string{"--stop-signal=SIGQUIT"}},
		"lists": {
			agentapi.Container{CapAdd: []string{"NET_ADMIN", "SYS_TIME"}, CapDrop: []string{"ALL"}, Tmpfs: []string{"/t:size=1m"}, Volumes: []agentapi.Volume{{Target: "/v"}, {Target: "/w", NoCopy: true}}},
			[]string{"--cap-add=NET_ADMIN", "--cap-add=SYS_TIME", "--cap-drop=ALL", "--tmpfs=/t:size=1m", "--volume=/v", "--volume=anonymous1:/w:nocopy"},
		},
		"labels": {
			agentapi.Container{Labels: map[string]string{"b": "2", "a": "x=y", "c": ""}},
			[]string{"--label=a=x=y", "--label=b=2", "--label=c="},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.c.Args = []string{"--odd", "-c", "x"}
			tail := []string{"--rootfs", "/run/fcvm/image/rootfs:O", "--odd", "-c", "x"}
			want := slices.Concat(common, []string{"--log-driver=passthrough"}, tc.want, tail)
			if diff := cmp.Diff(want, podmanRun(&tc.c, imageRoot+":O").Args); diff != "" {
				t.Error(diff)
			}
			tc.c.TTY = true
			want = slices.Concat(common, []string{"--tty", "--log-driver=none", "--detach-keys="}, tc.want, tail)
			if diff := cmp.Diff(want, podmanRun(&tc.c, imageRoot+":O").Args); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The environment is in no argument: everybody in the guest can read those.
func TestSecretsAreInNoProcessList(t *testing.T) {
	c := agentapi.Container{Args: []string{"x"}, Env: []string{"TOKEN=hunter2"}}
	cmd := podmanRun(&c, imageRoot+":O")
	for _, s := range slices.Concat(cmd.Args, cmd.Env) {
		if strings.Contains(s, "hunter2") {
			t.Errorf("found in %q", s)
		}
	}
	if !strings.Contains(podmanConfig(&c), "hunter2") {
		t.Error("not in the configuration either")
	}
}

func TestPodmanConfig(t *testing.T) {
	got := podmanConfig(&agentapi.Container{Env: []string{
		"PLAIN=1", "PATH=/mine", "NO_VALUE", "EMPTY=", "LINES=a\nb", "QUOTES=\"'\\", "CONTROL=\x01\x7f\t", "UNICODE=ä€😀\u2028", "HTML=<&>",
	}})
	want := `[containers]
env = ["PATH=` + guestPath + `","TERM=xterm","PLAIN=1","PATH=/mine","EMPTY=","LINES=a\nb","QUOTES=\"'\\","CONTROL=\u0001\u007f\t","UNICODE=ä€😀\u2028","HTML=\u003c\u0026\u003e"]
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "netavark"
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// tomlString is a basic string as TOML 1.0 has it: no control character but
// tab, and these escapes only. https://toml.io/en/v1.0.0#string
var tomlString = regexp.MustCompile(`^\["(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[btnfr"\\]|\\u[0-9A-Fa-f]{4})*"\]$`)

func TestAnyTextIsTOML(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := string(rapid.SliceOf(rapid.Rune()).Draw(t, "runes"))
		out := tomlStrings([]string{in})
		if !tomlString.MatchString(out) || !utf8.ValidString(out) {
			t.Fatalf("%q is not TOML", out)
		}
		// What escapes it has mean the same in JSON.
		var back []string
		if err := json.Unmarshal([]byte(out), &back); err != nil || len(back) != 1 || back[0] != in {
			t.Fatalf("%q became %q, %v", in, back, err)
		}
	})
}

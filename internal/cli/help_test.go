package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func TestEveryCommandExplainsItself(t *testing.T) {
	root := newRootCommand(newApp(System{}))
	err := eachCommand(root, func(cmd *cobra.Command) error {
		path := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || cmd.Short[:1] != strings.ToUpper(cmd.Short[:1]) {
			t.Errorf("%s: short text %q", path, cmd.Short)
		}
		if cmd != root && cmd.Parent() == root && cmd.GroupID == "" {
			t.Errorf("%s is in no group", path)
		}
		for line := range strings.Lines(cmd.Long + "\n" + cmd.Example) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 90 {
				t.Errorf("%s: line of %d characters: %s", path, n, line)
			}
		}
		if cmd.Runnable() && cmd.Example == "" && cmd.Name() != "version" {
			t.Errorf("%s has no example", path)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s has no text", path, f.Name)
			}
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestHelpListsAllCommandsByGroup(t *testing.T) {
	out := newHost(t).ok("--help")
	last := -1
	for _, want := range []string{
		"Examples:\n", "Run containers:\n", "  run ", "Look after VMs:\n", "  inspect ", "  logs ", "  ls ", "  rm ",
		"Prepare this host:\n", "  setup ", "Other commands:\n", "  completion ", "  version ",
	} {
		i := strings.Index(out[max(last, 0):], want) + max(last, 0)
		if i < last || !strings.Contains(out, want) {
			t.Errorf("%q is missing or out of order in:\n%s", want, out)
		}
		last = i
	}
	if strings.Contains(out, "Additional Commands") || strings.Contains(out, "  man ") {
		t.Errorf("help shows what it should not:\n%s", out)
	}
}

// The flags of the commands are promises to scripts.
func TestRunHasTheFlagsThatWerePromised(t *testing.T) {
	cmd := newRunCommand(newApp(System{}), runRun)
	var got []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := f.Name
		if f.Shorthand != "" {
			name += ",-" + f.Shorthand
		}
		got = append(got, name)
	})
	want := strings.Fields(`name env,-e env-file workdir,-w user,-u entrypoint hostname label,-l detach,-d interactive,-i tty,-t
		privileged read-only cap-add cap-drop tmpfs volume,-v map mount map-mode cpu mem hugepages balloon io-max scratch-size disk-bps disk-iops network mode publish,-p egress dns dns-search add-host ip isolated subnet pull platform authfile cert-dir tls-verify vmm init no-cache boot-timeout
		rm logs log-size restart wait-ready save-snapshot on-restore health-cmd health-interval health-timeout health-start-period health-retries
		no-healthcheck setup quiet,-q verbose timings`)
	if !slices.Equal(got, want) {
		t.Errorf("flags\n%q\nwant\n%q", got, want)
	}
}

func TestMistypedCommandsGetASuggestion(t *testing.T) {
	h := newHost(t)
	for args, want := range map[string]string{
		"rnu":               "did you mean rm or run?",
		"setup kernl":       "did you mean kernel?",
		"frobnicate":        `fcvm has no command "frobnicate"`,
		"ls x":              `fcvm ls takes no argument "x"`,
		"setup preflight x": `fcvm setup preflight takes no argument "x"`,
		"rm":                "no VM given",
		"logs a b":          "more than one VM given",
		"man":               "no directory given",
	} {
		code, out, errs := h.fcvm(strings.Fields(args)...)
		if code != exitFailed || out != "" || !strings.Contains(errs, want) || !strings.Contains(errs, "hint: see 'fcvm") {
			t.Errorf("fcvm %s: code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
}

func TestShellsCompleteNamesAndWords(t *testing.T) {
	h := newHost(t)
	complete := func(args ...string) []string {
		_, out, _ := h.fcvm(append([]string{"__completeNoDesc"}, args...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		return lines[:len(lines)-1] // the last is a directive
	}
	if got := complete("inspect", ""); len(got) != 0 {
		t.Errorf("names of no VMs: %q", got)
	}
	h.create("live", defaultSpec())
	h.end(h.create("ended", defaultSpec()), 0)
	h.running("running")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"inspect", ""}, []string{"live", "ended", "running"}},
		{[]string{"inspect", "live", ""}, []string{"ended", "running"}},
		{[]string{"inspect", "li"}, []string{"live"}},
		{[]string{"rm", ""}, []string{"ended"}},
		{[]string{"exec", "--guest", ""}, []string{"live", "running"}},
		{[]string{"exec", "-it", ""}, []string{"live", "running"}},
		{[]string{"update", ""}, []string{"running"}},
		{[]string{"update", "--balloon", ""}, nil},
		{[]string{"run", "--balloon", ""}, nil},
		{[]string{"run", "--vmm", ""}, []string{"auto", "firecracker", "qemu"}},
		{[]string{"run", "--init="}, []string{"agent", "systemd"}},
		{[]string{"ls", ""}, nil},
		{[]string{"kill", "--signal", ""}, []string{"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP", "WINCH"}},
		{[]string{"run", "--restart", ""}, []string{"no", "on-failure", "on-failure:", "always"}},
		{[]string{"run", "--wait-ready", ""}, []string{"agent", "http=http://localhost:", "tcp=", "log=", "exec="}},
		{[]string{"events", "--vm", ""}, []string{"live", "ended", "running"}},
		{[]string{"events", "--since", ""}, []string{"1m", "10m", "1h", "24h"}},
	} {
		if got := complete(c.args...); !slices.Equal(got, c.want) {
			t.Errorf("completion of %q: %q, want %q", c.args, got, c.want)
		}
	}
}

// A shell that offers files for what is none is worse than one that offers
// nothing.
func TestOnlyFilesCompleteToFiles(t *testing.T) {
	h := newHost(t)
	err := eachCommand(newRootCommand(newApp(System{})), func(cmd *cobra.Command) error {
		words := strings.Fields(cmd.CommandPath())[1:]
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if takesFile(f) || f.Value.Type() == "bool" {
				return
			}
			_, out, _ := h.fcvm(slices.Concat([]string{"__complete"}, words, []string{"--" + f.Name, ""})...)
			if !strings.HasSuffix(strings.TrimSpace(out), "4") && !strings.HasSuffix(strings.TrimSpace(out), "6") { // ShellCompDirectiveNoFileComp
				t.Errorf("fcvm %s --%s completes to files: %q", strings.Join(words, " "), f.Name, out)
			}
		})
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCompletionScriptsAreMadeForAllShells(t *testing.T) {
	h := newHost(t)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := h.ok("completion", shell); !strings.Contains(out, "fcvm") {
			t.Errorf("completion %s: %q", shell, out)
		}
	}
}

func TestVersionIsMachineReadable(t *testing.T) {
	h := newHost(t)
	if out := h.ok("version"); !strings.HasPrefix(out, "fcvm ") || strings.Count(out, "\n") != 1 {
		t.Errorf("version: %q", out)
	}
	if out := h.ok("version", "--format", "json"); !strings.Contains(out, `"platform": "linux/`) {
		t.Errorf("version as JSON: %q", out)
	}
	if out := h.ok("version", "--format", "{{.Platform}}"); !strings.HasPrefix(out, "linux/") {
		t.Errorf("version by template: %q", out)
	}
}

func TestManPagesAreWrittenForAllCommands(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(t.TempDir(), "man1")
	h.ok("man", dir)
	root := newRootCommand(newApp(System{}))
	err := eachCommand(root, func(cmd *cobra.Command) error {
		path := filepath.Join(dir, manName(cmd)+".1")
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		page := string(b)
		for _, want := range []string{".TH ", ".SH \"NAME\"\n" + escape(manName(cmd)), ".SH \"SYNOPSIS\""} {
			if !strings.Contains(page, want) {
				t.Errorf("%s lacks %q", path, want)
			}
		}
		cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(page, escape("--"+f.Name)) {
				t.Errorf("%s lacks --%s", path, f.Name)
			}
		})
		checkRoff(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkRoff lets groff complain of a page, where there is one.
func checkRoff(t *testing.T, path string) {
	t.Helper()
	groff, err := exec.LookPath("groff")
	if err != nil {
		return // what else the test checks stands by itself
	}
	out, err := exec.CommandContext(t.Context(), groff, "-man", "-ww", "-z", "-Tutf8", path).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff %s: %v: %s", path, err, out)
	}
}

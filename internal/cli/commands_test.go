package cli

import (
	"bytes"
	"testing"

	"github.com/spf13/cobra"
)

// A command that is made alone is the same as among all.
func TestOneCommandIsMadeAlone(t *testing.T) {
	help := func(root *cobra.Command, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		root.SetArgs(append(args, "--help"))
		root.SetOut(&out)
		root.SetErr(&out)
		if err := root.Execute(); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return out.String()
	}
	for _, m := range makers {
		alone := newApp(System{}).rootFor([]string{"--data-dir", "/x", m.name})
		if n := len(alone.Commands()); n != 1 && m.name != "man" {
			t.Errorf("%s: %d commands are made", m.name, n)
		}
		whole := help(newRootCommand(newApp(System{})), m.name)
		if got := help(alone, m.name); got != whole || got == "" {
			t.Errorf("%s: its help is\n%s\namong all it is\n%s", m.name, got, whole)
		}
	}
}

func TestCommandIn(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, ""},
		{[]string{"clone", "-d"}, "clone"},
		{[]string{"--data-dir", "ls", "run", "ls"}, "run"},
		{[]string{"--data-dir=/x", "run"}, "run"},
		{[]string{"--data-dir"}, ""},
		{[]string{"--help", "run"}, ""},
		{[]string{"help", "run"}, "help"},
		{[]string{cobra.ShellCompRequestCmd, "run", ""}, cobra.ShellCompRequestCmd},
		{[]string{"--", "run"}, ""},
	} {
		if got := commandIn(c.args); got != c.want {
			t.Errorf("%q: %q, want %q", c.args, got, c.want)
		}
	}
	for _, args := range [][]string{nil, {"help", "run"}, {"ps"}, {cobra.ShellCompRequestCmd, "run", ""}} {
		if n := len(newApp(System{}).rootFor(args).Commands()); n < len(makers) {
			t.Errorf("%q: only %d commands are made", args, n)
		}
	}
}

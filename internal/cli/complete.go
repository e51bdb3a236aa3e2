package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

// completeVMs offers the names of VMs that the command can take.
func completeVMs(a *app, want func(store.Entry) bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return vmNames(a, args, typed, want), cobra.ShellCompDirectiveNoFileComp
	}
}

// vmNames lists the names that begin with what was typed, without those given
// already, with a description; an id once one was begun.
func vmNames(a *app, given []string, typed string, want func(store.Entry) bool) []cobra.Completion {
	var names []cobra.Completion
	for _, e := range completionEntries(a) {
		r := e.Record
		if e.Err != nil || !want(e) || contains(given, r) {
			continue
		}
		about := fmt.Sprintf("%s, %s", printable(r.Spec.Image), r.Status)
		switch {
		case strings.HasPrefix(r.Name, typed):
			names = append(names, cobra.CompletionWithDesc(r.Name, about))
		case strings.HasPrefix(r.ID, typed):
			names = append(names, cobra.CompletionWithDesc(r.ID, about))
		}
	}
	return names
}

func contains(given []string, r vm.Record) bool {
	for _, g := range given {
		if g == r.Name || g == r.ID {
			return true
		}
	}
	return false
}

func anyVM(store.Entry) bool     { return true }
func endedVM(e store.Entry) bool { return !e.Alive }

// completionEntries lists the VMs there are, and none where that fails: the
// shell is no place for errors.
func completionEntries(a *app) []store.Entry {
	l, err := a.layout()
	if err != nil {
		return nil
	}
	if _, err := os.Stat(l.VMs()); err != nil {
		return nil // and a key press makes no directories
	}
	st, err := store.Open(l)
	if err != nil {
		return nil
	}
	entries, err := st.List()
	if err != nil {
		return nil
	}
	return entries
}

// completeNoFiles keeps the shell from offering files as values of flags that
// take none, unless it was told something better.
func completeNoFiles(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if _, told := cmd.GetFlagCompletionFunc(f.Name); !told && !takesFile(f) && f.Name != "help" {
			complete(cmd, f.Name, cobra.NoFileCompletions)
		}
	})
	for _, c := range cmd.Commands() {
		completeNoFiles(c)
	}
}

// takesFile reports whether a flag's value is a file, by how its help calls it.
func takesFile(f *pflag.Flag) bool {
	value, usage := pflag.UnquoteUsage(f)
	return strings.Contains(value, "FILE") || strings.Contains(value, "DIR") || strings.Contains(usage, "a FILE")
}

// oneOfVMs completes a flag's value to the name of any VM.
func oneOfVMs(a *app) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return vmNames(a, nil, typed, anyVM), cobra.ShellCompDirectiveNoFileComp
	}
}

// beginnings completes a flag's value to words after some of which more is to
// come.
func beginnings(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
}

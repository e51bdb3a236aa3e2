package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// noArgs is for commands that take flags and subcommands only.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("%s takes no argument %q", cmd.CommandPath(), args[0])
	if cmd.HasAvailableSubCommands() {
		err = fmt.Errorf("%s has no command %q", cmd.CommandPath(), args[0])
		if cmd.SuggestionsMinimumDistance <= 0 {
			cmd.SuggestionsMinimumDistance = suggestionDistance
		}
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			err = fmt.Errorf("%w; did you mean %s?", err, orList(s))
		}
	}
	return &usageError{command: cmd.CommandPath(), err: err}
}

// suggestionDistance is how many letters of a command may be wrong.
const suggestionDistance = 2

// oneOrMore is for commands that take a list of what.
func oneOrMore(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return &usageError{command: cmd.CommandPath(), err: errors.New("no " + what + " given")}
		}
		return nil
	}
}

// atMostOne is for commands that take one of what, or none.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return one(what)(cmd, args)
	}
}

// one is for commands that take exactly one of what.
func one(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return &usageError{command: cmd.CommandPath(), err: fmt.Errorf("more than one %s given: %q", what, args)}
		}
		return oneOrMore(what)(cmd, args)
	}
}

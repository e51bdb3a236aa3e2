package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/atomicfile"
)

// newManCommand writes the manual pages; packagers call it.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages",
		Long:   `Write the manual pages of all commands into DIR, which is made.`,
		Hidden: true,
		Args:   one("directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return writeManPages(cmd.Root(), args[0])
		},
	}
}

func writeManPages(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write manual pages: %w", err)
	}
	root.InitDefaultCompletionCmd()
	return eachCommand(root, func(cmd *cobra.Command) error {
		path := filepath.Join(dir, manName(cmd)+".1")
		if err := atomicfile.Write(path, manPage(cmd), 0o644); err != nil {
			return fmt.Errorf("write manual page %s: %w", path, err)
		}
		return nil
	})
}

// eachCommand calls f for cmd and all below it that people are to know of.
func eachCommand(cmd *cobra.Command, f func(*cobra.Command) error) error {
	if err := f(cmd); err != nil {
		return err
	}
	for _, sub := range cmd.Commands() {
		if !sub.IsAvailableCommand() {
			continue
		}
		if err := eachCommand(sub, f); err != nil {
			return err
		}
	}
	return nil
}

package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// maker makes a command below the root.
type maker struct {
	name string // as it is typed; aliases are not
	make func(*app) *cobra.Command
}

// makers are all there are.
var makers = []maker{
	{"run", func(a *app) *cobra.Command { return newRunCommand(a, runRun) }},
	{"clone", func(a *app) *cobra.Command { return newCloneCommand(a, runClone) }},
	{"ls", func(a *app) *cobra.Command { return newLsCommand(a, runLs) }},
	{"inspect", func(a *app) *cobra.Command { return newInspectCommand(a, runInspect) }},
	{"logs", func(a *app) *cobra.Command { return newLogsCommand(a, runLogs) }},
	{"top", func(a *app) *cobra.Command { return newTopCommand(a, runTop) }},
	{"stats", func(a *app) *cobra.Command { return newStatsCommand(a, runTop) }},
	{"exec", func(a *app) *cobra.Command { return newExecCommand(a, runExec) }},
	{"stop", func(a *app) *cobra.Command { return newStopCommand(a, runStop) }},
	{"kill", func(a *app) *cobra.Command { return newKillCommand(a, runKill) }},
	{"wait", func(a *app) *cobra.Command { return newWaitCommand(a, runWait) }},
	{"pause", func(a *app) *cobra.Command { return newPauseCommand(a, runPause) }},
	{"resume", func(a *app) *cobra.Command { return newResumeCommand(a, runResume) }},
	{"rename", func(a *app) *cobra.Command { return newRenameCommand(a, runRename) }},
	{"update", func(a *app) *cobra.Command { return newUpdateCommand(a, runUpdate) }},
	{"snapshot", newSnapshotCommand},
	{"events", func(a *app) *cobra.Command { return newEventsCommand(a, runEvents) }},
	{"cp", func(a *app) *cobra.Command { return newCpCommand(a, runCp) }},
	{"port", func(a *app) *cobra.Command { return newPortCommand(a, runPort) }},
	{"publish", func(a *app) *cobra.Command { return newPublishCommand(a, runPublish) }},
	{"memory-server", func(a *app) *cobra.Command { return newMemoryServerCommand(a, runMemoryServer) }},
	{"rm", func(a *app) *cobra.Command { return newRmCommand(a, runRm) }},
	{"volume", newVolumeCommand},
	{"setup", newSetupCommand},
	{"image", newImageCommand},
	{"images", func(a *app) *cobra.Command { return newImagesCommand(a, runImageLs) }},
	{"system", newSystemCommand},
	{"version", func(a *app) *cobra.Command { return newVersionCommand(a, runVersion) }},
	{"man", func(*app) *cobra.Command { return newManCommand() }},
}

// newRootCommand is all commands.
func newRootCommand(a *app) *cobra.Command {
	root := newRoot(a)
	for _, m := range makers {
		root.AddCommand(m.make(a))
	}
	completeNoFiles(root)
	return root
}

// rootFor is the command for these arguments: where it is clear which of those
// below the root they mean, only that is made. All of them are a tenth of what a
// command takes to start, and a clone starts two.
func (a *app) rootFor(args []string) *cobra.Command {
	name := commandIn(args)
	for _, m := range makers {
		if m.name == name && name != "man" { // which tells of all
			root := newRoot(a)
			root.CompletionOptions.DisableDefaultCmd = true
			root.AddCommand(m.make(a))
			return root
		}
	}
	return newRootCommand(a)
}

// commandIn is the first of the arguments that is neither the root's one flag nor
// its value, or empty if it is another flag.
func commandIn(args []string) string {
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--data-dir":
			i++
		case strings.HasPrefix(arg, "--data-dir="):
		case strings.HasPrefix(arg, "-"):
			return ""
		default:
			return arg
		}
	}
	return ""
}

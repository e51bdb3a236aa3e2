// Package cli is the command line of fcvm: commands, flags, output and exit
// codes. It is the only package that knows the library behind the commands,
// and the only one that prints.
//
// Each command has its own file with three parts: a constructor, which says
// what the command is called and does; an options struct, which registers its
// own flags; and a run function, which takes a context and the options and
// knows nothing of the library. The constructor is given the run function, so
// tests parse flags without running anything.
//
// stdout belongs to what was asked for (a container's output, a listing).
// Everything that fcvm has to say itself goes to stderr.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/supervisor"
)

// System is what the commands see of the process they run in.
type System struct {
	Args      []string // without the program's name
	Stdin     io.Reader
	Stdout    io.Writer
	Stderr    io.Writer
	LookupEnv func(string) (string, bool)
	UID       int
}

// Process returns the system of this very process.
func Process() System {
	return System{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		LookupEnv: os.LookupEnv, UID: os.Getuid(),
	}
}

// getenv is LookupEnv for those to whom unset and empty are the same.
func (s System) getenv(key string) string {
	v, _ := s.LookupEnv(key)
	return v
}

// Main runs the command that sys.Args name and returns the exit code: the
// container's own, or one of those in errors.go.
func Main(ctx context.Context, sys System) int {
	return newApp(sys).main(ctx)
}

// app is what the commands of one invocation share.
type app struct {
	sys     System
	dataDir string // --data-dir
	// bridgeSubnet is the network of the bridge that a run may make; empty:
	// the default.
	bridgeSubnet string
	// swept: the data directory and the host were looked after a moment ago.
	swept     bool
	supervise func(context.Context, supervisor.Deps, supervisor.Options) (supervisor.Result, error)
}

func newApp(sys System) *app { return &app{sys: sys, supervise: supervisor.Run} }

func (a *app) main(ctx context.Context) int {
	root := a.rootFor(a.sys.Args)
	root.SetArgs(a.sys.Args)
	root.SetIn(a.sys.Stdin)
	root.SetOut(a.sys.Stdout)
	root.SetErr(a.sys.Stderr)
	return a.report(root.ExecuteContext(ctx))
}

// The groups under which `fcvm --help` lists the commands.
const (
	groupRun   = "run"
	groupVMs   = "vms"
	groupHost  = "host"
	groupOther = "other"
)

const rootExample = `  fcvm setup                                     get a kernel and a guest root, once
  fcvm run alpine echo hello                     run a container in a VM of its own
  fcvm run -it debian bash                       with a terminal
  fcvm run -p 8080:80 nginx                      publish a port on the host
  fcvm run --mem 2g --cpu 4 oci-archive:app.tar  an image from a file, a larger VM
  tar c . | fcvm run -i alpine tar tv            through stdin and stdout`

// newRoot is the command without those below it.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "fcvm",
		Short: "Run containers in microVMs",
		Long: `fcvm runs OCI images, each in a virtual machine of its own: Firecracker on KVM
where the host has it, QEMU elsewhere. There is no daemon: a VM lives exactly
as long as the fcvm process that runs it.

The exit code is the container's own. 125 means that fcvm failed, 126 that
the command cannot be run, 127 that it was not found.`,
		Example:       rootExample,
		Args:          noArgs,
		SilenceErrors: true, // Main prints them
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run containers:"},
		&cobra.Group{ID: groupVMs, Title: "Look after VMs:"},
		&cobra.Group{ID: groupHost, Title: "Prepare this host:"},
		&cobra.Group{ID: groupOther, Title: "Other commands:"},
	)
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{command: cmd.CommandPath(), err: plainNumber(err)}
	})
	root.PersistentFlags().StringVar(&a.dataDir, "data-dir", "",
		"keep everything in `DIR` (default $FCVM_DATA_DIR, else /var/lib/fcvm or ~/.local/share/fcvm)")
	return root
}

// plainNumber says what a number is that strconv cannot read.
func plainNumber(err error) error {
	var number *strconv.NumError
	if !errors.As(err, &number) {
		return err
	}
	return errors.New(strings.Replace(err.Error(), number.Error(), "it is not a whole number, or too large", 1))
}

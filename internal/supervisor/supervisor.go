// Package supervisor is one VM's life: it finds or makes everything that a VM
// needs, starts it in order, stays with it while its container runs, and takes
// everything down in the opposite order, whatever went wrong where.
//
// The order of a start: check the spec, choose the driver, find the artifacts,
// create the record, get the image, open the network, lay out the disks, start
// the VMM, wait for the agent, send the plan, attach, start the container. A
// clone starts from a snapshot instead: it gets a copy of the disks, the VMM
// loads the rest, and the agent makes the guest a machine of its own.
// Every step that made something registers how to undo it.
//
// A supervisor is a process (`fcvm run`); its VM never outlives it.
package supervisor

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/volume"
)

// Sentinel errors of a run. Each comes wrapped with what happened and what to do.
var (
	// ErrNoDriver: no VMM on this host can run the VM.
	ErrNoDriver = errors.New("no VMM can run VMs here")
	// ErrBoot: the guest did not come up.
	ErrBoot = errors.New("the guest did not come up")
	// ErrGuest: the guest ended, or stopped making sense, while the container ran.
	ErrGuest = errors.New("the guest ended before its container")
	// ErrNoCommand: neither the image nor the command line says what to run.
	ErrNoCommand = errors.New("no command given, and the image has none")
)

// Deps is what a supervisor works with.
type Deps struct {
	Store     *store.Store
	Setup     *setup.Setup
	Images    *image.Store
	Snapshots *snapshot.Store
	Volumes   *volume.Store
	Drivers   []vmm.Driver      // in the order in which "auto" tries them
	Networks  []network.Backend // in the order in which "auto" tries them
}

// Options is one run.
type Options struct {
	Name     string // empty: a random one
	Spec     vm.Spec
	Pull     image.Pull
	Platform string       // of the image, as OS/ARCHITECTURE; empty: this machine's
	Access   image.Access // how registries are spoken to
	Clone    *Clone       // start from a snapshot; nil: boot
	NoCache  bool         // neither start from a guest that was kept warm, nor keep one
	// SaveSnapshot is the name of a snapshot that is taken when the readiness
	// gate opens; empty: none.
	SaveSnapshot string
	Stdio        Stdio
	Signals      <-chan os.Signal // SIGINT, SIGTERM, …: passed on to the container
	Progress     progress.Reporter
	Verbose      func(line string) // nil: nobody listens
	Started      func()            // called when the container runs, before its first output; nil: nobody listens
	Ready        func(id string)   // called once, when the readiness gate is open; nil: nobody listens
}

// Stdio is what the container's streams are joined to.
type Stdio struct {
	In     io.Reader // nil: no input
	Out    io.Writer
	Err    io.Writer
	Resize <-chan agentclient.Size // sizes of the terminal, the first at once; nil without one
}

// Result is how a run ended.
type Result struct {
	ExitCode int       // the container's; 128+n for a signal; 137 when the VM was killed
	Record   vm.Record // as it was at the end, with its phases
	Trouble  error     // what went wrong after the end: something may be left, for the next command to remove
}

// Run runs one VM from its creation to its end. It returns an error when fcvm
// or the guest failed, or when its container ended before the gate opened that
// Options.Ready waits for (EndedEarly); a container that ran and failed is a Result.
func Run(ctx context.Context, d Deps, o Options) (Result, error) {
	return run(ctx, d, o)
}

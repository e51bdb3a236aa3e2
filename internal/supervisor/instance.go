package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/cgroup"
	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// startTimeout bounds what a guest that is up takes to carry out its plan, and
// Podman to start the container: seconds, but minutes where a busy host
// emulates a guest of a guest.
const startTimeout = 5 * time.Minute

// instance is one boot of a VM, up to the end of its container.
type instance struct {
	*life
	undo undoStack

	net       network.Attachment
	deviceMTU int                // what the guest's network device was made with; 0: the VMM's default
	deviceTap bool               // it was made for a tap
	group     *cgroup.Group      // nil: the host has none to give
	notes     []string           // of the network
	from      *snapshot.Snapshot // what the VM is started from; nil: it boots
	warmKey   string             // what the guest is known by before its container is started; empty: it is not kept
	machine   vmm.Machine
	pages     *memserver.Link // to the server of the guest's memory; nil: there is none
	agent     *agentclient.Client
	catchUps  atomic.Int64 // how often its clock was to be set
	stream    *agentclient.Stream
	stdin     io.Reader               // of the container; nil: it has none
	sizes     <-chan agentclient.Size // of its terminal; nil: it has none
	out, err  io.Writer               // of the container
	gone      *latch                  // the container has ended, or never will run
	logSeen   *latch                  // the line that a log gate waits for
	failure   *latch                  // why the VM was ended from outside of it
}

func (in *instance) openNetwork(ctx context.Context) error {
	defer in.timer.phase("network")()
	cfg, err := in.networkConfig()
	if err != nil {
		return err
	}
	b, why, err := chooseNetwork(in.Networks, in.Spec.Network)
	if err != nil {
		return err
	}
	if why != "" {
		cfg.Say(why)
	}
	if in.net, err = b.Start(ctx, cfg); err != nil {
		return err
	}
	in.undo.add("close the network", func(context.Context) error { return in.net.Close() })
	in.Verbose(fmt.Sprintf("network %s, MTU %d", b.Name(), in.net.MTU()))
	return in.recordNetwork(b.Name())
}

// boot starts the VMM and waits for the guest's agent.
func (in *instance) boot(ctx context.Context) error {
	defer in.timer.phase("boot")()
	task := in.Progress.Task("boot the VM", 0)
	err := in.bootAgent(ctx)
	task.Done(err)
	return err
}

func (in *instance) bootAgent(ctx context.Context) error {
	if in.net.Net() != nil {
		in.deviceMTU, in.deviceTap = in.net.Net().MTU, in.net.Net().Tap != ""
	}
	if err := in.launch(ctx, in.driver.Start); err != nil {
		return err
	}
	limit := in.Spec.BootTimeout
	if limit == 0 {
		limit = in.driver.Capabilities().BootTimeout
	}
	wait, cancel := untilDone(ctx, in.machine, limit)
	defer cancel()
	st, err := in.agent.WaitAgent(wait)
	if err != nil {
		return in.bootError(ctx, limit, err)
	}
	in.Verbose(fmt.Sprintf("guest agent answered %.2f s after its kernel started", st.Uptime))
	return nil
}

// launch has start make a machine of the VM, and takes it into its care.
func (in *instance) launch(ctx context.Context, start func(context.Context, vmm.Config) (vmm.Machine, error)) error {
	cfg, closeLogs, err := in.machineConfig()
	if err != nil {
		return err
	}
	defer closeLogs() // the VMM has its own descriptors
	if in.machine, err = start(ctx, cfg); err != nil {
		return fmt.Errorf("start the VMM: %w", err)
	}
	in.undo.add("end the VMM", func(context.Context) error { return in.machine.Close() })
	bounding, stopBounding := context.WithCancel(context.WithoutCancel(ctx))
	go in.boundConsole(bounding)
	in.undo.add("leave the console", func(context.Context) error { stopBounding(); return nil })
	in.signals.setKill(func() { _ = in.machine.Kill(context.WithoutCancel(ctx)) })
	if err := in.recordVMM(&cfg); err != nil {
		return err
	}
	in.agent = agentclient.New(in.machine.Dial)
	in.undo.add("close the agent channel", func(context.Context) error { in.agent.Close(); return nil })
	return nil
}

// getReady gives the guest its plan and waits until it has done what it says.
func (in *instance) getReady(ctx context.Context) error {
	defer in.timer.phase("agent")()
	wait, cancel := untilDone(ctx, in.machine, startTimeout)
	defer cancel()
	plan := in.plan()
	if err := in.givePlan(wait, plan); err != nil {
		return in.bootError(ctx, startTimeout, err)
	}
	if err := in.agent.WaitReady(wait); err != nil {
		return in.bootError(ctx, startTimeout, err)
	}
	if in.usesMetadata() {
		// The guest has read it. The container need not be able to.
		return in.setMetadata(ctx, json.RawMessage(noMetadata))
	}
	return nil
}

// givePlan sends the plan, or puts it where the guest looks for it.
func (in *instance) givePlan(ctx context.Context, plan *agentapi.Plan) error {
	if !in.usesMetadata() {
		return in.agent.SendPlan(ctx, plan)
	}
	object, err := metadata(plan)
	if err != nil {
		return err
	}
	return in.setMetadata(ctx, object)
}

func (in *instance) setMetadata(ctx context.Context, object json.RawMessage) error {
	m, ok := in.machine.(vmm.MetadataSetter)
	if !ok {
		return fmt.Errorf("%w: metadata with %s", vmm.ErrUnsupported, in.driver.Name())
	}
	return m.SetMetadata(ctx, object)
}

func (in *instance) startContainer(ctx context.Context) error {
	ended := in.timer.phase("container start")
	task := in.Progress.Task("start the container", 0)
	runs, err := in.attachAndStart(ctx)
	task.Done(err)
	ended()
	if err != nil || !runs {
		return err
	}
	return in.recordRunning(ctx)
}

// attachAndStart reports whether the container runs. One that could not be
// started is no error yet: the stream's exit says why.
func (in *instance) attachAndStart(ctx context.Context) (runs bool, err error) {
	wait, cancel := untilDone(ctx, in.machine, startTimeout)
	defer cancel()
	if err := in.attach(ctx, wait); err != nil {
		return false, err
	}
	started, err := in.agent.Start(wait)
	if err != nil {
		return false, in.guestError(ctx, err)
	}
	return started.PID != 0, nil
}

// sizeGrace is how long the terminal's size is waited for, which is there at once.
const sizeGrace = time.Second

// attach joins the container's streams. A container that is started then finds its
// terminal as large as it is; wait bounds it.
func (in *instance) attach(ctx, wait context.Context) error {
	if err := in.openOutput(); err != nil {
		return err
	}
	var err error
	if in.stream, err = in.agent.Attach(wait); err != nil {
		return in.guestError(ctx, err)
	}
	in.undo.add("detach", func(context.Context) error { _ = in.stream.Close(); return nil })
	in.stdin, in.sizes = in.input.until(in.gone.done)
	if in.sizes == nil {
		return nil
	}
	select {
	case s := <-in.sizes:
		if err := in.stream.Resize(s); err != nil {
			return in.guestError(ctx, err)
		}
	case <-time.After(sizeGrace):
	case <-wait.Done():
	}
	return nil
}

// StartError says that a container, or a command beside it, could not be started.
type StartError struct {
	Args []string
	Exit agentapi.Exit // Code is 125, 126 or 127
}

func (e *StartError) Error() string {
	if e.Exit.Code == 125 || len(e.Args) == 0 {
		return "start the container: " + e.Exit.Error
	}
	return fmt.Sprintf("run %q: %s", e.Args[0], e.Exit.Error)
}

// recordVMM lets the next command end a VMM that outlives this process.
func (in *instance) recordVMM(cfg *vmm.Config) error {
	return in.vm.Update(func(r *vm.Record) error {
		r.Resolved.VMM, r.Resolved.Disks = processOf(in.machine.PID()), disksOf(cfg)
		return nil
	})
}

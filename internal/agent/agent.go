// Package agent is the guest's side of fcvm. It boots the guest (as /init of
// the initramfs), serves the agent channel (package agentapi), runs the
// container with Podman and commands beside it.
//
// The life of an agent: Main mounts and loads what the kernel has not, starts
// to serve as early as it can, so that a guest that cannot go on still says
// why, switches to the guest root, and stays process 1 or hands over to
// systemd, whose fc-agent.service then serves. It ends with the VM.
//
// It does not decide anything: what to run comes from the host as a Plan.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/serialmux"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vsocklink"
)

// Where things lie in the guest. /run is a tmpfs that moves along when the
// root is switched.
const (
	runDir     = "/run/fcvm"
	selfPath   = runDir + "/fc-agent" // the agent's own file, for systemd
	imageMount = runDir + "/image"    // the image's disk
	scratchDir = runDir + "/scratch"  // the scratch disk
	sharesDir  = runDir + "/shares"   // a directory for each share
	disksDir   = runDir + "/disks"    // a directory for each disk of the plan's mounts
	pidFile    = runDir + "/pid"      // the container's first process, written by conmon
	cidFile    = runDir + "/cid"      // the container's id, written by Podman

	guestPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// listenTimeout bounds the wait for the channel's device.
const listenTimeout = 30 * time.Second

// Main is the whole program. As process 1 it never returns.
func Main() {
	// Commands are looked up in it; the kernel gives process 1 none.
	if err := os.Setenv("PATH", guestPath); err != nil {
		panic(err) // the name is a constant
	}
	params := parseParams(readFile("/proc/cmdline"))
	if os.Getpid() == 1 {
		boot()
		return
	}
	if len(os.Args) != 2 || os.Args[1] != "serve" {
		fmt.Fprintln(os.Stderr, "fc-agent is the guest's side of fcvm; inside a VM it is run as: fc-agent serve")
		os.Exit(2)
	}
	a := newAgent(params, newSpawner(false))
	go a.prepare()
	a.fatal(a.listenAndServe())
}

// agent is the one agent of a guest.
type agent struct {
	params   params
	spawn    *spawner
	log      *slog.Logger
	poweroff func() // ends the VM

	// extra is loaded for a container that may administer the guest's kernel.
	extra modules

	state     *state
	container *container
	restorer  *restorer
	clock     wallClock
	shares    *shares
}

func newAgent(p params, s *spawner) *agent {
	a := &agent{
		params: p, spawn: s, state: newState(), poweroff: powerOff,
		log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	a.container = newContainer(a)
	a.restorer = &restorer{agent: a, root: "/", reseed: reseed}
	a.clock.set, a.clock.shift = setClock, shiftClock
	a.shares = newShares(a)
	return a
}

// prepare does what needs no plan, then what the plan asks for, and opens the
// way for Start.
func (a *agent) prepare() {
	if err := a.prepareGuest(); err != nil {
		a.log.Error("prepare the guest", "error", err)
		a.state.fail(err)
		return
	}
	a.state.ready()
}

func (a *agent) prepareGuest() error {
	a.state.up()
	if a.params.plan == planMMDS {
		if err := a.fetchPlan(context.Background()); err != nil {
			return err
		}
	}
	plan := a.state.waitPlan()
	if err := followClock(plan.Time); err != nil {
		a.log.Warn("set the clock", "error", err)
	}
	if err := configure(plan); err != nil {
		return fmt.Errorf("configure the guest: %w", err)
	}
	if err := a.prepareMounts(plan.Container.Mounts); err != nil {
		return fmt.Errorf("mount the container's volumes: %w", err)
	}
	return nil
}

// listenAndServe serves the agent channel until the VM ends.
func (a *agent) listenAndServe() error {
	l, err := a.listen()
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	return srv.Serve(l)
}

// listen waits for the channel's device: the kernel finds it on its own time
// after the driver is loaded.
func (a *agent) listen() (net.Listener, error) {
	if a.params.channel == channelSerial {
		return serialmux.Listen(serialmux.OpenPort(vmm.AgentSerialName)), nil
	}
	deadline := time.Now().Add(listenTimeout)
	for {
		l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, vmm.AgentPort, nil)
		if err == nil {
			return vsocklink.Listen(l), nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("listen on vsock port %d: %w", vmm.AgentPort, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// fatal is the end of an agent that cannot serve: nobody could be told but
// the console.
func (a *agent) fatal(err error) {
	if err == nil || errors.Is(err, http.ErrServerClosed) {
		err = errors.New("the agent channel was closed")
	}
	a.log.Error("serve the agent channel", "error", err)
	a.poweroff()
}

func readFile(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// checkPlan refuses a plan that this agent would misunderstand.
func checkPlan(p *agentapi.Plan) error {
	if p.Version != agentapi.Version {
		return fmt.Errorf("plan is of version %d, this agent speaks %d", p.Version, agentapi.Version)
	}
	if len(p.Container.Args) == 0 {
		return errors.New("plan has no command")
	}
	for _, v := range p.Container.Volumes {
		if err := agentapi.CheckPlace(v.Target); err != nil {
			return fmt.Errorf("plan has a volume: %w", err)
		}
	}
	for _, m := range p.Container.Mounts {
		if err := agentapi.CheckPlace(m.Target); err != nil {
			return fmt.Errorf("plan has a mount: %w", err)
		}
	}
	return nil
}

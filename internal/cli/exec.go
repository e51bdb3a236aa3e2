package cli

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
)

type execOptions struct {
	vm      string
	command []string

	interactive bool
	tty         bool
	env         []string
	envFiles    []string
	workDir     string
	user        string
	detach      bool
	privileged  bool
	guest       bool
}

func newExecCommand(a *app, run func(context.Context, *app, *execOptions) error) *cobra.Command {
	o := new(execOptions)
	cmd := &cobra.Command{
		Use:     "exec [flags] VM COMMAND [ARG...]",
		Short:   "Run a command in a VM's container",
		GroupID: groupVMs,
		Long: `Run a command in the container of a VM, beside what runs there: with its
environment, its user, its limits and what it sees of the system, as far as
flags do not say otherwise. The exit code is the command's; it gets the signals
that fcvm gets, and a hang-up when fcvm ends before it does: with the second
SIGINT (Ctrl-C) or SIGTERM within ten seconds, if not sooner.

With --guest the command runs in the VM around the container, as root of that
VM: to look at the container from outside (podman ps), at its kernel (dmesg),
at its network.`,
		Example: `  fcvm exec web cat /etc/nginx/nginx.conf
  fcvm exec -it web sh
  fcvm exec -u www-data -w /var/www -e DEBUG=1 web ./job
  fcvm exec --guest -it web bash`,
		Args:              vmAndCommand,
		ValidArgsFunction: completeOneVM(a, liveVM),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm, o.command = args[0], args[1:]
			return run(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.SetInterspersed(false) // flags behind the VM are the command's
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass stdin to the command")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable: `KEY=VALUE`, or KEY to take it from here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "set the variables in `FILE`, one KEY=VALUE per line")
	f.StringVarP(&o.workDir, "workdir", "w", "", "working `DIR` of the command")
	f.StringVarP(&o.user, "user", "u", "", "run it as `USER[:GROUP]`, names or numbers")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave it in the background, once it runs")
	f.BoolVar(&o.privileged, "privileged", false, "give it all capabilities")
	f.BoolVar(&o.guest, "guest", false, "run it in the VM, not in the container")
	complete(cmd, "workdir", cobra.NoFileCompletions)
	return cmd
}

func vmAndCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		return &usageError{command: cmd.CommandPath(), err: errors.New("no command given")}
	}
	return oneOrMore("VM")(cmd, args)
}

func liveVM(e store.Entry) bool { return e.Alive }

func runExec(ctx context.Context, a *app, o *execOptions) error {
	if o.detach && o.interactive {
		return fmt.Errorf("%w: a command in the background has no stdin: leave out -i or -d", vm.ErrInvalid)
	}
	env, err := environment(o.envFiles, o.env, a.sys.LookupEnv)
	if err != nil {
		return err
	}
	client, err := a.agentOf(o.vm)
	if err != nil {
		return err
	}
	defer client.Close()
	c, err := openConsole(a.sys, consoleOptions{interactive: o.interactive, tty: o.tty && !o.detach, quiet: true})
	if err != nil {
		return err
	}
	defer c.close()
	size := c.size()
	stream, err := client.Exec(ctx, agentapi.ExecRequest{
		Args: o.command, Env: env, WorkDir: o.workDir, User: o.user, Privileged: o.privileged, Guest: o.guest,
		TTY: o.tty, Stdin: o.interactive, Detach: o.detach, Rows: size.Rows, Cols: size.Cols,
	})
	if err != nil {
		return fmt.Errorf("VM %s: %w", o.vm, err)
	}
	c.started()
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	defer (&commandSignals{send: stream.Signal, hangUp: hangUp}).forward()()
	exit, err := stream.Run(ctx, agentclient.Stdio{
		Stdin: c.stdio.In, Stdout: c.stdio.Out, Stderr: c.stdio.Err, Resize: c.stdio.Resize,
	})
	c.close()
	var left *supervisor.Interrupted
	switch {
	case errors.As(err, &left):
		return fmt.Errorf("VM %s: the command was hung up: %w", o.vm, left)
	case err != nil:
		return fmt.Errorf("VM %s: %w", o.vm, err)
	case exit.Failed:
		return &supervisor.StartError{Args: o.command, Exit: exit}
	case exit.Code != 0:
		return exitStatus(exit.Code)
	}
	return nil
}

// agentOf returns the agent of a VM that runs.
func (a *app) agentOf(ref string) (*agentclient.Client, error) {
	st, err := a.openStore()
	if err != nil {
		return nil, err
	}
	e, err := st.Find(ref)
	if err = errors.Join(err, e.Err); err != nil {
		return nil, err
	}
	if !e.Alive {
		return nil, notRunning(e)
	}
	return agentclient.New(supervisor.DialAgent(st, e.Record.ID)), nil
}

// hangUpWindow is the time in which a second SIGINT or SIGTERM leaves the
// command, as in fcvm run.
const hangUpWindow = 10 * time.Second

// commandSignals gives the signals of this process to the command. A second one
// that asks for its end hangs it up: it may take no notice of the first.
type commandSignals struct {
	send   func(sig int) error
	hangUp context.CancelCauseFunc
	last   time.Time // when an end was last asked for
}

// forward passes signals on until stop.
func (s *commandSignals) forward() (stop func()) {
	ch, stopSignals := containerSignals()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-ch:
				if n, ok := sig.(syscall.Signal); ok {
					s.handle(n, time.Now())
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		stopSignals()
		close(done)
	}
}

func (s *commandSignals) handle(sig syscall.Signal, now time.Time) {
	if sig == syscall.SIGINT || sig == syscall.SIGTERM {
		if !s.last.IsZero() && now.Sub(s.last) < hangUpWindow {
			s.hangUp(&supervisor.Interrupted{Signal: sig})
			return
		}
		s.last = now
	}
	// Not here: a guest that does not read must not hold up the second one. A
	// command that has ended needs none.
	go func() { _ = s.send(int(sig)) }()
}

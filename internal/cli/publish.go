package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type publishOptions struct {
	vm     string
	ports  []string
	remove bool
}

func newPublishCommand(a *app, run func(context.Context, *app, *publishOptions) error) *cobra.Command {
	o := new(publishOptions)
	cmd := &cobra.Command{
		Use:     "publish VM -p PORT [-p PORT...] [--rm]",
		Short:   "Open or close ports of a VM that runs",
		GroupID: groupVMs,
		Long: `Open ports of a VM that runs, all or none of them, and print where they are. With
--rm close them; then a port may be given as in the container alone, and all
places where it is published are closed. Without an address of the host a port is
open by IPv4 and, where host and network have it, by IPv6. Connections that were
made go on.`,
		Example: `  fcvm publish web -p 8080:80
  fcvm publish web -p 127.0.0.1:0:443 -p 53:53/udp
  fcvm publish web --rm -p 80`,
		Args:              one("VM"),
		ValidArgsFunction: completeOneVM(a, withStatus(vm.StatusRunning)),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vm = args[0]
			return run(ctx, a, o)
		}),
	}
	cmd.Flags().StringArrayVarP(&o.ports, "publish", "p", nil, "the port: `[[IP:]HOSTPORT:]PORT`, /udp behind it for UDP")
	cmd.Flags().BoolVar(&o.remove, "rm", false, "close the ports")
	return cmd
}

func runPublish(ctx context.Context, a *app, o *publishOptions) error {
	if len(o.ports) == 0 {
		return &usageError{command: "fcvm publish", err: errors.New("no port given: use -p")}
	}
	if _, err := network.ParsePublish(o.ports); err != nil {
		return err
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	e, err := st.Find(o.vm)
	if err = errors.Join(err, e.Err); err != nil {
		return err
	}
	what := "open ports of"
	if o.remove {
		what = "close ports of"
	}
	return ask(st, e, what, func(c *control.Client) error {
		ports, err := c.Publish(ctx, o.ports, o.remove)
		for _, p := range shownPorts(ports) {
			_, _ = fmt.Fprintln(a.sys.Stdout, portLine(p))
		}
		return err
	})
}

// shownPorts leaves out where a port is open by IPv6 if it is by IPv4 under the same
// number, on all addresses of both: as podman port does, one line is shown, which is
// what scripts take. fcvm inspect has both.
func shownPorts(ports []string) []string {
	return slices.DeleteFunc(slices.Clone(ports), func(p string) bool {
		number, everywhere := strings.CutPrefix(p, "[::]:")
		return everywhere && slices.Contains(ports, "0.0.0.0:"+number)
	})
}

// portLine is a published port as docker port shows it.
func portLine(p string) string {
	host, guest, _ := strings.Cut(p, "->")
	return guest + " -> " + host
}

type portOptions struct{ vm, port string }

func newPortCommand(a *app, run func(context.Context, *app, *portOptions) error) *cobra.Command {
	o := new(portOptions)
	return &cobra.Command{
		Use:     "port VM [PORT[/tcp|udp]]",
		Short:   "Show where the ports of a VM are published",
		GroupID: groupVMs,
		Long: `Show where the ports of a VM are published. A port that was published without an
address of the host is shown as one of IPv4 (0.0.0.0), and is open by IPv6 under the
same number where host and network have it; fcvm inspect shows both.`,
		Example: `  fcvm port web
  curl http://$(fcvm port web 80)`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return one("VM")(cmd, args)
		},
		ValidArgsFunction: completeOneVM(a, func(e store.Entry) bool { return len(e.Record.Resolved.Ports) > 0 }),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vm = args[0]
			if len(args) == 2 {
				o.port = args[1]
			}
			return run(ctx, a, o)
		}),
	}
}

func runPort(_ context.Context, a *app, o *portOptions) error {
	st, err := a.openStore()
	if err != nil {
		return err
	}
	e, err := st.Find(o.vm)
	if err = errors.Join(err, e.Err); err != nil {
		return err
	}
	if !e.Alive {
		return fmt.Errorf("show ports: %w: %s is %s", vm.ErrNotRunning, nameOf(e), e.Record.Status)
	}
	if o.port == "" {
		for _, p := range shownPorts(e.Record.Resolved.Ports) {
			_, _ = fmt.Fprintln(a.sys.Stdout, portLine(p))
		}
		return nil
	}
	want, err := network.ParsePublish([]string{o.port})
	if err != nil || len(want) != 1 || want[0].HostPort != 0 {
		return fmt.Errorf("%w: port %q: it is the container's, as 80 or 53/udp", vm.ErrInvalid, o.port)
	}
	found := false
	for _, p := range shownPorts(e.Record.Resolved.Ports) {
		host, guest, _ := strings.Cut(p, "->")
		if guest == fmt.Sprintf("%d/%s", want[0].GuestPort, want[0].Protocol) {
			found = true
			_, _ = fmt.Fprintln(a.sys.Stdout, host)
		}
	}
	if !found {
		return fmt.Errorf("%w: port %s of %s (open it: fcvm publish %s -p HOSTPORT:%s)", network.ErrNotPublished, o.port, nameOf(e), nameOf(e), o.port)
	}
	return nil
}

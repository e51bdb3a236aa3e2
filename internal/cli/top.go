package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

const (
	topInterval    = 2 * time.Second
	minTopInterval = 100 * time.Millisecond

	// topFirst is the time between the two looks that a first table needs: CPU
	// use is what happened between them.
	topFirst = 500 * time.Millisecond
)

type topOptions struct {
	vm       string   // whose processes are shown; empty: what VMs use
	named    []string // only those; none: all
	noStream bool
	guest    bool
	sort     string
	reverse  bool
	interval time.Duration
	format   string
}

func newTopCommand(a *app, run func(context.Context, *app, *topOptions) error) *cobra.Command {
	o := new(topOptions)
	cmd := &cobra.Command{
		Use:     "top [flags] [VM]",
		Short:   "Watch what VMs use, or what runs in one",
		GroupID: groupVMs,
		Long: `Show what each running VM uses, again and again. With a VM: the processes of its
container (--guest: of the guest around it). What one VM uses shows fcvm stats VM.

CPU and MEMORY are what the host pays for all of a VM's processes; memory is the
proportional set size, in which a page that VMs share counts for each by its
part. GUEST MEM, network, disk and the number of processes are what the guest
says. 100 % of CPU is one busy CPU; network and disk are since the guest's start.

On a terminal keys choose the order: c CPU, m memory, g memory in the guest, n
network, d disk, p processes, a age, o name; r turns it around, q ends. Off a
terminal, and with --format, one table or one line of JSON follows the other.`,
		Example: `  fcvm top
  fcvm top --no-stream --sort memory
  fcvm top --no-stream --format json
  fcvm top web`,
		Args:              atMostOne("VM"),
		ValidArgsFunction: completeOneVM(a, func(e store.Entry) bool { return e.Alive }),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vm = strings.Join(args, "")
			return run(ctx, a, o)
		}),
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&o.guest, "guest", false, "with a VM: show the processes of the guest, not only the container's")
	return cmd
}

// register declares the flags of top and of stats.
func (o *topOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.noStream, "no-stream", false, "show it once")
	f.StringVarP(&o.sort, "sort", "s", "cpu", "order by `KEY`: "+orList(topKeys()))
	f.BoolVarP(&o.reverse, "reverse", "r", false, "turn the order around")
	f.DurationVar(&o.interval, "interval", topInterval, "`TIME` between two looks")
	addFormat(cmd, &o.format)
	complete(cmd, "sort", cobra.FixedCompletions(topKeys(), cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "interval", cobra.FixedCompletions([]string{"1s", "2s", "5s", "10s"}, cobra.ShellCompDirectiveNoFileComp))
}

// topKeys are all words of --sort.
func topKeys() []string {
	var names []string
	for _, o := range topOrders {
		names = append(names, o.name)
	}
	return names
}

// topOrder is one way to sort.
type topOrder struct {
	name  string
	key   byte // on a terminal
	vms   func(a, b *topVM) int
	procs func(a, b *topProcess) int // nil: as by age
}

func findOrder(is func(topOrder) bool) (topOrder, bool) {
	if i := slices.IndexFunc(topOrders, is); i >= 0 {
		return topOrders[i], true
	}
	return topOrder{}, false
}

// topSource is what is watched.
type topSource interface {
	// look takes a look; it needs two for a table.
	look(ctx context.Context) error
	sort(o topOrder, reverse bool)
	table(w io.Writer) error
	write(w io.Writer, f format) error
}

func runTop(ctx context.Context, a *app, o *topOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	order, ok := findOrder(func(t topOrder) bool { return t.name == o.sort })
	switch {
	case !ok:
		return fmt.Errorf("%w: --sort %q: it is %s", vm.ErrInvalid, o.sort, orList(topKeys()))
	case o.interval < minTopInterval:
		return fmt.Errorf("%w: --interval %s: it is at least %s", vm.ErrInvalid, o.interval, minTopInterval)
	case o.guest && o.vm == "":
		return fmt.Errorf("%w: --guest: say of which VM", vm.ErrInvalid)
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	s := &topScreen{app: a, order: order, reverse: o.reverse, interval: o.interval, format: f, suspend: suspendSelf}
	if o.vm != "" {
		s.source = &topProcesses{store: st, ref: o.vm, guest: o.guest}
		return s.run(ctx, o.noStream)
	}
	vms := &topVMs{store: st}
	if err := vms.limit(o.named); err != nil {
		return err
	}
	s.source = vms
	if err := s.run(ctx, o.noStream); !errors.Is(err, errAllEnded) {
		return err
	}
	return nil
}

// topScreen shows a source again and again.
type topScreen struct {
	*app
	source   topSource
	order    topOrder
	reverse  bool
	interval time.Duration
	format   format
	suspend  func() // stops this process, and returns when it goes on
}

func (s *topScreen) run(ctx context.Context, once bool) error {
	if err := s.source.look(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, min(s.interval, topFirst)); err != nil {
		return err
	}
	if err := s.source.look(ctx); err != nil {
		return err
	}
	if once {
		return s.show()
	}
	if t, ok := s.terminal(); ok {
		return s.live(ctx, t)
	}
	for {
		if err := s.show(); err != nil {
			return err
		}
		if err := sleep(ctx, s.interval); err != nil {
			return err
		}
		if s.format.plain() {
			_, _ = fmt.Fprintln(s.sys.Stdout)
		}
		if err := s.source.look(ctx); err != nil {
			return err
		}
	}
}

// show prints what was seen last.
func (s *topScreen) show() error {
	s.source.sort(s.order, s.reverse)
	if s.format.plain() {
		return s.source.table(s.sys.Stdout)
	}
	return s.source.write(s.sys.Stdout, s.format)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

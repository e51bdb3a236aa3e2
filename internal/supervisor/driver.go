package supervisor

import (
	"context"
	"fmt"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// auto leaves the choice to fcvm.
const auto = "auto"

// look asks a driver whether it is there, and tries no guest if it can do without.
func look(ctx context.Context, d vmm.Driver) vmm.Availability {
	if l, ok := d.(vmm.Looker); ok {
		return l.Look(ctx)
	}
	return d.Probe(ctx)
}

func probe(ctx context.Context, d vmm.Driver) vmm.Availability { return d.Probe(ctx) }

// choose returns the driver of that name, or for "auto" the first that can
// run VMs here, as ask says, and why.
func choose(ctx context.Context, drivers []vmm.Driver, name string, ask func(context.Context, vmm.Driver) vmm.Availability) (vmm.Driver, vmm.Availability, error) {
	var refused, names []string
	for _, d := range drivers {
		names = append(names, d.Name())
		if name != auto && name != d.Name() {
			continue
		}
		a := ask(ctx, d)
		if a.Usable {
			if len(refused) > 0 {
				a.Reason += " (" + strings.Join(refused, "; ") + ")"
			}
			return d, a, nil
		}
		refused = append(refused, whyNot(d, a))
	}
	if len(refused) == 0 {
		return nil, vmm.Availability{}, fmt.Errorf("%w: --vmm %q: it is auto, %s", vm.ErrInvalid, name, strings.Join(names, " or "))
	}
	return nil, vmm.Availability{}, fmt.Errorf("%w: %s (fcvm setup preflight tells more)", ErrNoDriver, strings.Join(refused, "; "))
}

// whyNot says why a driver cannot be used.
func whyNot(d vmm.Driver, a vmm.Availability) string {
	why := d.Name() + ": " + a.Reason
	if a.Remedy != "" {
		why += "; " + a.Remedy
	}
	return why
}

// driverError is an error of a driver that was not tried before it was used: if it
// is of no use here, that is the reason.
func driverError(ctx context.Context, d vmm.Driver, err error) error {
	if _, ok := d.(vmm.Looker); !ok || ctx.Err() != nil {
		return err
	}
	if a := d.Probe(ctx); !a.Usable {
		return fmt.Errorf("%w: %s: %w", ErrNoDriver, whyNot(d, a), err)
	}
	return err
}

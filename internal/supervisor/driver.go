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

// choose returns the driver of that name, or for "auto" the first that can
// run VMs here, and why.
func choose(ctx context.Context, drivers []vmm.Driver, name string) (vmm.Driver, vmm.Availability, error) {
	var refused, names []string
	for _, d := range drivers {
		names = append(names, d.Name())
		if name != auto && name != d.Name() {
			continue
		}
		a := d.Probe(ctx)
		if a.Usable {
			if len(refused) > 0 {
				a.Reason += " (" + strings.Join(refused, "; ") + ")"
			}
			return d, a, nil
		}
		why := d.Name() + ": " + a.Reason
		if a.Remedy != "" {
			why += "; " + a.Remedy
		}
		refused = append(refused, why)
	}
	if len(refused) == 0 {
		return nil, vmm.Availability{}, fmt.Errorf("%w: --vmm %q: it is auto, %s", vm.ErrInvalid, name, strings.Join(names, " or "))
	}
	return nil, vmm.Availability{}, fmt.Errorf("%w: %s (fcvm setup preflight tells more)", ErrNoDriver, strings.Join(refused, "; "))
}

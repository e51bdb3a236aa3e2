package supervisor

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

type fakeDriver struct {
	vmm.Driver
	name string
	a    vmm.Availability
}

func (d fakeDriver) Name() string                           { return d.name }
func (d fakeDriver) Probe(context.Context) vmm.Availability { return d.a }

func TestChoose(t *testing.T) {
	fc := fakeDriver{name: "firecracker", a: vmm.Availability{Reason: "no KVM", Remedy: "get a bigger boat"}}
	qemu := fakeDriver{name: "qemu", a: vmm.Availability{Usable: true, Reason: "TCG"}}
	drivers := []vmm.Driver{fc, qemu}

	d, a, err := choose(t.Context(), drivers, "auto", probe)
	if err != nil || d.Name() != "qemu" || !strings.Contains(a.Reason, "no KVM") {
		t.Errorf("auto: %v, %q, %v; want qemu, and why not firecracker", d, a.Reason, err)
	}
	if _, _, err = choose(t.Context(), drivers, "firecracker", probe); !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "bigger boat") {
		t.Errorf("firecracker: %v; want ErrNoDriver with the remedy", err)
	}
	if _, _, err = choose(t.Context(), drivers, "xen", probe); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("xen: %v; want ErrInvalid", err)
	}
	if _, _, err = choose(t.Context(), drivers[:1], "auto", probe); !errors.Is(err, ErrNoDriver) {
		t.Errorf("auto without a usable one: %v; want ErrNoDriver", err)
	}
}

// lookedAt is a driver that seems to be there until a guest is tried.
type lookedAt struct{ fakeDriver }

func (d lookedAt) Look(context.Context) vmm.Availability { return vmm.Availability{Usable: true} }

// Who restores a snapshot tries no guest before; that none can run is said when the
// restore has failed.
func TestDriverIsTriedWhenItHasFailed(t *testing.T) {
	d := lookedAt{fakeDriver{name: "firecracker", a: vmm.Availability{Reason: "KVM does not run guests", Remedy: "get a bigger boat"}}}
	if _, _, err := choose(t.Context(), []vmm.Driver{d}, "firecracker", look); err != nil {
		t.Error(err)
	}
	if _, a, err := choose(t.Context(), []vmm.Driver{d.fakeDriver}, "firecracker", look); !errors.Is(err, ErrNoDriver) {
		t.Errorf("one that can only be probed: %+v, %v", a, err)
	}
	failed := errors.New("it exited")
	err := driverError(t.Context(), d, failed)
	if !errors.Is(err, failed) || !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "bigger boat") {
		t.Errorf("%v; want why the driver cannot work", err)
	}
	d.a = vmm.Availability{Usable: true}
	if err := driverError(t.Context(), d, failed); !errors.Is(err, failed) || errors.Is(err, ErrNoDriver) {
		t.Errorf("%v; want that alone, of a driver that works", err)
	}
}

func TestUndo(t *testing.T) {
	var u undoStack
	var did []string
	for _, name := range []string{"first", "second", "third"} {
		u.add(name, func(context.Context) error {
			did = append(did, name)
			if name == "second" {
				return errors.New("stuck")
			}
			return nil
		})
	}
	err := u.run(t.Context())
	if got := strings.Join(did, " "); got != "third second first" {
		t.Errorf("undone in the order %s", got)
	}
	if err == nil || err.Error() != "second: stuck" {
		t.Errorf("error %v", err)
	}
	if err := u.run(t.Context()); err != nil || len(did) != 3 {
		t.Error("undone twice")
	}
}

package cli

import (
	"fmt"
	"time"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
)

// original is what clones are made of, as far as theirs depends on it.
type original struct {
	spec   vm.Spec
	driver string
	linked bool // it has a network interface
}

// ofSnapshot refuses a snapshot that nothing can be cloned from.
func ofSnapshot(m *snapshot.Manifest) (original, error) {
	return original{m.Spec, m.Needs.Driver, m.Link.Interface != ""}, m.CheckRuns()
}

// ofRunning is what the snapshot will be that is taken of a VM.
func ofRunning(r *vm.Record) original {
	return original{r.Spec, r.Resolved.Driver, r.Resolved.Link.Interface != ""}
}

// spec is that of the original, with what may differ in the n-th clone as it was
// typed; env is for commands that are run in it.
func (o *cloneOptions) spec(of original, lookup func(string) (string, bool), n int) (s vm.Spec, env []string, err error) {
	if env, err = environment(nil, o.env, lookup); err == nil {
		err = vm.CheckCommand([]string{o.exec}, env)
	}
	if err != nil {
		return s, nil, err
	}
	s, err = o.specOf(of, lookup, n)
	return s, env, err
}

func (o *cloneOptions) specOf(of original, lookup func(string) (string, bool), n int) (vm.Spec, error) {
	s := of.spec
	switch {
	case o.given("cpu") && o.cpus != s.CPUs:
		return s, fmt.Errorf("%w: --cpu %d: a clone has the %d virtual CPUs of its original", vm.ErrInvalid, o.cpus, s.CPUs)
	case o.given("mem") && o.memory != s.MemoryMiB:
		return s, fmt.Errorf("%w: --mem %d: a clone has the %d MiB of its original", vm.ErrInvalid, o.memory, s.MemoryMiB)
	case o.tty && !s.Container.TTY:
		return s, fmt.Errorf("%w: --tty: the container of the original has no terminal; use fcvm exec -it", vm.ErrInvalid)
	}
	net, err := o.networkSpec(of, lookup)
	if err != nil {
		return s, err
	}
	s.Driver, s.Network = of.driver, net
	s.Remove, s.Logs, s.LogMiB = o.remove, o.logs, o.logSize
	s.Container.Hostname = numbered(o.hostname, n) // not the original's, which is another machine
	s.Restart = vm.Restart{}                       // what had ended would end again
	s.Gate = vm.Gate{}
	if o.waitReady != "" {
		if s.Gate, err = vm.ParseGate(o.waitReady); err != nil {
			return s, err
		}
	}
	s.OnRestore = append(append([]string{}, s.OnRestore...), o.onRestore...)
	return s, s.Validate()
}

// networkSpec is the original's with the flags that were given in its place.
func (o *cloneOptions) networkSpec(of original, lookup func(string) (string, bool)) (vm.NetworkSpec, error) {
	asked, err := o.network.spec(lookup)
	if err != nil {
		return asked, err
	}
	s := of.spec.Network
	s.Backend, s.Mode, s.IP, s.Subnet = asked.Backend, asked.Mode, asked.IP, asked.Subnet
	if o.given("egress") {
		s.Egress = asked.Egress
	}
	if o.given("dns") {
		s.DNS = asked.DNS
	}
	if o.given("dns-search") {
		s.Search = asked.Search
	}
	if o.given("add-host") {
		s.AddHosts = asked.AddHosts
	}
	if o.given("isolated") {
		s.Isolated = asked.Isolated
	}
	if s.Publish, err = o.ports(of); err != nil {
		return s, err
	}
	switch {
	case !of.linked && (s.Backend == "none" || s.Backend == "auto"):
		s.Backend = "none"
	case !of.linked:
		return s, fmt.Errorf("%w: --network %s: the original has no network interface, and a clone gets none", vm.ErrInvalid, s.Backend)
	case s.Backend == "none":
		return s, fmt.Errorf("%w: --network none: the original has a network interface, and a clone keeps it; --egress none keeps it from the world", vm.ErrInvalid)
	}
	return s, nil
}

// ports are those that were typed, else those of the original on free ports of
// the host.
func (o *cloneOptions) ports(of original) ([]string, error) {
	if !o.given("publish") {
		ports, err := network.ParsePublish(of.spec.Network.Publish)
		var free []string
		for _, p := range ports {
			p.HostPort, p.HostPortEnd = 0, 0
			free = append(free, p.Spec())
		}
		return free, err
	}
	ports, err := network.ParsePublish(o.network.publish)
	for _, p := range ports {
		if p.HostPort != 0 && p.HostPortEnd == 0 && o.count > 1 {
			return nil, fmt.Errorf("%w: --publish: port %d of the host can be had by one of %d clones; let each have a free one with -p 0:%d", vm.ErrInvalid, p.HostPort, o.count, p.GuestPort)
		}
	}
	return o.network.publish, err
}

// lastRun is when a VM last ran: since it was paused or has ended, or, for one
// that has ended, since it was started.
func lastRun(r *vm.Record) time.Time {
	last := r.Created
	for _, e := range r.History {
		switch {
		case e.Status == vm.StatusRunning, e.Status == vm.StatusPaused && r.Status == vm.StatusPaused:
			last = e.Time
		}
	}
	return last
}

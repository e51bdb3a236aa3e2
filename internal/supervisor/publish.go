package supervisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
)

// Publish implements control.VM: it opens ports of a VM that runs, all or
// none, or closes them, and returns those that were opened or closed.
func (c *commands) Publish(ctx context.Context, specs []string, remove bool) ([]string, error) {
	in, err := c.running()
	if err != nil && !errors.Is(err, vm.ErrPaused) {
		return nil, err
	}
	pub, ok := in.net.(network.Publisher)
	if !ok {
		return nil, fmt.Errorf("%w: its network (%s) has no ports to publish", vm.ErrInvalid, c.vm.Record().Resolved.Network)
	}
	ports, err := network.ParsePublish(specs)
	if err != nil {
		return nil, err
	}
	c.publishing.Lock()
	defer c.publishing.Unlock()
	var done []network.Port
	if remove {
		done, err = unpublish(pub, in.net.Ports(), ports)
	} else {
		done, err = openAll(ctx, pub, ports)
	}
	var text []string
	for _, p := range done {
		text = append(text, p.String())
	}
	return text, errors.Join(err, c.vm.Update(func(r *vm.Record) error {
		in.fillPorts(r)
		return nil
	}))
}

func openAll(ctx context.Context, pub network.Publisher, ports []network.Port) ([]network.Port, error) {
	var done []network.Port
	for _, p := range ports {
		opened, err := pub.Publish(ctx, p)
		if err != nil {
			for _, p := range done {
				err = errors.Join(err, pub.Unpublish(p))
			}
			return nil, err
		}
		done = append(done, opened...)
	}
	return done, nil
}

// unpublish closes every open port that one of those asked for fits: what they
// leave out fits all. Nothing is closed if one of them fits none.
func unpublish(pub network.Publisher, open, asked []network.Port) ([]network.Port, error) {
	var found []network.Port
	for _, p := range asked {
		n := len(found)
		for _, o := range open {
			if o.GuestPort == p.GuestPort && o.Protocol == p.Protocol &&
				p.Takes(o.HostPort) &&
				(!p.HostIP.IsValid() || p.HostIP == o.HostIP) {
				found = append(found, o)
			}
		}
		if len(found) == n {
			return nil, fmt.Errorf("%w: %d/%s: %w (fcvm port lists those that are)", vm.ErrInvalid, p.GuestPort, p.Protocol, network.ErrNotPublished)
		}
	}
	var done []network.Port
	var errs []error
	for _, p := range found {
		if err := pub.Unpublish(p); err != nil {
			errs = append(errs, err)
			continue
		}
		done = append(done, p)
	}
	return done, errors.Join(errs...)
}

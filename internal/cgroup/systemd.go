package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	scopeSuffix = ".scope"

	// systemdTimeout bounds a scope's start; milliseconds, mostly.
	systemdTimeout = 10 * time.Second

	managerName   = "org.freedesktop.systemd1"
	managerPath   = "/org/freedesktop/systemd1"
	managerMethod = managerName + ".Manager."
	errUnitExists = managerName + ".UnitExists"
)

// systemdRuns is sd_booted(3).
func (h host) systemdRuns() bool {
	st, err := os.Lstat(filepath.Join(h.run, "systemd", "system"))
	return err == nil && st.IsDir()
}

// scope is a transient unit of systemd's, org.freedesktop.systemd1(5), that is
// to be made with the first process.
type scope struct {
	host  host
	conn  *dbus.Conn
	name  string
	props []property
}

// property is of D-Bus's type (sv).
type property struct {
	Name  string
	Value dbus.Variant
}

// openScope connects to the manager.
func openScope(ctx context.Context, h host, id string, l Limits) (*scope, error) {
	conn, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	return &scope{host: h, conn: conn, name: prefix + id + scopeSuffix, props: h.properties(id, l)}, nil
}

// address is a socket that a manager is reached by.
type address struct {
	address string
	bus     bool // a message bus, which wants to be greeted
}

// addresses are those of the system's manager for root, of the user's own for
// others: the bus, and the socket that systemctl uses where there is none.
func (h host) addresses() []address {
	if h.uid == 0 {
		return []address{
			{"unix:path=" + filepath.Join(h.run, "dbus", "system_bus_socket"), true},
			{"unix:path=" + filepath.Join(h.run, "systemd", "private"), false},
		}
	}
	var a []address
	if bus := h.env("DBUS_SESSION_BUS_ADDRESS"); bus != "" {
		a = append(a, address{bus, true})
	}
	dir := h.env("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(h.run, "user", strconv.Itoa(h.uid))
	}
	return append(a,
		address{"unix:path=" + filepath.Join(dir, "bus"), true},
		address{"unix:path=" + filepath.Join(dir, "systemd", "private"), false})
}

func (h host) connect(ctx context.Context) (*dbus.Conn, error) {
	var errs []error
	for _, a := range h.addresses() {
		conn, err := dial(ctx, a, h.uid)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: systemd does not answer: %w", ErrNone, errs[len(errs)-1])
}

func dial(ctx context.Context, a address, uid int) (*dbus.Conn, error) {
	conn, err := dbus.Dial(a.address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))})
	if err == nil && a.bus {
		err = conn.Hello()
	}
	if !stop() {
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s: %w", a.address, err)
	}
	return conn, nil
}

// properties of the scope: systemd.resource-control(5), in the units of its
// D-Bus interface.
func (h host) properties(id string, l Limits) []property {
	p := []property{
		{"Description", dbus.MakeVariant("fcvm VM " + id)},
		// It goes when it is empty, however its processes ended.
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
	}
	if h.uid == 0 {
		p = append(p, property{"Slice", dbus.MakeVariant("machine.slice")}) // where VMs belong: systemd.special(7)
	}
	if l.Memory > 0 {
		p = append(p, property{"MemoryMax", dbus.MakeVariant(l.Memory)})
	}
	if l.CPUs > 0 {
		const second = 1_000_000 // microseconds
		p = append(p, property{"CPUQuotaPerSecUSec", dbus.MakeVariant(uint64(l.CPUs) * second)})
	}
	if l.IOWeight > 0 {
		p = append(p, property{"IOWeight", dbus.MakeVariant(uint64(l.IOWeight))})
	}
	if l.IORate > 0 {
		type limit struct {
			Path string
			Rate uint64
		}
		v := dbus.MakeVariant([]limit{{l.Device.Path, l.IORate}})
		p = append(p, property{"IOReadBandwidthMax", v}, property{"IOWriteBandwidthMax", v})
	}
	return p
}

// adoptByScope has systemd make the scope around a process.
func (g *Group) adoptByScope(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, systemdTimeout)
	defer cancel()
	s := g.scope
	if err := s.start(ctx, pid); err != nil {
		return fmt.Errorf("have systemd make %s: %w", s.name, err)
	}
	own, err := s.await(ctx, pid)
	if err != nil {
		return fmt.Errorf("have systemd make %s: %w", s.name, err)
	}
	t, err := s.host.tree()
	if err != nil {
		return err
	}
	g.dir = filepath.Join(t.root, own)
	g.missing = s.missing(g.dir)
	return nil
}

// start asks for the scope. One of the same name that has just ended may still
// be known: a VM that is restarted has its name again.
func (s *scope) start(ctx context.Context, pid int) error {
	props := append([]property{{"PIDs", dbus.MakeVariant([]uint32{uint32(pid)})}}, s.props...)
	type aux struct {
		Name  string
		Props []property
	}
	for {
		err := s.conn.Object(managerName, managerPath).
			CallWithContext(ctx, managerMethod+"StartTransientUnit", 0, s.name, "fail", props, []aux{}).Err
		var refused dbus.Error
		if !errors.As(err, &refused) || refused.Name != errUnitExists {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * pollPause):
		}
	}
}

// await waits until the process is where it is to be, and returns where.
func (s *scope) await(ctx context.Context, pid int) (string, error) {
	for {
		own, err := s.host.groupOf(pid)
		if err != nil {
			return "", err
		}
		if filepath.Base(own) == s.name {
			return own, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("process %d stays in %s: %w", pid, own, context.Cause(ctx))
		case <-time.After(pollPause):
		}
	}
}

// missing looks which limits have come: a user's manager has been given some
// controllers only (Delegate= of user@.service).
func (s *scope) missing(dir string) []string {
	there, err := words(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil // it has ended already
	}
	type need struct{ controller, what string }
	of := map[string]need{
		"MemoryMax": {"memory", "memory"}, "CPUQuotaPerSecUSec": {"cpu", "CPU time"},
		"IOWeight": {"io", "I/O weight"}, "IOReadBandwidthMax": {"io", LimitIORate},
	}
	var missing []string
	for _, p := range s.props {
		if n, known := of[p.Name]; known && !slices.Contains(there, n.controller) {
			missing = append(missing, n.what+" (no "+n.controller+" controller; systemd: Delegate= of user@.service)")
		}
	}
	return missing
}

func (s *scope) close() { _ = s.conn.Close() }

package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
)

// spec turns what was typed into what is asked for, and refuses what cannot be
// meant before anything is made for it.
func (o *runOptions) spec(lookup func(string) (string, bool)) (vm.Spec, error) {
	env, err := environment(o.envFiles, o.env, lookup)
	if err != nil {
		return vm.Spec{}, err
	}
	entrypoint, err := o.parseEntrypoint()
	if err != nil {
		return vm.Spec{}, err
	}
	labels, err := parseLabels(o.labels)
	if err != nil {
		return vm.Spec{}, err
	}
	restart, err := vm.ParseRestart(o.restart)
	if err != nil {
		return vm.Spec{}, err
	}
	var gate vm.Gate
	if o.waitReady != "" {
		if gate, err = vm.ParseGate(o.waitReady); err != nil {
			return vm.Spec{}, err
		}
	}
	health, err := o.health.spec()
	if err != nil {
		return vm.Spec{}, err
	}
	network, err := o.network.spec(lookup)
	if err != nil {
		return vm.Spec{}, err
	}
	mounts, err := o.mounts.Resolve()
	if err != nil {
		return vm.Spec{}, err
	}
	s := vm.Spec{
		Restart: restart, Gate: gate, Health: health, OnRestore: o.onRestore,
		Image: o.image, Driver: o.driver, CPUs: o.cpus, MemoryMiB: o.memory, HugePages: o.hugePages, BalloonMiB: o.balloon, Init: o.init, Labels: labels,
		Logs: o.logs, LogMiB: o.logSize, Remove: o.remove, BootTimeout: o.bootTimeout, IORate: o.ioRate,
		Network: network, Mounts: mounts, ScratchMiB: o.scratch, DiskRate: o.diskRate, DiskOps: o.diskOps,
		Container: vm.ContainerSpec{
			Entrypoint: entrypoint, Command: o.command, Env: env, WorkDir: o.workDir, User: o.user, Hostname: o.hostname,
			Privileged: o.privileged, ReadOnly: o.readOnly, CapAdd: o.capAdd, CapDrop: o.capDrop, Tmpfs: o.tmpfs,
			Interactive: o.interactive, TTY: o.tty,
		},
	}
	if err := o.check(); err != nil {
		return vm.Spec{}, err
	}
	return s, s.Validate()
}

// check refuses what vm.Spec.Validate does not know of.
func (o *runOptions) check() error {
	if o.name != "" {
		if err := vm.CheckName(o.name); err != nil {
			return err
		}
	}
	if o.save != "" {
		if err := vm.CheckName(o.save); err != nil {
			return err
		}
	}
	switch {
	case o.remove && o.restart != vm.RestartNo:
		return fmt.Errorf("%w: --restart %s and --rm rule each other out; keep the VM with --rm=false", vm.ErrInvalid, o.restart)
	case o.logSize < 1:
		return fmt.Errorf("%w: --log-size %d: a log keeps at least 1 MiB", vm.ErrInvalid, o.logSize)
	case o.bootTimeout < 0:
		return fmt.Errorf("%w: --boot-timeout %s: it is a time that is yet to come", vm.ErrInvalid, o.bootTimeout)
	case o.workDir != "" && !strings.HasPrefix(o.workDir, "/"):
		return fmt.Errorf("%w: --workdir %q: it is an absolute path in the container", vm.ErrInvalid, o.workDir)
	}
	for _, t := range o.tmpfs {
		if !strings.HasPrefix(t, "/") {
			return fmt.Errorf("%w: --tmpfs %q: it begins with an absolute path in the container", vm.ErrInvalid, t)
		}
	}
	return nil
}

// parseEntrypoint returns nil when the image's is to stay, and an empty slice
// when there is to be none. Like Podman it takes a JSON array too, for an
// entrypoint of several words.
func (o *runOptions) parseEntrypoint() ([]string, error) {
	switch {
	case !o.hasEntrypoint:
		return nil, nil
	case o.entrypoint == "":
		return []string{}, nil
	case strings.HasPrefix(o.entrypoint, "["):
		var words []string
		if err := json.Unmarshal([]byte(o.entrypoint), &words); err != nil {
			return nil, fmt.Errorf("%w: --entrypoint %q is not a JSON array of strings: %w", vm.ErrInvalid, o.entrypoint, err)
		}
		return append([]string{}, words...), nil
	}
	return []string{o.entrypoint}, nil
}

func parseLabels(labels []string) (map[string]string, error) {
	if len(labels) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(labels))
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return nil, fmt.Errorf("%w: --label %q: the label has no name", vm.ErrInvalid, l)
		}
		m[key] = value
	}
	return m, nil
}

package supervisor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// layOutDisks puts everything that the VMM opens into the VM's directory,
// under the names that every VM has.
func (in *instance) layOutDisks(ctx context.Context) error {
	defer in.timer.phase("disks")()
	if err := in.linkShared(); err != nil {
		return err
	}
	if in.from != nil {
		return in.copyDisks(ctx)
	}
	if err := in.linkVolumes(); err != nil {
		return err
	}
	templates := in.Store.Layout().ScratchTemplates()
	return fresh(string(in.vm.Dir()), paths.ScratchName, func(path string) error {
		return rootfs.Scratch(ctx, templates, int64(cmp.Or(in.Spec.ScratchMiB, vm.DefaultScratchMiB))<<20, path)
	})
}

// linkShared links to what the VM shares with others.
func (in *instance) linkShared() error {
	dir := string(in.vm.Dir())
	links := map[string]string{
		paths.KernelName: in.artifacts.Kernel,
		paths.RootName:   in.artifacts.Root,
		paths.ImageName:  in.image.Disk,
	}
	for name, target := range links {
		if err := fresh(dir, name, func(path string) error { return os.Symlink(target, path) }); err != nil {
			return err
		}
	}
	// A hard link: the file goes when the agent in it is not the current one.
	return fresh(dir, paths.InitrdName, func(path string) error { return os.Link(in.artifacts.Initrd, path) })
}

// disks are the guest's, in its order.
func (in *instance) disks() []vmm.Disk {
	return in.withVolumes([]vmm.Disk{
		agentapi.DiskRoot:    {ID: "root", Path: paths.RootName, ReadOnly: true},
		agentapi.DiskImage:   {ID: "image", Path: paths.ImageName, ReadOnly: true},
		agentapi.DiskScratch: {ID: "scratch", Path: paths.ScratchName},
	})
}

// fresh makes a file of the VM's in place of one that an earlier start left.
func fresh(dir, name string, create func(path string) error) error {
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lay out the VM's files: %w", err)
	}
	if err := create(path); err != nil {
		return fmt.Errorf("lay out the VM's %s: %w", name, err)
	}
	return nil
}

// machineConfig is the VM in the driver's terms. The caller closes its logs
// once the VMM runs.
func (in *instance) machineConfig() (cfg vmm.Config, closeLogs func(), err error) {
	dir := in.vm.Dir()
	var logs []*os.File
	closeLogs = func() {
		for _, f := range logs {
			_ = f.Close()
		}
	}
	for _, path := range []string{dir.Console(), dir.VMMLog()} {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			closeLogs()
			return vmm.Config{}, nil, fmt.Errorf("open the VM's logs: %w", err)
		}
		logs = append(logs, f)
	}
	cfg = vmm.Config{
		Dir: string(dir), Kernel: paths.KernelName, Initrd: paths.InitrdName, Cmdline: in.cmdline(),
		CPUs: in.Spec.CPUs, MemoryMiB: in.Spec.MemoryMiB, HugePages: in.Spec.HugePages,
		Disks: in.disks(),
		Net:   in.net.Net(), Launcher: in.launcher(),
		Console: logs[0], VMMLog: logs[1],
	}
	if in.usesMetadata() {
		cfg.Metadata = json.RawMessage(noMetadata) // until the guest is up, and was saved for others
	}
	return cfg, closeLogs, nil
}

// usesMetadata reports whether the plan goes through the metadata service. A
// guest without an interface cannot reach it. A clone has its plan, and its
// container could read another.
func (in *instance) usesMetadata() bool {
	return in.driver.Capabilities().Metadata && in.net.Net() != nil && in.Clone == nil
}

// noMetadata is what the service has while there is nothing to tell.
const noMetadata = "{}"

// metadata is the plan as a string within JSON: what the service gives out as
// a tree, it would give in its own words.
func metadata(plan *agentapi.Plan) (json.RawMessage, error) {
	text, err := json.Marshal(plan)
	if err != nil {
		return nil, fmt.Errorf("encode the plan: %w", err)
	}
	return json.Marshal(map[string]string{agentapi.MMDSPlanKey: string(text)})
}

// cmdline is the kernel command line. It holds no secrets.
func (in *instance) cmdline() string {
	channel, plan := "serial", "channel"
	if in.driver.Capabilities().AgentVsock {
		channel = "vsock"
	}
	if in.usesMetadata() {
		plan = "mmds"
	}
	return strings.Join([]string{
		"quiet", "net.ifnames=0",
		agentapi.ParamChannel + "=" + channel, agentapi.ParamPlan + "=" + plan, agentapi.ParamInit + "=" + string(in.Spec.Init),
	}, " ")
}

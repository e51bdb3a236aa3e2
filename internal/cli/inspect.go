package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/usage"
	"github.com/fcvm/fcvm/internal/vm"
)

type inspectOptions struct {
	vms    []string
	format string
}

func newInspectCommand(a *app, run func(context.Context, *app, *inspectOptions) error) *cobra.Command {
	o := new(inspectOptions)
	cmd := &cobra.Command{
		Use:     "inspect [flags] VM...",
		Short:   "Show all that is known of VMs, as JSON",
		GroupID: groupVMs,
		Long: `Print all that is known of VMs as a JSON array: what was asked for (.Spec), what
became of it (.Resolved: driver and why it was chosen, version, digests, process,
addresses, ports, disks), status, history and exit code, how long each phase of
the start took (.Phases, in nanoseconds), and where its files are (.Files). VM is
an id, the unique beginning of one, or a name.`,
		Example: `  fcvm inspect box
  fcvm inspect --format '{{.Resolved.Driver}}: {{.Resolved.DriverReason}}' box
  fcvm inspect --format '{{range .History}}{{.Time}} {{.Status}}{{"\n"}}{{end}}' box`,
		Args:              oneOrMore("VM"),
		ValidArgsFunction: completeVMs(a, anyVM),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vms = args
			return run(ctx, a, o)
		}),
	}
	addFormatAs(cmd, &o.format, "f")
	return cmd
}

// vmDetails is a VM's record with what else there is to know of it.
type vmDetails struct {
	vm.Record

	Alive     bool       `json:"alive"`           // its supervisor runs
	Error     string     `json:"error,omitempty"` // why its record cannot be read
	DiskUsage []diskSize `json:"disk_usage"`
	Lineage   []string   `json:"lineage"` // the snapshots that it comes from, the last one first
	Files     vmFiles    `json:"files"`
}

// diskSize is what a disk of the VM's takes on the host, bytes.
type diskSize struct {
	ID        string `json:"id"`
	Size      int64  `json:"size"`      // with holes
	Allocated int64  `json:"allocated"` // without
}

// vmFiles is where a VM's files lie.
type vmFiles struct {
	Directory     string `json:"directory"`
	ContainerLog  string `json:"container_log"`
	Console       string `json:"console"`
	VMMLog        string `json:"vmm_log"`
	ControlSocket string `json:"control_socket,omitempty"` // while it runs
}

// maxLineage bounds how far a VM is traced back.
const maxLineage = 100

func details(st *store.Store, snapshots *snapshot.Store, e store.Entry) vmDetails {
	dir := st.Layout().VM(e.Record.ID)
	d := vmDetails{
		Record: e.Record, Alive: e.Alive, DiskUsage: []diskSize{}, Lineage: []string{},
		Files: vmFiles{
			Directory: string(dir), ContainerLog: dir.ContainerLog(), Console: dir.Console(), VMMLog: dir.VMMLog(),
		},
	}
	if e.Err != nil {
		d.Status, d.Error = statusBroken, e.Err.Error()
	}
	for s := e.Record.Resolved.Snapshot; s.ID != ""; {
		d.Lineage = append(d.Lineage, s.ID)
		from, err := snapshots.Find(s.ID)
		if err != nil || from.Err != nil || len(d.Lineage) == maxLineage {
			break // further back nothing is known
		}
		s = vm.Lineage{ID: from.Manifest.Source.Snapshot}
	}
	if socket, err := st.Layout().ControlSocket(e.Record.ID); err == nil && e.Alive {
		d.Files.ControlSocket = socket
	}
	for _, disk := range e.Record.Resolved.Disks {
		if size, allocated, err := usage.File(disk.Path); err == nil {
			d.DiskUsage = append(d.DiskUsage, diskSize{ID: disk.ID, Size: size, Allocated: allocated})
		}
	}
	return d
}

// runInspect prints those that were found even when others were not, and what
// is known of those that are broken.
func runInspect(_ context.Context, a *app, o *inspectOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	snapshots := snapshotsOf(st.Layout())
	var (
		found  []vmDetails
		failed []error
	)
	for _, ref := range o.vms {
		e, err := st.Find(ref)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if e.Err != nil {
			failed = append(failed, e.Err)
		}
		found = append(found, details(st, snapshots, e))
	}
	if f.plain() {
		f.json = true
	}
	return errors.Join(append([]error{writeItems(a.sys.Stdout, f, found)}, failed...)...)
}

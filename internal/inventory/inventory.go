// Package inventory says what a data directory holds, what of it VMs use, and
// gets rid of the rest.
//
// What a VM uses is told by its record and, should that be unreadable, by the
// links in its directory. Nothing is believed for long: whether a thing is used
// is asked again when it is about to be removed, under a lock without which no
// VM can come to use it (image.Store.Ensure, setup.Setup.Hold).
package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/usage"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/volume"
)

// Kind of an item.
type Kind string

// The kinds, in the order of a listing.
const (
	VM       Kind = "VM"
	Snapshot Kind = "snapshot"
	Image    Kind = "image"
	Layers   Kind = "shared layers"
	Kernel   Kind = "kernel"
	Root     Kind = "guest root"
	VMM      Kind = "VMM"
	Scratch  Kind = "scratch template"
	Volume   Kind = "volume"
	Leftover Kind = "leftover"
)

// Kinds are all of them.
var Kinds = []Kind{VM, Snapshot, Image, Layers, Kernel, Root, VMM, Scratch, Volume, Leftover}

// Item is one thing in the data directory.
type Item struct {
	Kind  Kind   `json:"kind"`
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"` // for people
	State string `json:"state"`          // one or a few words
	Path  string `json:"path,omitempty"`
	Size  int64  `json:"size"` // bytes that would be free without it

	// Active: a VM that runs uses it, or is it.
	Active bool `json:"active"`
	// Users are the ids of those who use it: VMs, ended ones too, and others.
	Users []string `json:"users,omitempty"`
	// Kept: what is not used may be wanted all the same; only who wants
	// everything gone gets rid of it.
	Kept bool `json:"kept"`

	extra    int64                               // bytes that are not below Path
	lastUsed time.Time                           // of an image
	remove   func(context.Context) (bool, error) // nil: it stays
}

// Inventory is a data directory's.
type Inventory struct {
	Store     *store.Store
	Snapshots *snapshot.Store
	Images    *image.Store
	Setup     *setup.Setup
	// Volumes are named volumes. They are listed, and never unused unless
	// PruneVolumes is set: nobody can make again what is in them.
	Volumes      *volume.Store
	PruneVolumes bool
}

// List returns all that there is. What cannot be listed is left out, and told
// by the error.
func (v *Inventory) List() ([]Item, error) {
	entries, err := v.Store.List()
	if err != nil {
		return nil, err
	}
	users, err := v.usersOf(entries)
	if err != nil {
		return nil, err
	}
	var (
		items  []Item
		failed []error
	)
	for _, part := range []func([]store.Entry, *usersTable) ([]Item, error){v.vms, v.snapshots, v.images, v.parts, v.templates, v.volumes} {
		found, err := part(entries, users)
		items = append(items, found...)
		failed = append(failed, err)
	}
	failed = append(failed, measure(items))
	return items, errors.Join(failed...)
}

// measure sets the items' sizes.
func measure(items []Item) error {
	var failed []error
	for i := range items {
		items[i].Size = items[i].extra
		if items[i].Path != "" {
			size, err := usage.Disk(items[i].Path)
			items[i].Size += size
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// Unused returns what can go: VMs that have ended, and what no other VM uses.
// With all that includes what is kept.
func Unused(items []Item, all bool) []Item {
	var leaving []string // VMs and snapshots that go, too
	for _, i := range items {
		if (i.Kind == VM || i.Kind == Snapshot) && i.mayGo(all) {
			leaving = append(leaving, i.ID)
		}
	}
	var unused []Item
	for _, i := range items {
		used := slices.ContainsFunc(i.Users, func(id string) bool { return !slices.Contains(leaving, id) })
		if i.mayGo(all) && !used {
			unused = append(unused, i)
		}
	}
	return unused
}

func (i Item) mayGo(all bool) bool { return i.remove != nil && !i.Active && (all || !i.Kept) }

// Remove gets rid of an item, unless it has come into use. It reports whether
// it has.
func (i Item) Remove(ctx context.Context) (bool, error) { return i.remove(ctx) }

func (v *Inventory) vms(entries []store.Entry, _ *usersTable) ([]Item, error) {
	var items []Item
	for _, e := range entries {
		r := e.Record
		i := Item{
			Kind: VM, ID: r.ID, Name: r.Name, State: string(r.Status), Path: string(v.Store.Layout().VM(r.ID)), Active: e.Alive,
			remove: func(context.Context) (bool, error) {
				err := v.Store.Remove(r.ID)
				if errors.Is(err, vm.ErrRunning) {
					return false, nil
				}
				return err == nil, err
			},
		}
		if e.Err != nil {
			// It may be a newer fcvm's, or a person's who wants to repair it.
			i.State, i.Kept = "broken", true
			if errors.Is(e.Err, store.ErrNewerSchema) {
				i.State, i.remove = "of a newer fcvm", nil // which can read it
			}
		} else if !e.Alive && !r.Status.Final() {
			i.Kept = true // it could not be reconciled
		}
		items = append(items, i)
	}
	return items, nil
}

// kinds of setup's parts.
var partKinds = map[setup.PartKind]Kind{
	setup.PartKernel: Kernel, setup.PartRoot: Root, setup.PartVMM: VMM, setup.PartLeftover: Leftover,
}

func (v *Inventory) parts(_ []store.Entry, u *usersTable) ([]Item, error) {
	list, err := v.Setup.Parts()
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, p := range list {
		i := Item{Kind: partKinds[p.Kind], ID: p.ID, State: "replaced", Path: p.Path}
		i.Users, i.Active = u.of(p.ID, p.Path)
		switch {
		case p.Current:
			i.State, i.Active = "installed", true
		case p.Kind == setup.PartLeftover:
			i.State = "of an interrupted setup"
		case p.Kind == setup.PartVMM && u.anyAlive:
			i.Active = true // which program a VM was started with is not recorded
		}
		i.remove = func(ctx context.Context) (bool, error) {
			return v.Setup.Remove(ctx, p, func() (bool, error) {
				if p.Kind == setup.PartVMM {
					return v.anyAlive()
				}
				return v.used(p.ID, p.Path)
			})
		}
		items = append(items, i)
	}
	return items, nil
}

func (v *Inventory) templates([]store.Entry, *usersTable) ([]Item, error) {
	list, err := rootfs.Templates(v.Store.Layout().ScratchTemplates())
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, t := range list {
		i := Item{Kind: Scratch, ID: filepath.Base(t.Path), State: "outdated", Path: t.Path, Kept: t.Current}
		if t.Current {
			i.State = "ready"
		}
		i.remove = func(context.Context) (bool, error) {
			err := os.Remove(t.Path)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return err == nil, err
		}
		items = append(items, i)
	}
	return items, nil
}

func (v *Inventory) volumes(_ []store.Entry, u *usersTable) ([]Item, error) {
	list, err := v.Volumes.List()
	var items []Item
	for _, info := range list {
		dir := string(v.Store.Layout().Volume(info.Name))
		i := Item{Kind: Volume, ID: info.Name, State: "unused", Path: dir}
		i.Users, i.Active = u.of("volume "+info.Name, dir)
		if i.Active {
			i.State = "in use"
		}
		if v.PruneVolumes {
			i.remove = func(context.Context) (bool, error) {
				err := v.RemoveVolume(info.Name)
				if errors.Is(err, volume.ErrInUse) || errors.Is(err, volume.ErrNotFound) {
					return false, nil
				}
				return err == nil, err
			}
		}
		items = append(items, i)
	}
	return items, err
}

// used asks anew whether anybody uses a thing.
func (v *Inventory) used(id, path string) (bool, error) {
	users, err := v.users()
	if err != nil {
		return true, err
	}
	ids, _ := users.of(id, path)
	return len(ids) > 0, nil
}

func (v *Inventory) anyAlive() (bool, error) {
	entries, err := v.Store.List()
	return slices.ContainsFunc(entries, func(e store.Entry) bool { return e.Alive }), err
}

// usersTable knows who uses what.
type usersTable struct {
	vms      []user // and others
	anyAlive bool
}

// user is one VM, or somebody else who uses things.
type user struct {
	id      string
	alive   bool
	unknown bool     // its record cannot be read
	spare   bool     // a snapshot that fcvm has taken by itself: whoever runs from it uses the image, too
	ids     []string // of what its record says that it uses
	targets []string // of the links in its directory
}

// users asks anew who uses what.
func (v *Inventory) users() (*usersTable, error) {
	entries, err := v.Store.List()
	if err != nil {
		return nil, err
	}
	return v.usersOf(entries)
}

func (v *Inventory) usersOf(entries []store.Entry) (*usersTable, error) {
	u := new(usersTable)
	snapshots, err := v.Snapshots.List()
	if err != nil {
		return nil, err // without them everything would look unused
	}
	for _, s := range snapshots {
		n := &s.Manifest.Needs
		u.vms = append(u.vms, user{
			id: s.Manifest.ID, alive: s.InUse, unknown: s.Err != nil, spare: s.Manifest.Automatic(),
			ids: []string{n.ImageDigest, n.KernelID, n.RootID}, targets: sharedDisks(&s.Manifest),
		})
	}
	for _, e := range entries {
		res := e.Record.Resolved
		one := user{
			id: e.Record.ID, alive: e.Alive, unknown: e.Err != nil,
			ids: []string{res.ImageDigest, res.KernelID, res.RootID, res.Snapshot.ID},
		}
		dir := string(v.Store.Layout().VM(e.Record.ID))
		files, err := os.ReadDir(dir)
		if err != nil {
			one.unknown = one.unknown || !errors.Is(err, fs.ErrNotExist)
		}
		for _, f := range files {
			if target, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil {
				one.targets = append(one.targets, target)
			}
		}
		u.vms = append(u.vms, one)
		u.anyAlive = u.anyAlive || e.Alive
	}
	return u, nil
}

// of returns the VMs that use a thing, and whether one of them runs. A VM that
// runs, and of which nothing can be read, may use anything.
func (u *usersTable) of(id, path string) (ids []string, active bool) {
	for _, v := range u.vms {
		linked := slices.ContainsFunc(v.targets, func(t string) bool { return strings.HasPrefix(t, path+"/") })
		if linked || slices.Contains(v.ids, id) || (v.unknown && v.alive) {
			ids = append(ids, v.id)
			active = active || v.alive
		}
	}
	return ids, active
}

// String is how an item is told of.
func (i Item) String() string {
	if i.Name != "" {
		return fmt.Sprintf("%s %s (%s)", i.Kind, i.Name, i.ID)
	}
	return fmt.Sprintf("%s %s", i.Kind, i.ID)
}

package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/volume"
)

// sharedDisks are the disks that a snapshot has not copied.
func sharedDisks(m *snapshot.Manifest) []string {
	var paths []string
	for _, d := range m.Disks {
		if d.Path != "" {
			paths = append(paths, d.Path)
		}
	}
	return paths
}

// RemoveVolume drops a volume that no VM runs with and no snapshot needs. The
// error wraps volume.ErrInUse or volume.ErrNotFound.
func (v *Inventory) RemoveVolume(name string) error {
	list, err := v.Snapshots.List()
	if err != nil {
		return err
	}
	dir := string(v.Store.Layout().Volume(name))
	for _, s := range list {
		if slices.ContainsFunc(sharedDisks(&s.Manifest), func(path string) bool { return strings.HasPrefix(path, dir+"/") }) {
			return fmt.Errorf("remove volume %s: it %w: snapshot %s needs it (fcvm snapshot rm)", name, volume.ErrInUse, s.Manifest.Title())
		}
	}
	return v.Volumes.Remove(name)
}

func (v *Inventory) snapshots(_ []store.Entry, u *usersTable) ([]Item, error) {
	list, err := v.Snapshots.List()
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, e := range list {
		m := &e.Manifest
		i := Item{
			Kind: Snapshot, ID: m.ID, Name: m.Name, State: "of " + m.Source.Name, Path: e.Dir, Active: e.InUse,
			Kept: !m.Automatic(), // somebody has asked for it
			remove: func(context.Context) (bool, error) {
				err := v.Snapshots.Remove(m.ID)
				if errors.Is(err, snapshot.ErrInUse) {
					return false, nil
				}
				return err == nil, err
			},
		}
		switch {
		case errors.Is(e.Err, snapshot.ErrNewerSchema):
			i.State, i.remove = "of a newer fcvm", nil // which can read it
		case e.Err != nil:
			i.State, i.Kept = "broken", true
		case m.Automatic():
			i.State = "automatic"
		}
		for _, user := range u.vms {
			if user.alive && slices.Contains(user.ids, m.ID) {
				i.Users = append(i.Users, user.id)
			}
		}
		items = append(items, i)
	}
	return items, nil
}

package inventory

import (
	"context"
	"errors"
	"slices"

	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
)

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

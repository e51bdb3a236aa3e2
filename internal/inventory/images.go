package inventory

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
)

func (v *Inventory) images(_ []store.Entry, u *usersTable) ([]Item, error) {
	list, err := v.Images.List()
	if err != nil {
		return nil, err
	}
	layers := layersOf(list)
	newest := map[string]time.Time{}
	for _, e := range list {
		if e.Created.After(newest[e.Reference]) {
			newest[e.Reference] = e.Created
		}
	}
	pins := u.pinning()
	var items []Item
	for _, e := range list {
		i := Item{Kind: Image, ID: e.Digest, Name: imageName(e), State: "cached", Path: e.Dir, extra: layers.own(e), lastUsed: e.LastUsed}
		i.Users, i.Active = pins.of(e.Digest, e.Dir)
		switch {
		case e.Err != nil:
			i.State = "broken"
		case len(e.Names) > 0:
			i.Kept = true
		default: // an archive has no names to give: the last that it held is kept
			i.Kept = image.IsFile(e.Reference) && e.Created.Equal(newest[e.Reference])
		}
		if e.Err == nil && !i.Kept {
			i.State = "outdated"
		}
		i.remove = func(context.Context) (bool, error) {
			removed, _, err := v.RemoveImage(e)
			return removed, err
		}
		items = append(items, i)
	}
	if n := layers.shared(); n > 0 {
		items = append(items, Item{Kind: Layers, ID: layersID, State: "cached", extra: n})
	}
	rest, err := v.Images.Unreferenced()
	if err != nil || len(rest.Files) == 0 {
		return items, err
	}
	return append(items, Item{
		Kind: Leftover, ID: layersID, State: "of no image, or not fetched whole", extra: rest.Size,
		remove: func(context.Context) (bool, error) { return v.Images.Collect(true) },
	}), nil
}

// Shrink removes images that nobody uses, the least recently used first, until
// the cache of images takes at most limit bytes. It returns what it removed and
// what the cache takes then, which is more if that much is in use.
func (v *Inventory) Shrink(ctx context.Context, limit int64) (removed []Item, left int64, err error) {
	tried := map[string]bool{}
	for {
		items, size, err := v.imageCosts()
		if err != nil || size <= limit {
			return removed, size, err
		}
		if err := ctx.Err(); err != nil {
			return removed, size, err
		}
		i := slices.IndexFunc(items, func(i Item) bool { return i.remove != nil && len(i.Users) == 0 && !tried[i.ID] })
		if i < 0 {
			return removed, size, nil
		}
		tried[items[i].ID] = true
		gone, err := items[i].Remove(ctx)
		if err != nil {
			return removed, size, err
		}
		if gone {
			removed = append(removed, items[i])
		}
	}
}

// imageCosts returns all that images take, in the order in which it can go, and
// the sum.
func (v *Inventory) imageCosts() ([]Item, int64, error) {
	entries, err := v.Store.List()
	if err != nil {
		return nil, 0, err
	}
	users, err := v.usersOf(entries)
	if err != nil {
		return nil, 0, err
	}
	items, err := v.images(entries, users)
	if err != nil {
		return nil, 0, err
	}
	if err := measure(items); err != nil {
		return nil, 0, err
	}
	var sum int64
	for _, i := range items {
		sum += i.Size
	}
	slices.SortStableFunc(items, func(a, b Item) int { return a.lastUsed.Compare(b.lastUsed) })
	return items, sum, nil
}

// layersID is the id of what is told of layers together.
const layersID = "layers"

// imageName is what people call an image: a name it has, else what it was made
// of.
func imageName(e image.Entry) string {
	if len(e.Names) > 0 {
		return e.Names[0].Name
	}
	return e.Reference
}

// layerTable counts which layers are whose.
type layerTable map[string]layerUse

type layerUse struct {
	images int
	size   int64
}

func layersOf(list []image.Entry) layerTable {
	t := layerTable{}
	for _, e := range list {
		for _, l := range distinct(e.Layers) {
			t[l.Digest] = layerUse{images: t[l.Digest].images + 1, size: l.Size}
		}
	}
	return t
}

func distinct(layers []image.Layer) []image.Layer {
	out := slices.Clone(layers)
	slices.SortFunc(out, func(a, b image.Layer) int { return strings.Compare(a.Digest, b.Digest) })
	return slices.CompactFunc(out, func(a, b image.Layer) bool { return a.Digest == b.Digest })
}

// own is the size of the layers that no other image has.
func (t layerTable) own(e image.Entry) int64 {
	var n int64
	for _, l := range distinct(e.Layers) {
		if t[l.Digest].images == 1 {
			n += l.Size
		}
	}
	return n
}

// shared is the size of the layers that several images have.
func (t layerTable) shared() int64 {
	var n int64
	for _, use := range t {
		if use.images > 1 {
			n += use.size
		}
	}
	return n
}

// UnusedImages returns the images that nobody uses, and layers of no image.
// Without all, images that have a name are left out.
func UnusedImages(items []Item, all bool) []Item {
	var out []Item
	for _, i := range items {
		ours := i.Kind == Image || i.Kind == Leftover && i.ID == layersID
		if ours && i.mayGo(all) && len(i.Users) == 0 {
			out = append(out, i)
		}
	}
	return out
}

// RemoveImage removes an image, and with it the guests of it that fcvm has kept
// by itself, unless somebody uses it: then it returns the ids of those who do, or
// none if it is only about to be used.
func (v *Inventory) RemoveImage(e image.Entry) (removed bool, users []string, err error) {
	removed, err = v.Images.Remove(e.Digest, func() (bool, error) {
		users, err = v.freeImage(e)
		return err != nil || len(users) > 0, err
	})
	return removed, users, err
}

// freeImage returns who uses an image. If nobody does, it drops the snapshots that
// are a cache: a disk that is made again is not the one that such a guest has seen.
func (v *Inventory) freeImage(e image.Entry) (users []string, err error) {
	u, err := v.users()
	if err != nil {
		return nil, err
	}
	if users, _ = u.pinning().of(e.Digest, e.Dir); len(users) > 0 {
		return users, nil
	}
	spares, _ := u.of(e.Digest, e.Dir)
	for _, id := range spares {
		err := v.Snapshots.Remove(id)
		switch {
		case errors.Is(err, snapshot.ErrInUse):
			users = append(users, id)
		case err != nil:
			return nil, err
		}
	}
	return users, nil
}

// ImageUsers returns the ids of those without whom an image could be removed.
func (v *Inventory) ImageUsers(e image.Entry) ([]string, error) {
	u, err := v.users()
	if err != nil {
		return nil, err
	}
	ids, _ := u.pinning().of(e.Digest, e.Dir)
	return ids, nil
}

// pinning are the users that keep an image: all but the snapshots that go with it.
func (u *usersTable) pinning() *usersTable {
	vms := slices.DeleteFunc(slices.Clone(u.vms), func(v user) bool { return v.spare })
	return &usersTable{vms: vms, anyAlive: u.anyAlive}
}

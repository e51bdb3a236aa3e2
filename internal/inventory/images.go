package inventory

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/image"
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
	var items []Item
	for _, e := range list {
		i := Item{Kind: Image, ID: e.Digest, Name: imageName(e), State: "cached", Path: e.Dir, extra: layers.own(e)}
		i.Users, i.Active = u.of(e.Digest, e.Dir)
		switch {
		case e.Err != nil:
			i.State = "broken"
		case image.IsFile(e.Reference):
			i.Kept = e.Created.Equal(newest[e.Reference])
		default:
			i.Kept = len(e.Names) > 0
		}
		if e.Err == nil && !i.Kept {
			i.State = "outdated"
		}
		i.remove = func(context.Context) (bool, error) {
			return v.Images.Remove(e.Digest, func() (bool, error) { return v.used(e.Digest, e.Dir) })
		}
		items = append(items, i)
	}
	if n := layers.shared(); n > 0 {
		items = append(items, Item{Kind: Layers, ID: "layers", State: "cached", extra: n})
	}
	rest, err := v.Images.Unreferenced()
	if err != nil || len(rest.Files) == 0 {
		return items, err
	}
	return append(items, Item{
		Kind: Leftover, ID: "layers", State: "of no image, or not fetched whole", extra: rest.Size,
		remove: func(context.Context) (bool, error) { return v.Images.Collect(true) },
	}), nil
}

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

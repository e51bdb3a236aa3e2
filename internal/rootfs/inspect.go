package rootfs

import (
	"context"
	"path"
	"strings"
)

// Missing returns which of the names, relative to the root, are no regular
// files in the tree that the layers make. Symbolic links are followed inside
// of it.
func Missing(ctx context.Context, layers []Layer, names []string, o Options) ([]string, error) {
	t, err := merge(ctx, layers, o)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, name := range names {
		if !t.hasFile(name) {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// hasFile reports whether the name leads to a regular file.
func (t *tree) hasFile(name string) bool {
	for range maxHops {
		dirName, base := path.Split(name)
		dir, err := t.dir(dirName, false)
		if err != nil || dir == nil {
			return false
		}
		n := dir.children[base].node
		switch {
		case n == nil || n.isDir():
			return false
		case !n.isSymlink():
			return true
		case strings.HasPrefix(n.hdr.Linkname, "/"):
			name = n.hdr.Linkname
		default:
			name = dirName + n.hdr.Linkname // the kernel resolves ".." in it after links
		}
	}
	return false
}

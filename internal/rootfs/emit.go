package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// emitter writes the final tree as one archive: directories first, so that
// each has its own metadata before something is put into it; then everything
// without content; then the files, layer by layer, as they are read.
type emitter struct {
	ctx    context.Context
	w      *tar.Writer
	prefix string
}

func (e *emitter) all(t *tree, layers []Layer, o Options) error {
	if err := e.write(t.root.hdr, e.prefix+"/", tar.TypeDir); err != nil {
		return err
	}
	pending := make([]map[int]*node, len(layers)) // content to come, by layer and entry
	var rest []*node
	err := t.walk(func(name string, n *node) error {
		if n.isDir() {
			return e.write(n.hdr, path.Join(e.prefix, name)+"/", tar.TypeDir)
		}
		if n.links = append(n.links, name); len(n.links) > 1 {
			return nil
		}
		if !n.hasContent() {
			rest = append(rest, n)
			return nil
		}
		if pending[n.layer] == nil {
			pending[n.layer] = map[int]*node{}
		}
		pending[n.layer][n.seq] = n
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range rest {
		if err := e.node(n, nil); err != nil {
			return err
		}
	}
	for i, l := range layers {
		if len(pending[i]) == 0 {
			continue
		}
		if err := e.layer(l, pending[i], o); err != nil {
			return fmt.Errorf("read layer %s: %w", l.Name, err)
		}
	}
	return nil
}

// layer reads a layer again, for the files that are left in the tree.
func (e *emitter) layer(l Layer, pending map[int]*node, o Options) error {
	r, err := openLayer(e.ctx, Layer{Name: l.Name, Open: l.Open}, o.Progress)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	tr := tar.NewReader(r)
	for seq := 0; len(pending) > 0; seq++ {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: it has changed since it was checked", ErrCorrupt)
		}
		if err != nil {
			return corrupt(err)
		}
		n, ok := pending[seq]
		if !ok {
			continue
		}
		delete(pending, seq)
		if err := e.node(n, tr); err != nil {
			return err
		}
	}
	return nil
}

// node writes a file under its first name, then its other names as links.
func (e *emitter) node(n *node, content io.Reader) error {
	first := path.Join(e.prefix, n.links[0])
	if err := e.write(n.hdr, first, n.hdr.Typeflag); err != nil {
		return err
	}
	if content != nil {
		if _, err := io.CopyN(e.w, content, n.hdr.Size); err != nil {
			return corrupt(err)
		}
	}
	for _, name := range n.links[1:] {
		h := &tar.Header{Typeflag: tar.TypeLink, Name: path.Join(e.prefix, name), Linkname: first, Format: tar.FormatPAX}
		if err := e.w.WriteHeader(h); err != nil {
			return fmt.Errorf("write %q: %w", name, err)
		}
	}
	return nil
}

// write writes an entry's header with what the converter keeps of it: owner,
// mode, times, extended attributes, link and device numbers.
func (e *emitter) write(h *tar.Header, name string, typ byte) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	out := &tar.Header{
		Typeflag: typ, Name: name, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, AccessTime: h.ModTime, ChangeTime: h.ModTime,
		Devmajor: h.Devmajor, Devminor: h.Devminor, Format: tar.FormatPAX,
	}
	switch typ {
	case tar.TypeSymlink:
		out.Linkname = h.Linkname
	case tar.TypeReg:
		out.Size = h.Size
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, xattrPrefix) {
			if out.PAXRecords == nil {
				out.PAXRecords = map[string]string{}
			}
			out.PAXRecords[k] = v
		}
	}
	if err := e.w.WriteHeader(out); err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	return nil
}

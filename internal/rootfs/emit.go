package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
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
			if n.subdirs() >= maxLinks-2 {
				return fmt.Errorf("%w: directory %q has over %d subdirectories", ErrTooLarge, name, maxLinks-2)
			}
			return e.write(n.hdr, path.Join(e.prefix, name)+"/", tar.TypeDir)
		}
		if n.links = append(n.links, name); len(n.links) > maxLinks {
			return fmt.Errorf("%w: %q has over %d hard links", ErrTooLarge, n.links[0], maxLinks)
		} else if len(n.links) > 1 {
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
		got, err := io.CopyN(e.w, contentReader{e.ctx, content}, n.hdr.Size)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %q ends after %d of %d bytes", ErrCorrupt, n.links[0], got, n.hdr.Size)
		}
		if err != nil {
			return err
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

// write writes an entry with what sanitize left of its header.
func (e *emitter) write(h *tar.Header, name string, typ byte) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	out := *h
	out.Typeflag, out.Name = typ, name
	out.AccessTime, out.ChangeTime = h.ModTime, h.ModTime
	if err := e.w.WriteHeader(&out); err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	return nil
}

// contentReader tells a reader's error from a writer's, and ends a long file
// that is one hole when the context does.
type contentReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contentReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = corrupt(err)
	}
	return n, err
}

package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/fcvm/fcvm/internal/treecopy"
)

// streamSlack is what an archive may have above Limits.Rootfs.Bytes: headers
// and padding.
const streamSlack = 1 << 30

// past is a deadline that ends a read at once.
var past = time.Unix(1, 0)

// ImportOptions for Import.
type ImportOptions struct {
	LoadOptions
	Name    string   // to give the image; empty: none
	Message string   // for its history
	Changes []string // instructions as in a Dockerfile, see parseChanges
}

// Import makes an image of a root file system: an archive, plain or compressed
// with gzip, zstd, xz or bzip2, that in is, or that comes out of it. An archive
// that holds an image is loaded, as Load does.
func (s *Store) Import(ctx context.Context, in *os.File, source string, o ImportOptions) (Loaded, error) {
	f, err := s.seekable(ctx, in)
	if err != nil {
		return Loaded{}, fmt.Errorf("import image: %w", s.diskError(err))
	}
	return s.importFile(ctx, f, source, o)
}

// ImportDir makes an image of a directory; one that is an OCI layout is loaded.
func (s *Store) ImportDir(ctx context.Context, dir string, o ImportOptions) (Loaded, error) {
	if isLayout(dir) {
		return s.importLoaded(ctx, o, func() (files, error) { return openDir(dir) })
	}
	src, err := treecopy.Open(treecopy.Local{}, strings.TrimRight(dir, "/")+"/.", treecopy.PackOptions{Xattrs: true})
	if err != nil {
		return Loaded{}, fmt.Errorf("import image: %w", err)
	}
	defer func() { _ = src.Close() }()
	pr, pw := io.Pipe()
	go func() { _ = pw.CloseWithError(src.Pack(pw)) }()
	f, err := spool(ctx, pr, s.work(), s.limits().Rootfs.Bytes+streamSlack)
	_ = pr.CloseWithError(errors.New("nobody reads it any more"))
	if err != nil {
		return Loaded{}, fmt.Errorf("import %s: %w", dir, s.diskError(err))
	}
	defer func() { _ = f.Close() }()
	return s.importRoot(ctx, f, dir, o)
}

// importFile takes an open archive, which it closes.
func (s *Store) importFile(ctx context.Context, f *os.File, source string, o ImportOptions) (Loaded, error) {
	defer func() { _ = f.Close() }()
	plain, err := uncompress(ctx, f, s.work(), s.limits().Rootfs.Bytes+streamSlack)
	if err != nil {
		return Loaded{}, fmt.Errorf("import %s: %w", source, s.diskError(err))
	}
	if plain != nil {
		defer func() { _ = plain.Close() }()
		f = plain
	}
	if fsys := s.asImage(ctx, f); fsys != nil {
		return s.importLoaded(ctx, o, func() (files, error) { return fsys, nil })
	}
	return s.importRoot(ctx, f, source, o)
}

// asImage returns the parts of an archive that holds an image, nil if it does
// not.
func (s *Store) asImage(ctx context.Context, f *os.File) files {
	own, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil
	}
	fsys, err := indexTar(ctx, own, s.work(), s.limits().Rootfs.Bytes)
	if err != nil {
		return nil // what is wrong with it is told when it is read as a root
	}
	if !isImageArchive(fsys, s.limits()) {
		fsys.close()
		return nil
	}
	return fsys
}

func (s *Store) importLoaded(ctx context.Context, o ImportOptions, open func() (files, error)) (Loaded, error) {
	if len(o.Changes) > 0 || o.Message != "" {
		return Loaded{}, fmt.Errorf("%w: --change and --message are for root file systems: this is an image", ErrReference)
	}
	as, err := importName(o.Name)
	if err != nil {
		return Loaded{}, err
	}
	fsys, err := open()
	if err != nil {
		return Loaded{}, fmt.Errorf("import image: %w", err)
	}
	list, err := s.loadFiles(ctx, fsys, o.LoadOptions, as)
	if err != nil || len(list) == 0 {
		return Loaded{}, err
	}
	all := Loaded{Digest: list[0].Digest}
	for _, l := range list {
		all.Names = append(all.Names, l.Names...)
	}
	return all, nil
}

func importName(text string) (name.Reference, error) {
	if text == "" {
		return nil, nil
	}
	r, err := parseReference(text)
	if err != nil {
		return nil, err
	}
	if r.kind != kindRegistry || strings.Contains(text, "@") {
		return nil, fmt.Errorf("%w: %q: a name has the form NAME[:TAG] or HOST/NAME[:TAG]", ErrReference, text)
	}
	return r.name, nil
}

// importRoot makes an image of one layer, the plain archive f.
func (s *Store) importRoot(ctx context.Context, f *os.File, source string, o ImportOptions) (Loaded, error) {
	as, err := importName(o.Name)
	if err != nil {
		return Loaded{}, err
	}
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return Loaded{}, err
	}
	config, err := parseChanges(o.Changes)
	if err != nil {
		return Loaded{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return Loaded{}, err
	}
	whole := func() io.Reader { return io.NewSectionReader(f, 0, st.Size()) }
	if _, err := tar.NewReader(whole()).Next(); err != nil {
		return Loaded{}, fmt.Errorf("import %s: %w: it is no tar archive, or an empty one", source, ErrCorrupt)
	}
	sum := sha256.New()
	if _, err := io.Copy(ctxWriter{ctx, sum}, whole()); err != nil {
		return Loaded{}, err
	}
	digest := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	raw, err := importConfig(config, want, digest, source, o.Message)
	if err != nil {
		return Loaded{}, err
	}
	c := &content{
		id: digestOf(raw), close: func() {},
		config: func(context.Context) ([]byte, error) { return raw, nil },
		layers: []blob{{
			digest: digest, size: st.Size(), mediaType: string(types.OCIUncompressedLayer), local: true,
			open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(whole()), nil },
		}},
	}
	m := member{c: c}
	if as != nil {
		m.names = append(m.names, as)
	}
	return s.loadMember(ctx, m, want, o.LoadOptions)
}

// importConfig is the configuration of an image of one layer.
func importConfig(config v1.Config, p platform, diffID, source, message string) ([]byte, error) {
	h, err := v1.NewHash(diffID)
	if err != nil {
		return nil, err
	}
	if message == "" {
		message = "Imported from " + filepath.Base(source)
	}
	now := v1.Time{Time: time.Now().UTC()}
	return json.Marshal(v1.ConfigFile{
		OS: p.os, Architecture: p.arch, Variant: p.variant, Created: now, Config: config,
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{h}},
		History: []v1.History{{Created: now, CreatedBy: "fcvm image import", Comment: message}},
	})
}

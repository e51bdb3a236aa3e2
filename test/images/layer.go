package images

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of all that the recipes add: the same recipe gives the
// same digest.
var epoch = time.Unix(1_000_000_000, 0)

// layerWriter writes one layer's archive to a file.
type layerWriter struct {
	f    *os.File
	w    *tar.Writer
	dirs map[string]bool
}

func newLayer(path string) (*layerWriter, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &layerWriter{f: f, w: tar.NewWriter(f), dirs: map[string]bool{}}, nil
}

// add writes an entry; a directory that is there is left as it is.
func (l *layerWriter) add(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		if l.dirs[h.Name] {
			return nil
		}
		l.dirs[h.Name] = true
		h.Name += "/"
	}
	h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
	if err := l.w.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	_, err := io.CopyN(l.w, content, h.Size)
	return err
}

// item is a file that a recipe adds. A name that ends in a slash is a
// directory's.
type item struct {
	name    string
	mode    int64 // 0: 0755 of a directory, 0644 of a file
	uid     int   // and group
	content string
	link    string // the target of a symbolic link
}

func (l *layerWriter) addItem(i item) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(i.name), Mode: i.mode, Uid: i.uid, Gid: i.uid, ModTime: epoch, Size: int64(len(i.content))}
	mode := int64(0o644)
	switch {
	case i.name[len(i.name)-1] == '/':
		h.Typeflag, mode = tar.TypeDir, 0o755
	case i.link != "":
		h.Typeflag, h.Linkname, mode = tar.TypeSymlink, i.link, 0o777
	}
	if h.Mode == 0 {
		h.Mode = mode
	}
	return l.add(h, stringReader(i.content))
}

// finish returns the layer, compressed with gzip.
func (l *layerWriter) finish() (v1.Layer, error) {
	err := l.w.Close()
	if cerr := l.f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(l.f.Name(), tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzipLevel), tarball.WithCompressedCaching)
}

// tarTree writes a directory's files as an archive.
func tarTree(dir, out string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		return tarFile(w, p, rel, d)
	})
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func tarFile(w *tar.Writer, p, name string, d fs.DirEntry) error {
	if d.IsDir() {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: epoch})
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: epoch, Size: st.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

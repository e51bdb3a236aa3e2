// Package matrix has images whose layers hold all that layers can. Its tests
// compare the disks that fcvm makes of them and of others, entry by entry, with
// what umoci and buildah unpack.
package matrix

import (
	"archive/tar"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// when is the time of all entries, with a fraction of a second.
var when = time.Unix(1_600_000_000, 123_456_789)

// writer writes one layer's archive.
type writer struct {
	*tar.Writer
	err error
}

func (w *writer) put(h tar.Header, content io.Reader) {
	if w.err != nil {
		return
	}
	if h.ModTime.IsZero() {
		h.ModTime = when
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	h.Format = tar.FormatPAX
	if w.err = w.WriteHeader(&h); w.err == nil && content != nil {
		_, w.err = io.CopyN(w, content, h.Size)
	}
}

func (w *writer) dir(name string) {
	w.put(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
}

func (w *writer) file(name, content string) {
	w.put(tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content))}, strings.NewReader(content))
}

func (w *writer) link(name, target string) {
	w.put(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, nil)
}

func (w *writer) whiteout(name string) { w.file(name, "") }

// Fill writes one layer.
type Fill func(*writer)

// Image is an image by its layers.
type Image struct {
	Name   string
	Layers []Fill
	Large  bool // takes a while
}

// Images are those whose layers hold all that layers can.
func Images() []Image {
	return []Image{
		{"special", special(), false},
		{"many layers", manyLayers(120), false},
		{"100,000 small files", smallFiles(100_000), true},
		{"a file of 2 GiB", bigFile(2 << 30), true},
	}
}

// special is what archives can hold, and what layers do to one another.
func special() []Fill {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep
	return []Fill{
		func(w *writer) {
			w.put(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, nil)
			for _, d := range []string{"bin", "dev", "gone", "opaque", "opaque/below", "replaced", "links", "names", "deep", "deep/er"} {
				w.dir(d)
			}
			w.put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/setuid", Mode: 0o4755, Size: 3}, strings.NewReader("suid"))
			w.put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/capable", Mode: 0o755, Size: 1, PAXRecords: map[string]string{
				"SCHILY.xattr.security.capability": capability,
			}}, strings.NewReader("c"))
			w.put(tar.Header{Typeflag: tar.TypeReg, Name: "attributes", Size: 1, PAXRecords: map[string]string{
				"SCHILY.xattr.user.note": "many\nlines \xff", "SCHILY.xattr.user.other": "2",
			}}, strings.NewReader("a"))
			w.put(tar.Header{Typeflag: tar.TypeReg, Name: "owned", Uid: 123456, Gid: 654321, Mode: 0o640, Size: 1}, strings.NewReader("o"))
			w.put(tar.Header{Typeflag: tar.TypeDir, Name: "sticky/", Uid: 4_000_000, Mode: 0o1777}, nil)
			w.put(tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, nil)
			w.put(tar.Header{Typeflag: tar.TypeBlock, Name: "dev/disk", Mode: 0o660, Gid: 6, Devmajor: 259, Devminor: 300_000}, nil)
			w.put(tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o600}, nil)
			w.put(tar.Header{Typeflag: tar.TypeSymlink, Name: "names/link", Linkname: "/a/b/../c", Mode: 0o777}, nil)
			w.put(tar.Header{Typeflag: tar.TypeSymlink, Name: "names/long link", Linkname: strings.Repeat("0123456789/", 100), Mode: 0o777}, nil)
			w.file("names/ünï\u202ecode \\ 'x'", "u")
			w.file("names/"+strings.Repeat("n", 255), "long")
			w.file("names/empty", "")
			w.file("names/zeros", strings.Repeat("\x00", 100_000)+"end")
			w.file("gone/a", "a")
			w.file("gone/b", "b")
			w.file("opaque/below/hidden", "h")
			w.file("opaque/hidden", "h")
			w.file("replaced/file", "old")
			w.file("links/a", "linked")
			w.link("links/b", "links/a")
			w.file("links/broken off", "x")
			w.link("links/stays", "links/broken off")
			w.file("deep/er/file", "1")
		},
		func(w *writer) {
			w.whiteout("gone/.wh.a")
			w.dir("opaque")
			w.whiteout("opaque/.wh..wh..opq")
			w.file("opaque/seen", "s")
			w.dir("replaced")
			w.file("replaced/file", "new and longer")
			w.link("links/c", "links/a") // across layers
			w.whiteout("links/.wh.broken off")
		},
		func(w *writer) {
			w.whiteout(".wh.gone")
			w.file("opaque/later", "l")
			w.link("links/d", "links/c")
			w.file("links/stays", "is another file now")
			w.put(tar.Header{Typeflag: tar.TypeReg, Name: "owned", Uid: 7, Gid: 8, Mode: 0o600, Size: 3}, strings.NewReader("own"))
		},
	}
}

// manyLayers changes, removes and brings back files in each of n layers.
func manyLayers(n int) []Fill {
	out := []Fill{func(w *writer) {
		w.put(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, nil)
		w.dir("d")
	}}
	for i := 1; i < n; i++ {
		out = append(out, func(w *writer) {
			w.file(fmt.Sprintf("d/file%d", i), fmt.Sprint(i))
			w.file("d/last", fmt.Sprint("layer ", i))
			if i > 2 && i%3 == 0 {
				w.whiteout(fmt.Sprintf("d/.wh.file%d", i-1))
			}
			if i > 2 && i%5 == 0 {
				w.link(fmt.Sprintf("d/link%d", i), "d/file1")
			}
		})
	}
	return out
}

// smallFiles is n of them, a thousand in each directory.
func smallFiles(n int) []Fill {
	return []Fill{func(w *writer) {
		w.put(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, nil)
		for i := range n {
			if i%1000 == 0 {
				w.dir(fmt.Sprintf("d%d", i/1000))
			}
			w.file(fmt.Sprintf("d%d/f%d", i/1000, i), strings.Repeat(fmt.Sprint(i), i%200))
		}
	}}
}

// bigFile is one of n bytes, no two blocks of which are alike.
func bigFile(n int64) []Fill {
	return []Fill{func(w *writer) {
		w.put(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, nil)
		w.put(tar.Header{Typeflag: tar.TypeReg, Name: "big", Size: n}, &blocks{})
	}}
}

// blocks is endless content that compresses well, but is not the same twice.
type blocks struct{ n int }

func (b *blocks) Read(p []byte) (int, error) {
	for i := 0; i < len(p); i += 64 {
		copy(p[i:], fmt.Sprintf("%-64d", b.n))
		b.n++
	}
	return len(p), nil
}

// files is a tree like a distribution's: n files of up to 400 kB, half of whose
// content does not compress, in some layers.
func files(layers, n int) []Fill {
	var out []Fill
	r := rand.New(rand.NewSource(1)) //nolint:gosec // the same each time
	for l := range layers {
		out = append(out, func(w *writer) {
			if l == 0 {
				w.put(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, nil)
			}
			w.dir(fmt.Sprintf("l%d", l))
			for i := range n / layers {
				b := make([]byte, r.Intn(400_000))
				for j := range b {
					if b[j] = byte(j); j/64%2 == 0 {
						b[j] = byte(r.Intn(256))
					}
				}
				w.file(fmt.Sprintf("l%d/f%d", l, i), string(b))
			}
		})
	}
	return out
}

// WriteLayout makes an image of layers and writes it as an OCI layout, with one
// image named "x".
func WriteLayout(dir string, fills []Fill, c compression.Compression) error {
	tmp := dir + ".layers"
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i, f := range fills {
		l, err := writeLayer(filepath.Join(tmp, fmt.Sprintf("%d.tar", i)), f, c)
		if err != nil {
			return err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Created = "linux", runtime.GOARCH, v1.Time{Time: when}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "x"}))
}

func writeLayer(path string, f Fill, c compression.Compression) (v1.Layer, error) {
	out, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := &writer{Writer: tar.NewWriter(out)}
	f(w)
	for _, err := range []error{w.err, w.Close(), out.Close()} {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	media := map[compression.Compression]types.MediaType{
		compression.GZip: types.OCILayer, compression.ZStd: types.OCILayerZStd,
	}[c]
	return tarball.LayerFromFile(path, tarball.WithCompression(c), tarball.WithMediaType(media), tarball.WithCompressionLevel(1))
}

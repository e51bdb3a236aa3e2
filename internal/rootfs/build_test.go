package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var testTime = time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)

// entry is one member of a test's archive.
type entry struct {
	tar.Header
	content string
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name, content string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content: content}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func owned(e entry, uid, gid int) entry {
	e.Uid, e.Gid = uid, gid
	return e
}

func withXattr(e entry, name, value string) entry {
	records := map[string]string{xattrPrefix + name: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// archive makes a tar of the entries.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Format, h.Size = tar.FormatPAX, int64(len(e.content))
		if h.ModTime.IsZero() {
			h.ModTime = testTime
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("entry %q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func diffID(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func layerOf(b []byte, diffID string) Layer {
	return Layer{Name: "test", DiffID: diffID, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// layer is a checked, uncompressed layer of the entries.
func layer(t *testing.T, entries ...entry) Layer {
	t.Helper()
	b := archive(t, entries...)
	return layerOf(b, diffID(b))
}

// tryBuild makes a disk and returns its path.
func tryBuild(t *testing.T, o Options, layers ...Layer) (string, Stats, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	stats, err := BuildImage(context.Background(), layers, f, o)
	return f.Name(), stats, err
}

// build makes a disk, has e2fsck check it, and returns its path.
func build(t *testing.T, o Options, layers ...Layer) string {
	t.Helper()
	disk, _, err := tryBuild(t, o, layers...)
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, disk)
	return disk
}

func TestBuildImageKinds(t *testing.T) {
	long := ""
	for range 40 {
		long += "component-of-a-long-name/"
	}
	target := string(bytes.Repeat([]byte("0123456789/"), 300)) // a slow link
	disk := build(t, Options{Prefix: "rootfs"}, layer(t,
		dir("./", 0o755),
		owned(dir("etc", 0o750), 12, 34),
		owned(file("etc/passwd", "root:x:0:0\n", 0o644), 70000, 80000),
		file("bin/su", "#!", 0o4755),
		file("bin/wall", "#!", 0o2755),
		dir("tmp", 0o1777),
		file("empty", "", 0o600),
		symlink("fast", "etc/passwd"),
		symlink("slow", target),
		symlink("sixty", string(bytes.Repeat([]byte("x"), 60))),
		hardlink("etc/passwd-", "etc/passwd"),
		hardlink("fast2", "fast"),
		entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/nvme", Mode: 0o660, Devmajor: 259, Devminor: 70000}},
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "run/initctl", Mode: 0o600}},
		file(long+"file", "deep", 0o644),
		file("ünï\xffcode \"quoted\"", "odd name", 0o644),
		file(string(bytes.Repeat([]byte("n"), 255)), "longest name", 0o644),
	))
	got := readTree(t, disk, "rootfs")
	want := tree4{
		"":                                     {typ: "directory", mode: 0o755},
		"etc":                                  {typ: "directory", mode: 0o750, uid: 12, gid: 34},
		"etc/passwd":                           {typ: "regular", mode: 0o644, uid: 70000, gid: 80000, content: "root:x:0:0\n", links: 2},
		"etc/passwd-":                          {typ: "regular", mode: 0o644, uid: 70000, gid: 80000, content: "root:x:0:0\n", links: 2},
		"bin":                                  {typ: "directory", mode: 0o755, epoch: true},
		"bin/su":                               {typ: "regular", mode: 0o4755, content: "#!"},
		"bin/wall":                             {typ: "regular", mode: 0o2755, content: "#!"},
		"tmp":                                  {typ: "directory", mode: 0o1777},
		"empty":                                {typ: "regular", mode: 0o600},
		"fast":                                 {typ: "symlink", mode: 0o777, content: "etc/passwd", links: 2},
		"fast2":                                {typ: "symlink", mode: 0o777, content: "etc/passwd", links: 2},
		"slow":                                 {typ: "symlink", mode: 0o777, content: target},
		"sixty":                                {typ: "symlink", mode: 0o777, content: string(bytes.Repeat([]byte("x"), 60))},
		"dev":                                  {typ: "directory", mode: 0o755, epoch: true},
		"dev/null":                             {typ: "character special", mode: 0o666, dev: "1:3"},
		"dev/nvme":                             {typ: "block special", mode: 0o660, dev: "259:70000"},
		"run":                                  {typ: "directory", mode: 0o755, epoch: true},
		"run/initctl":                          {typ: "FIFO", mode: 0o600},
		long + "file":                          {typ: "regular", mode: 0o644, content: "deep"},
		"ünï\xffcode \"quoted\"":               {typ: "regular", mode: 0o644, content: "odd name"},
		string(bytes.Repeat([]byte("n"), 255)): {typ: "regular", mode: 0o644, content: "longest name"},
	}
	for p := filepath.Dir(long + "file"); p != "."; p = filepath.Dir(p) {
		want[p] = node4{typ: "directory", mode: 0o755, epoch: true}
	}
	compareTrees(t, want, got)
}

func TestBuildImageLayers(t *testing.T) {
	base := []entry{
		dir("a", 0o755), file("a/keep", "1", 0o644), file("a/gone", "1", 0o644),
		dir("a/sub", 0o755), file("a/sub/x", "1", 0o644),
		dir("o", 0o700), file("o/old", "1", 0o644), dir("o/deep", 0o755), file("o/deep/old", "1", 0o644),
		dir("lib", 0o755), symlink("lib64", "/lib"), symlink("up", "../../lib"),
		file("f", "file", 0o644), dir("d", 0o755), file("d/in", "1", 0o644),
		file("linked", "shared", 0o640),
	}
	tests := []struct {
		name   string
		layers [][]entry
		want   map[string]string // name: content, "/" for a directory, "->" and target for a link
		gone   []string
	}{
		{
			"whiteouts",
			[][]entry{base, {file("a/.wh.gone", "", 0), file(".wh.d", "", 0), file(".wh.nothing", "", 0)}},
			map[string]string{"a/keep": "1", "a/sub/x": "1"},
			[]string{"a/gone", "d", "d/in", "a/.wh.gone", ".wh.d", ".wh.nothing", "nothing"},
		},
		{
			"opaque before and after its own entries",
			[][]entry{base, {file("o/new1", "2", 0o644), file("o/.wh..wh..opq", "", 0), file("o/new2", "2", 0o644), file("o/deep/new", "2", 0o644)}},
			map[string]string{"o/new1": "2", "o/new2": "2", "o/deep/new": "2", "o": "/"},
			[]string{"o/old", "o/deep/old", "o/.wh..wh..opq"},
		},
		{
			"a whiteout hides lower layers only",
			[][]entry{base, {file("d/new", "2", 0o644), file(".wh.d", "", 0)}},
			map[string]string{"d/new": "2"},
			[]string{"d/in"},
		},
		{
			"deleted and made again",
			[][]entry{base, {file(".wh.d", "", 0)}, {file("d", "now a file", 0o644)}},
			map[string]string{"d": "now a file"},
			[]string{"d/in"},
		},
		{
			"types change",
			[][]entry{base, {file("d", "file", 0o644), dir("f", 0o755), file("f/x", "2", 0o644), dir("lib64", 0o755)}},
			map[string]string{"d": "file", "f/x": "2", "lib64": "/"},
			[]string{"d/in"},
		},
		{
			"through links inside of the image",
			[][]entry{base, {file("lib64/so", "2", 0o644), file("up/so2", "2", 0o644)}},
			map[string]string{"lib/so": "2", "lib/so2": "2", "lib64": "->/lib"},
			nil,
		},
		{
			"hard link to a lower layer's file",
			[][]entry{base, {hardlink("link", "linked")}, {file(".wh.linked", "", 0)}},
			map[string]string{"link": "shared"},
			[]string{"linked"},
		},
		{
			"a hard link to a file that its own layer deletes",
			[][]entry{base, {hardlink("link", "linked"), file(".wh.linked", "", 0), hardlink("moved", "a/gone"), file("a/.wh..wh..opq", "", 0)}},
			map[string]string{"link": "shared", "moved": "1", "a": "/"},
			[]string{"linked", "a/gone", "a/keep"},
		},
		{
			"a whiteout of a name that its own layer links",
			[][]entry{base, {hardlink("o/link", "linked"), hardlink("f", "o/link"), file(".wh.f", "", 0), file("o/.wh..wh..opq", "", 0)}},
			map[string]string{"o/link": "shared", "f": "shared", "linked": "shared"},
			[]string{"o/old"},
		},
		{
			"a name of a hard link is replaced",
			[][]entry{base, {hardlink("link", "linked"), file("linked", "new", 0o644)}},
			map[string]string{"link": "shared", "linked": "new"},
			nil,
		},
		{
			"metadata of a directory changes, its content stays",
			[][]entry{base, {dir("a", 0o711)}},
			map[string]string{"a/keep": "1", "a": "/"},
			nil,
		},
		{
			"absolute names",
			[][]entry{base, {dir("/", 0o755), file("//f", "2", 0o644), hardlink("/link", "/linked"), file("/a/.wh.gone", "", 0)}},
			map[string]string{"f": "2", "link": "shared", "a/keep": "1"},
			[]string{"a/gone"},
		},
		{
			"AUFS's own files",
			[][]entry{base, {dir(".wh..wh.plnk", 0o700), file(".wh..wh.aufs", "", 0)}},
			map[string]string{"f": "file"},
			[]string{".wh..wh.plnk", ".wh..wh.aufs"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var layers []Layer
			for _, entries := range tt.layers {
				layers = append(layers, layer(t, entries...))
			}
			got := readTree(t, build(t, Options{Prefix: "rootfs"}, layers...), "rootfs")
			for name, want := range tt.want {
				n, ok := got[name]
				content := n.content
				switch n.typ {
				case "directory":
					content = "/"
				case "symlink":
					content = "->" + content
				}
				if !ok || content != want {
					t.Errorf("%s: got %q (there: %v), want %q", name, content, ok, want)
				}
			}
			for _, name := range tt.gone {
				if _, ok := got[name]; ok {
					t.Errorf("%s is still there", name)
				}
			}
		})
	}
}

func TestBuildImageManyLayers(t *testing.T) {
	var layers []Layer
	want := tree4{"": {typ: "directory", mode: 0o755, epoch: true}}
	for i := range 130 {
		name := "f" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		b := archive(t, file(name, name, 0o644), file("same", name, 0o644))
		data := b
		switch i % 3 {
		case 1:
			data = gzipped(t, b)
		case 2:
			data = zstded(t, b)
		}
		layers = append(layers, layerOf(data, diffID(b)))
		want[name] = node4{typ: "regular", mode: 0o644, content: name}
		want["same"] = node4{typ: "regular", mode: 0o644, content: name}
	}
	compareTrees(t, want, readTree(t, build(t, Options{}, layers...), ""))
}

func TestBuildImageRefuses(t *testing.T) {
	good := archive(t, file("f", "content that is long enough to be cut in the middle", 0o644))
	big := entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "big"}, content: string(make([]byte, 2<<20))}
	var many []entry
	for i := range 300 {
		many = append(many, dir("d"+string(rune('a'+i%26))+string(rune('a'+i/26)), 0o755))
	}
	small := Limits{Bytes: 1 << 20, Entries: 100}
	plain := func(entries ...entry) Layer { return layer(t, entries...) }
	tests := []struct {
		name   string
		want   error
		limits Limits
		layers []Layer
	}{
		{"parent in a name", ErrUnsafe, Limits{}, []Layer{plain(file("a/../../etc/passwd", "x", 0o644))}},
		{"parent in an absolute name", ErrUnsafe, Limits{}, []Layer{plain(file("/../etc/passwd", "x", 0o644))}},
		{"hard link out", ErrUnsafe, Limits{}, []Layer{plain(hardlink("x", "../../etc/shadow"))}},
		{"absolute hard link", ErrUnsafe, Limits{}, []Layer{plain(hardlink("x", "/etc/shadow"))}},
		{"hard link to nothing", ErrCorrupt, Limits{}, []Layer{plain(hardlink("x", "nothing"))}},
		{"hard link to a directory", ErrCorrupt, Limits{}, []Layer{plain(dir("d", 0o755), hardlink("x", "d"))}},
		{"looping links", ErrUnsafe, Limits{}, []Layer{plain(symlink("a", "b"), symlink("b", "a"), file("a/x", "", 0o644))}},
		{"link to itself", ErrUnsafe, Limits{}, []Layer{plain(symlink("a", "a/a"), file("a/x", "", 0o644))}},
		{"below a file", ErrCorrupt, Limits{}, []Layer{plain(file("f", "", 0o644), file("f/x", "", 0o644))}},
		{"bomb of bytes", ErrTooLarge, small, []Layer{plain(big)}},
		{"bomb of bytes over layers", ErrTooLarge, Limits{Bytes: 3 << 20}, []Layer{plain(big), plain(big)}},
		{"bomb in a whiteout", ErrTooLarge, small, []Layer{plain(entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: ".wh.x"}, content: big.content})}},
		{"bomb of entries", ErrTooLarge, small, []Layer{plain(many...)}},
		{"bomb of parents", ErrTooLarge, small, []Layer{plain(dir(string(bytes.Repeat([]byte("d/"), 200)), 0o755))}},
		{"bomb of names", ErrTooLarge, Limits{Strings: 100}, []Layer{plain(many...)}},
		{"bomb behind the end", ErrTooLarge, Limits{}, []Layer{layerOf(gzipped(t, append(bytes.Clone(good), make([]byte, maxTrailer+4096)...)), "")}},
		{"long path", ErrTooLarge, Limits{}, []Layer{plain(dir(string(bytes.Repeat([]byte("d/"), 2100)), 0o755))}},
		{"huge attribute", ErrTooLarge, Limits{}, []Layer{plain(withXattr(file("f", "", 0o644), "user.a", string(make([]byte, 5000))))}},
		{"damaged ACL", ErrCorrupt, Limits{}, []Layer{plain(withXattr(file("f", "", 0o644), "system.posix_acl_access", "12345"))}},
		{"impossible device", ErrCorrupt, Limits{}, []Layer{plain(entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1 << 20}})}},
		{"truncated", ErrCorrupt, Limits{}, []Layer{layerOf(good[:540], "")}},
		{"truncated gzip", ErrCorrupt, Limits{}, []Layer{layerOf(gzipped(t, good)[:60], "")}},
		{"truncated zstd", ErrCorrupt, Limits{}, []Layer{layerOf(zstded(t, good)[:60], "")}},
		{"no archive", ErrCorrupt, Limits{}, []Layer{layerOf(bytes.Repeat([]byte("no archive "), 1000), "")}},
		{"digest mismatch", ErrCorrupt, Limits{}, []Layer{layerOf(good, diffID(good[1:]))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := tryBuild(t, Options{Limits: tt.limits}, tt.layers...)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got error %v, want %v", err, tt.want)
			}
		})
	}
}

// TestBuildImagePruneTwice: many opaque marks must not make the work of each
// other again.
func TestBuildImagePruneTwice(t *testing.T) {
	var entries []entry
	for i := range 2000 {
		entries = append(entries, file("d/"+string(rune('a'+i%26))+string(rune('a'+i/26)), "", 0o644))
	}
	for range 20_000 {
		entries = append(entries, file("d/.wh..wh..opq", "", 0))
	}
	start := time.Now()
	_, stats, err := tryBuild(t, Options{}, layer(t, entries...))
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("%d entries took %s", stats.Entries, d)
	}
}

func TestBuildImageCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	_, err = BuildImage(ctx, []Layer{layer(t, file("f", "x", 0o644))}, f, Options{})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want %v", err, context.Canceled)
	}
}

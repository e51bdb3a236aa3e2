package kmod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// testModule is an ELF object with a .modinfo section of these fields.
func testModule(fields ...string) []byte {
	info := strings.Join(fields, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	le := binary.LittleEndian
	const header, section = 64, 64
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	b = le.AppendUint16(b, 1)  // relocatable
	b = le.AppendUint16(b, 62) // x86_64
	b = le.AppendUint32(b, 1)
	b = append(b, make([]byte, 16)...)
	b = le.AppendUint64(b, uint64(header+len(info)+len(names))) // section headers
	b = append(b, make([]byte, 4)...)
	for _, v := range []uint16{header, 0, 0, section, 3, 2} {
		b = le.AppendUint16(b, v)
	}
	b = append(b, info+names...)
	b = append(b, make([]byte, section)...) // the null section
	for _, s := range []struct {
		name, typ    uint32
		offset, size int
	}{{1, 1, header, len(info)}, {10, 3, header + len(info), len(names)}} {
		b = le.AppendUint32(b, s.name)
		b = le.AppendUint32(b, s.typ)
		b = append(b, make([]byte, 16)...)
		b = le.AppendUint64(b, uint64(s.offset))
		b = le.AppendUint64(b, uint64(s.size))
		b = append(b, make([]byte, 24)...)
	}
	return b
}

func compress(t *testing.T, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func testTree(t *testing.T) fstest.MapFS {
	t.Helper()
	file := func(b []byte) *fstest.MapFile { return &fstest.MapFile{Data: b} }
	return fstest.MapFS{
		"modules.builtin":                        file([]byte("kernel/fs/ext4/ext4.ko\nkernel/lib/crc-itu.ko\n")),
		"modules.dep":                            file([]byte("not read")),
		"kernel/drivers/virtio/virtio.ko":        file(testModule("name=virtio", "depends=")),
		"kernel/drivers/virtio/virtio_ring.ko":   file(testModule("name=virtio_ring", "depends=virtio")),
		"kernel/drivers/virtio/virtio_pci.ko":    file(testModule("license=GPL", "depends=virtio_ring,virtio,crc-itu")),
		"kernel/drivers/block/virtio-blk.ko":     file(testModule("depends=virtio_ring,virtio")),
		"kernel/net/failover.ko.xz":              file(compress(t, testModule("depends="), func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })),
		"kernel/drivers/net/net_failover.ko.zst": file(compress(t, testModule("depends=failover"), func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })),
		"kernel/drivers/net/virtio_net.ko.gz": file(compress(t, testModule("depends=net_failover,virtio"), func(w io.Writer) (io.WriteCloser, error) {
			return gzip.NewWriter(w), nil
		})),
		"kernel/crypto/soft.ko":    file(testModule("depends=", "softdep=pre: virtio failover post: loop_a")),
		"kernel/crypto/lost.ko":    file(testModule("depends=gone")),
		"kernel/loop/loop_a.ko":    file(testModule("depends=loop_b")),
		"kernel/loop/loop_b.ko":    file(testModule("depends=loop_a")),
		"kernel/bad/text.ko":       file([]byte("text")),
		"kernel/bad/noinfo.ko":     file(bytes.ReplaceAll(testModule("depends="), []byte(".modinfo"), []byte(".modXXXX"))),
		"kernel/bad/corrupt.ko.xz": file([]byte("\xfd7zXZ\x00xxxxxxxxxxxxxxxxxxxxx")),
		"kernel/bad/virtio.txt":    file([]byte("no module")),
	}
}

func names(mods []*Module) []string {
	var s []string
	for _, m := range mods {
		s = append(s, m.Name)
	}
	return s
}

func TestResolve(t *testing.T) {
	tree, err := Open(testTree(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		ask, want, missing []string
	}{
		{ask: []string{"virtio"}, want: []string{"virtio"}},
		{ask: []string{"virtio_pci", "virtio_blk"}, want: []string{"virtio", "virtio_ring", "virtio_pci", "virtio_blk"}},
		{ask: []string{"virtio-net", "virtio_net"}, want: []string{"failover", "net_failover", "virtio", "virtio_net"}},
		{ask: []string{"ext4"}},
		{ask: []string{"nowhere", "virtio"}, want: []string{"virtio"}, missing: []string{"nowhere"}},
		{ask: []string{"lost"}, want: []string{"lost"}, missing: []string{"gone"}},
		{ask: []string{"soft"}, want: []string{"virtio", "failover", "soft"}},
	} {
		mods, missing, err := tree.Resolve(tc.ask)
		if err != nil {
			t.Errorf("%v: %v", tc.ask, err)
			continue
		}
		if d := cmp.Diff(tc.want, names(mods)); d != "" {
			t.Errorf("%v: %s", tc.ask, d)
		}
		if !slices.Equal(missing, tc.missing) {
			t.Errorf("%v: missing %v, want %v", tc.ask, missing, tc.missing)
		}
		for _, m := range mods {
			if !bytes.HasPrefix(m.Data, []byte("\x7fELF")) {
				t.Errorf("%s is not decompressed", m.Name)
			}
		}
	}
	if !tree.Builtin("crc_itu") || tree.Builtin("virtio") {
		t.Error("what is built in")
	}
}

func TestResolveRefuses(t *testing.T) {
	tree, err := Open(testTree(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"loop_a", "text", "noinfo"} {
		if _, _, err := tree.Resolve([]string{name}); !errors.Is(err, ErrModule) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := tree.Resolve([]string{"corrupt"}); err == nil {
		t.Error("corrupt: no error")
	}
}

func TestOpenEmpty(t *testing.T) {
	tree, err := Open(fstest.MapFS{})
	if err != nil {
		t.Fatal(err)
	}
	mods, missing, err := tree.Resolve([]string{"virtio"})
	if err != nil || len(mods) != 0 || len(missing) != 1 {
		t.Errorf("%v %v %v", mods, missing, err)
	}
}

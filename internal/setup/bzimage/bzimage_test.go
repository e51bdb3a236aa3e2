package bzimage

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// testKernel is an ELF header for x86_64 with some content after it.
func testKernel() []byte {
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2)  // executable
	b = le.AppendUint16(b, 62) // x86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0x1000000) // entry
	b = append(b, make([]byte, 20)...)
	b = le.AppendUint16(b, 64) // size of this header
	b = append(b, make([]byte, 10)...)
	return append(b, strings.Repeat("vmlinux ", 512)...)
}

// kernelBzip2 is testKernel as bzip2 writes it; Go only reads that.
const kernelBzip2 = "QlpoOTFBWSZTWZ/W+oMACBD9gHKABABAAAABQwQAJwNAoABwUwmmgNMQKkoAR6RslOKyHFGlZ5Nc+qlwBXOLW/AD+AMADwAXAHl5JJJMACvRdyRThQkJ/W+oMA=="

// testImage puts a compressed kernel into a bzImage: a boot sector, setup
// code, then the payload behind the decompressor.
func testImage(payload []byte) []byte {
	const sects, stub = 3, 100
	b := make([]byte, (sects+1)*sector+stub)
	b[offSetupSects] = sects
	copy(b[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[offVersion:], 0x020f)
	binary.LittleEndian.PutUint32(b[offPayload:], stub)
	binary.LittleEndian.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	b = append(b, payload...)
	return append(b, bytes.Repeat([]byte{0xcc}, 1000)...) // more code
}

// withSize appends what the kernel's build appends to all but gzip.
func withSize(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, uint32(len(testKernel())))
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

func TestExtract(t *testing.T) {
	bz, err := base64.StdEncoding.DecodeString(kernelBzip2)
	if err != nil {
		t.Fatal(err)
	}
	payloads := map[string][]byte{
		"gzip":  compress(t, testKernel(), func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"xz":    withSize(compress(t, testKernel(), func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })),
		"lzma":  withSize(compress(t, testKernel(), func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) })),
		"bzip2": withSize(bz),
		"zstd": withSize(compress(t, testKernel(), func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithWindowSize(8<<20))
		})),
		"lz4": withSize(compress(t, testKernel(), func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			return z, z.Apply(lz4.LegacyOption(true))
		})),
	}
	for name, payload := range payloads {
		t.Run(name, func(t *testing.T) {
			image := testImage(payload)
			if !Is(image) {
				t.Fatal("Is does not know it")
			}
			got, err := Extract(image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, testKernel()) {
				t.Errorf("%d bytes came out, not those that went in", len(got))
			}
		})
	}
}

// TestExtractTools uses the programs that a kernel's build uses, with its
// options (scripts/Makefile.lib).
func TestExtractTools(t *testing.T) {
	for name, args := range map[string][]string{
		"xz":    {"--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c"},
		"lzma":  {"-9", "-c"},
		"lz4":   {"-l", "-c"},
		"zstd":  {"-22", "--ultra", "-c", "-q"},
		"bzip2": {"-9", "-c"},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath(name)
			if err != nil {
				t.Skipf("%s is not installed", name)
			}
			cmd := exec.Command(path, args...)
			cmd.Stdin = bytes.NewReader(testKernel())
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Extract(testImage(withSize(out)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, testKernel()) {
				t.Errorf("%d bytes came out, not those that went in", len(got))
			}
		})
	}
}

func TestExtractRefuses(t *testing.T) {
	gz := func(b []byte) []byte {
		return compress(t, b, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
	}
	good := testImage(gz(testKernel()))
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	for name, image := range map[string][]byte{
		"empty":           nil,
		"text":            bytes.Repeat([]byte("text"), 1000),
		"old protocol":    change(func(b []byte) { binary.LittleEndian.PutUint16(b[offVersion:], 0x0207) }),
		"beyond its end":  change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayloadLength:], 1<<31) }),
		"far offset":      change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayload:], 1<<32-1) }),
		"empty payload":   change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayloadLength:], 0) }),
		"unknown":         testImage([]byte("unknown compression")),
		"short":           testImage([]byte("BZh")),
		"truncated":       testImage(gz(testKernel())[:60]),
		"no ELF":          testImage(gz([]byte("text"))),
		"a relocatable":   testImage(gz(append(testKernel()[:16:16], append([]byte{1, 0}, testKernel()[18:]...)...))),
		"corrupt zstd":    testImage([]byte("\x28\xb5\x2f\xfdxxxxxxxxxxxxxxxxxxxx")),
		"corrupt xz":      testImage([]byte("\xfd7zXZ\x00xxxxxxxxxxxxxxxxxxxxxx")),
		"corrupt lz4":     testImage([]byte("\x02\x21\x4c\x18\x04\x00\x00\x00\xff\xff\xff\xff1234")),
		"corrupt lzma":    testImage([]byte("\x5d\x00\x00xxxxxxxxxxxxxxxxxxxxxx")),
		"corrupt bzip2":   testImage([]byte("BZh9xxxxxxxxxxxxxxxxxxxxxxx")),
		"zeros after all": make([]byte, 4096),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Extract(image); !errors.Is(err, ErrFormat) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(testImage([]byte("\x1f\x8b\x08\x00")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := Extract(b); err == nil && len(out) == 0 {
			t.Error("an empty kernel")
		}
	})
}

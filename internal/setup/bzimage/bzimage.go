// Package bzimage takes the ELF kernel out of an x86 bzImage, which is what
// distributions ship and what Firecracker cannot boot. The format is the
// Linux/x86 boot protocol:
// https://docs.kernel.org/arch/x86/boot.html
package bzimage

import (
	"bytes"
	"compress/bzip2"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// MaxKernel bounds the decompressed kernel, bytes.
const MaxKernel = 512 << 20

var (
	// ErrFormat: the input is not a bzImage that holds an ELF kernel.
	ErrFormat = errors.New("not a bzImage with an ELF kernel")
	// ErrTooLarge: the kernel is larger than MaxKernel when decompressed.
	ErrTooLarge = errors.New("kernel is too large")
)

// Offsets in the setup header.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202 // "HdrS"
	offVersion       = 0x206
	offRelease       = 0x20e // where the version is, relative to 0x200
	offPayload       = 0x248 // relative to the protected-mode code, from 2.08 on
	offPayloadLength = 0x24c
	headerEnd        = 0x250
	minVersion       = 0x0208
	sector           = 512
	defaultSects     = 4
)

// Is reports whether b starts like a bzImage.
func Is(b []byte) bool {
	return len(b) >= headerEnd && string(b[offMagic:offMagic+4]) == "HdrS"
}

// Release returns the release that the beginning of a bzImage says it is of:
// the first word of its version, which uname -r shows. Empty: it says none.
func Release(b []byte) string {
	if !Is(b) {
		return ""
	}
	at := int(binary.LittleEndian.Uint16(b[offRelease:]))
	if at == 0 || at+0x200 >= len(b) {
		return ""
	}
	release, _, _ := bytes.Cut(b[at+0x200:], []byte{0})
	release, _, _ = bytes.Cut(release, []byte{' '})
	return string(release)
}

// Extract returns the ELF kernel inside a bzImage.
func Extract(image []byte) ([]byte, error) {
	p, err := payload(image)
	if err != nil {
		return nil, err
	}
	r, name, err := decoder(p)
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, MaxKernel+1))
	if err != nil {
		return nil, fmt.Errorf("%w: decode %s payload: %w", ErrFormat, name, err)
	}
	if len(out) > MaxKernel {
		return nil, fmt.Errorf("%w: over %d MiB", ErrTooLarge, MaxKernel>>20)
	}
	f, err := elf.NewFile(bytes.NewReader(out))
	if err != nil {
		return nil, fmt.Errorf("%w: %s payload: %w", ErrFormat, name, err)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, fmt.Errorf("%w: ELF type is %s", ErrFormat, f.Type)
	}
	return out, nil
}

// payload returns the compressed kernel, with whatever trails it.
func payload(image []byte) ([]byte, error) {
	if !Is(image) {
		return nil, fmt.Errorf("%w: no setup header", ErrFormat)
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < minVersion {
		return nil, fmt.Errorf("%w: boot protocol %d.%02d is older than 2.08", ErrFormat, v>>8, v&0xff)
	}
	sects := int64(image[offSetupSects])
	if sects == 0 {
		sects = defaultSects
	}
	start := (sects+1)*sector + int64(binary.LittleEndian.Uint32(image[offPayload:]))
	end := start + int64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if start >= end || end > int64(len(image)) {
		return nil, fmt.Errorf("%w: payload at %d to %d of %d bytes", ErrFormat, start, end, len(image))
	}
	return image[start:end], nil
}

// sizeTrailer is the uncompressed size that the kernel's build appends to all
// payloads but gzip, which ends with it anyway.
const sizeTrailer = 4

// decoder picks the decompressor by the payload's magic number.
func decoder(p []byte) (io.Reader, string, error) {
	has := func(magic string) bool { return bytes.HasPrefix(p, []byte(magic)) }
	if has("\x1f\x8b") {
		r, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, "", fmt.Errorf("%w: gzip payload: %w", ErrFormat, err)
		}
		r.Multistream(false)
		return r, "gzip", nil
	}
	if len(p) <= sizeTrailer {
		return nil, "", fmt.Errorf("%w: payload of %d bytes", ErrFormat, len(p))
	}
	body := bytes.NewReader(p[:len(p)-sizeTrailer])
	var (
		r    io.Reader
		name string
		err  error
	)
	switch {
	case has("\xfd7zXZ\x00"):
		name = "xz"
		// Kernels use the x86 BCJ filter, which ulikunitz/xz does not know.
		r, err = xz.NewReader(body, xz.DefaultDictMax)
	case has("\x28\xb5\x2f\xfd"):
		name = "zstd"
		// Kernels are compressed with a window of 128 MiB (zstd -22 --ultra).
		var d *zstd.Decoder
		if d, err = zstd.NewReader(body, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1)); err == nil {
			r = d.IOReadCloser()
		}
	case has("\x02\x21\x4c\x18"):
		name, r = "lz4", lz4.NewReader(body)
	case has("BZh"):
		name, r = "bzip2", bzip2.NewReader(body)
	case has("\x5d\x00\x00"):
		name = "lzma"
		r, err = lzma.NewReader(body)
	default:
		return nil, "", fmt.Errorf("%w: unknown compression, magic % x", ErrFormat, p[:min(len(p), 6)])
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %s payload: %w", ErrFormat, name, err)
	}
	return r, name, nil
}

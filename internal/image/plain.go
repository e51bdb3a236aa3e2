package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Decompress returns the plain stream of one that is compressed with gzip,
// bzip2, xz or zstd, which its first bytes say; of any other the stream itself.
// Nothing is read before the first Read.
func Decompress(r io.Reader) io.Reader { return &plainReader{in: r} }

type plainReader struct {
	in, plain io.Reader
}

func (p *plainReader) Read(b []byte) (int, error) {
	if p.plain == nil {
		in := bufio.NewReader(p.in)
		magic, err := in.Peek(6)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		dec, _, err := decompressor(string(magic), in) // it is not ended: somebody may read on
		if err != nil {
			return 0, fmt.Errorf("decompress: %w", err)
		}
		if p.plain = dec; dec == nil {
			p.plain = in
		}
	}
	return p.plain.Read(b)
}

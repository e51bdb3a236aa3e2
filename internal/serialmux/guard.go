package serialmux

import (
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
)

// errIntruder: the guest asks for something that only the host may.
var errIntruder = errors.New("the guest opens streams or pings")

// The header of a yamux frame: version and type, a byte each, then big-endian
// flags (2 bytes), stream and length (4 bytes each).
// https://github.com/hashicorp/yamux/blob/master/spec.md
const (
	headerSize   = 12
	offsetType   = 1
	offsetFlags  = 2
	offsetLength = 8

	typeData = 0
	flagSYN  = 1
)

// guard is the host's view of the port. It refuses what yamux would spend
// memory on for as long as the guest likes: a stream that the guest opens,
// which nobody accepts, and a ping, which gets a goroutine for its answer.
type guard struct {
	io.ReadWriteCloser
	header [headerSize]byte
	have   int    // bytes of header
	skip   uint32 // bytes of payload to come

	answered atomic.Bool // data of some connection has come
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.ReadWriteCloser.Read(p)
	if !g.look(p[:n]) {
		return 0, errIntruder
	}
	return n, err
}

// look follows the frames and reports whether all of them may pass.
func (g *guard) look(p []byte) bool {
	for len(p) > 0 {
		if g.skip > 0 {
			n := min(uint64(g.skip), uint64(len(p)))
			g.skip -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < headerSize {
			return true
		}
		g.have = 0
		if binary.BigEndian.Uint16(g.header[offsetFlags:])&flagSYN != 0 {
			return false
		}
		if g.header[offsetType] == typeData {
			g.skip = binary.BigEndian.Uint32(g.header[offsetLength:])
			if g.skip > 0 {
				g.answered.Store(true)
			}
		}
	}
	return true
}

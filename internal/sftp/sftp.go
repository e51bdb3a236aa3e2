// Package sftp is the wire format of the SSH File Transfer Protocol, version 3,
// with the extensions of OpenSSH's that sshfs uses, and a Relay that carries a
// client's one connection over many of a server's.
//
//	https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02
//	https://github.com/openssh/openssh-portable/blob/master/PROTOCOL
//
// It is format only: what a request does to files is package share's. Both
// sides of the agent channel use it, so it imports the standard library alone.
//
// github.com/pkg/sftp was weighed: its request server knows a file that is open
// by its path only, so that fstat, ftruncate and fsync of a file that was renamed
// or unlinked reach the wrong file or none; it has no fsync; and its codec is
// internal to it.
package sftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Version of the protocol.
const Version = 3

// Limits of what a peer is let send; sshfs keeps to them.
const (
	MaxData   = 256 << 10      // bytes of one read or write
	MaxPacket = MaxData + 1024 // bytes of a packet, without its length
	MaxPath   = 4096           // bytes of a path, as in the kernel
	MaxHandle = 256            // bytes of a handle
)

// Type is the first byte of a packet.
type Type byte

// Requests and answers.
const (
	Init     Type = 1
	Ver      Type = 2
	Open     Type = 3
	Close    Type = 4
	Read     Type = 5
	Write    Type = 6
	Lstat    Type = 7
	Fstat    Type = 8
	Setstat  Type = 9
	Fsetstat Type = 10
	Opendir  Type = 11
	Readdir  Type = 12
	Remove   Type = 13
	Mkdir    Type = 14
	Rmdir    Type = 15
	Realpath Type = 16
	Stat     Type = 17
	Rename   Type = 18
	Readlink Type = 19
	Symlink  Type = 20
	Extended Type = 200

	StatusReply   Type = 101
	HandleReply   Type = 102
	DataReply     Type = 103
	NameReply     Type = 104
	AttrsReply    Type = 105
	ExtendedReply Type = 201
)

// Extensions, as they are announced with the version that follows each.
const (
	ExtPosixRename = "posix-rename@openssh.com" // 1
	ExtHardlink    = "hardlink@openssh.com"     // 1
	ExtStatvfs     = "statvfs@openssh.com"      // 2
	ExtFsync       = "fsync@openssh.com"        // 1
)

// Code is what a status says.
type Code uint32

// Codes of version 3, and one of a later version for what they cannot say:
// sshfs makes EIO of a code that it does not know, and EPERM of Failure.
const (
	OK               Code = 0
	EOF              Code = 1
	NoSuchFile       Code = 2
	PermissionDenied Code = 3
	Failure          Code = 4
	BadMessage       Code = 5
	Unsupported      Code = 8
	NoSpace          Code = 14
)

// Flags of Open.
const (
	FlagRead   = 1
	FlagWrite  = 2
	FlagAppend = 4
	FlagCreate = 8
	FlagTrunc  = 16
	FlagExcl   = 32
)

// Which attributes Attrs has.
const (
	AttrSize  = 1
	AttrOwner = 2
	AttrMode  = 4
	AttrTimes = 8
	attrMore  = 1 << 31
)

// ErrFormat: the peer does not speak the protocol.
var ErrFormat = errors.New("bad SFTP packet")

// Attrs are the attributes of a file.
type Attrs struct {
	Flags        uint32
	Size         uint64
	UID, GID     uint32
	Mode         uint32 // with the type, as stat(2) has it
	Atime, Mtime uint32 // seconds since 1970
}

// ReadPacket reads one packet into buf, which grows when it has to, and returns
// it without its length: its type, then what follows.
func ReadPacket(r io.Reader, buf []byte) ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n < 5 || n > MaxPacket {
		return nil, fmt.Errorf("%w: length %d", ErrFormat, n)
	}
	if uint32(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return buf, nil
}

// Packet is one that is being written: NewPacket, what follows, then Bytes.
type Packet struct{ b []byte }

// NewPacket begins a packet; buf is used again if it is large enough. The id of
// Init and Ver is the version.
func NewPacket(buf []byte, t Type, id uint32) *Packet {
	p := &Packet{b: append(buf[:0], 0, 0, 0, 0, byte(t))}
	p.Uint32(id)
	return p
}

// Uint32 appends a number.
func (p *Packet) Uint32(n uint32) { p.b = binary.BigEndian.AppendUint32(p.b, n) }

// Uint64 appends a number.
func (p *Packet) Uint64(n uint64) { p.b = binary.BigEndian.AppendUint64(p.b, n) }

// String appends a string of any bytes.
func (p *Packet) String(s string) {
	p.Uint32(uint32(len(s)))
	p.b = append(p.b, s...)
}

// Raw appends bytes as they are.
func (p *Packet) Raw(b []byte) { p.b = append(p.b, b...) }

// Room returns n bytes behind what is there, to be filled in; Cut then drops
// those that are not used.
func (p *Packet) Room(n int) []byte {
	at := len(p.b)
	p.b = append(p.b, make([]byte, n)...)
	return p.b[at:]
}

// Len is how long the packet is by now.
func (p *Packet) Len() int { return len(p.b) }

// Cut shortens the packet.
func (p *Packet) Cut(n int) { p.b = p.b[:n] }

// SetUint32 changes a number that was appended at this offset.
func (p *Packet) SetUint32(at int, n uint32) { binary.BigEndian.PutUint32(p.b[at:], n) }

// Attrs appends attributes.
func (p *Packet) Attrs(a *Attrs) {
	p.Uint32(a.Flags)
	if a.Flags&AttrSize != 0 {
		p.Uint64(a.Size)
	}
	if a.Flags&AttrOwner != 0 {
		p.Uint32(a.UID)
		p.Uint32(a.GID)
	}
	if a.Flags&AttrMode != 0 {
		p.Uint32(a.Mode)
	}
	if a.Flags&AttrTimes != 0 {
		p.Uint32(a.Atime)
		p.Uint32(a.Mtime)
	}
}

// Bytes is the packet with its length in front, as it is sent.
func (p *Packet) Bytes() []byte {
	binary.BigEndian.PutUint32(p.b, uint32(len(p.b)-4))
	return p.b
}

// Parser reads what a packet holds. After the first thing that is not there all
// else reads as zero, and Err says so.
type Parser struct {
	b   []byte
	bad bool
}

// Parse begins with a packet as ReadPacket returns it.
func Parse(b []byte) (t Type, id uint32, rest *Parser) {
	rest = &Parser{b: b[1:]}
	return Type(b[0]), rest.Uint32(), rest
}

// Err says whether something was missing.
func (p *Parser) Err() error {
	if p.bad {
		return fmt.Errorf("%w: it is cut short, or a part of it is too long", ErrFormat)
	}
	return nil
}

func (p *Parser) take(n int) []byte {
	if p.bad || n > len(p.b) {
		p.bad = true
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

// Uint32 reads a number.
func (p *Parser) Uint32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// Uint64 reads a number.
func (p *Parser) Uint64() uint64 {
	if b := p.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Bytes reads a string of at most limit bytes; it is a part of the packet.
func (p *Parser) Bytes(limit int) []byte {
	n := p.Uint32()
	if uint64(n) > uint64(limit) {
		p.bad = true
		return nil
	}
	return p.take(int(n))
}

// String reads a string of at most limit bytes.
func (p *Parser) String(limit int) string { return string(p.Bytes(limit)) }

// Rest is what was not read yet.
func (p *Parser) Rest() []byte { return p.b }

// Attrs reads attributes. Those of extensions are skipped.
func (p *Parser) Attrs() Attrs {
	a := Attrs{Flags: p.Uint32()}
	if a.Flags&AttrSize != 0 {
		a.Size = p.Uint64()
	}
	if a.Flags&AttrOwner != 0 {
		a.UID, a.GID = p.Uint32(), p.Uint32()
	}
	if a.Flags&AttrMode != 0 {
		a.Mode = p.Uint32()
	}
	if a.Flags&AttrTimes != 0 {
		a.Atime, a.Mtime = p.Uint32(), p.Uint32()
	}
	if a.Flags&attrMore != 0 {
		for range min(p.Uint32(), 64) {
			p.Bytes(MaxPath)
			p.Bytes(MaxPath)
		}
	}
	return a
}

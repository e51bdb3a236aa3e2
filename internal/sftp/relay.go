package sftp

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Relay joins a client that knows of one connection only to a server that is
// reached over many, one after another: when a connection is lost, what the
// client waits for stays unanswered until there is the next. Then its open files
// are opened again, by name, and what was not answered is asked again.
//
// So a request can be carried out twice: a file that was removed is then told
// not to be there. A file that can no longer be opened gives errors. A directory
// that was being read is read from its start.
type Relay struct {
	client io.ReadWriteCloser

	send sync.Mutex // held to send to the server: by the client's reader, or to begin a connection

	mu       sync.Mutex
	changed  sync.Cond          // of server
	conn     io.ReadWriteCloser // the newest connection; nil: there was none yet
	server   io.ReadWriteCloser // the same, once it can be asked; nil: none now
	hello    []byte             // the client's Init; nil: it has not come yet
	greeted  bool               // the client has the server's version; guarded by send
	over     error              // the client has gone
	waiting  map[uint32]*request
	next     uint64 // of requests
	files    map[string]*file
	nextFile uint32
}

// request is one that was not answered yet.
type request struct {
	seq    uint64
	packet []byte // as the client has sent it
	path   string // of Open and Opendir
	flags  uint32 // of Open
	to     string // of a rename: the new path
	handle string // of Close: the client's
}

// file is one that the client has open.
type file struct {
	dir    bool
	path   string
	flags  uint32
	handle string // the server's
}

// errReplaced: there is a newer connection already.
var errReplaced = errors.New("another connection has taken its place")

// NewRelay returns a relay for one client. Run serves it.
func NewRelay(client io.ReadWriteCloser) *Relay {
	r := &Relay{client: client, waiting: map[uint32]*request{}, files: map[string]*file{}}
	r.changed.L = &r.mu
	return r
}

// Run passes on what the client asks, until the client goes.
func (r *Relay) Run() error {
	err := r.fromClient()
	r.mu.Lock()
	r.over = cmp.Or(err, io.EOF)
	if r.conn != nil {
		_ = r.conn.Close()
	}
	r.changed.Broadcast()
	r.mu.Unlock()
	_ = r.client.Close()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (r *Relay) fromClient() error {
	for {
		b, err := ReadPacket(r.client, nil)
		if err != nil {
			return err
		}
		if err := r.forward(b); err != nil {
			return err
		}
	}
}

// forward sends a client's packet, or leaves it for the next connection.
func (r *Relay) forward(b []byte) error {
	r.send.Lock()
	defer r.send.Unlock()
	t, id, rest := Parse(b)
	r.mu.Lock()
	if t == Init {
		r.hello = b
		r.changed.Broadcast()
		r.mu.Unlock()
		return nil
	}
	q := &request{seq: r.next, packet: b}
	r.next++
	switch t {
	case Open:
		q.path, q.flags = rest.String(MaxPath), rest.Uint32()
	case Opendir:
		q.path = rest.String(MaxPath)
	case Close:
		q.handle = rest.String(MaxHandle)
	case Rename:
		q.path, q.to = rest.String(MaxPath), rest.String(MaxPath)
	case Extended:
		if rest.String(MaxPath) == ExtPosixRename {
			q.path, q.to = rest.String(MaxPath), rest.String(MaxPath)
		}
	}
	if r.waiting[id] != nil {
		r.mu.Unlock()
		return fmt.Errorf("%w: a second request %d", ErrFormat, id)
	}
	r.waiting[id] = q
	s := r.server
	out := r.translate(b)
	r.mu.Unlock()
	if s != nil {
		_, _ = s.Write(out) // a connection that is lost shows where it is read
	}
	return nil
}

// translate puts the server's handle in place of the client's, and the length in
// front. It is called with mu held.
func (r *Relay) translate(b []byte) []byte {
	t, id, rest := Parse(b)
	p := NewPacket(make([]byte, 0, len(b)+MaxHandle), t, id)
	switch t {
	case Extended:
		name := rest.String(MaxPath)
		p.String(name)
		if name != ExtFsync {
			break
		}
		fallthrough
	case Close, Read, Write, Fstat, Fsetstat, Readdir:
		h := rest.String(MaxHandle)
		if f := r.files[h]; f != nil {
			h = f.handle
		} else {
			h = ""
		}
		p.String(h)
	}
	p.Raw(rest.Rest())
	return p.Bytes()
}

// Connect takes a new connection to a server in place of the one there is,
// and returns once it is lost, or the client is gone.
func (r *Relay) Connect(conn io.ReadWriteCloser) error {
	defer func() { _ = conn.Close() }()
	r.mu.Lock()
	if r.conn != nil {
		_ = r.conn.Close() // so that a write to it ends, and lets send go
	}
	r.conn, r.server = conn, nil
	r.mu.Unlock()
	err := r.begin(conn)
	if err == nil {
		err = r.fromServer(conn)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == conn {
		r.server = nil
	}
	if r.over != nil {
		return nil
	}
	return err
}

// begin greets the server, opens what was open, and asks what is unanswered.
func (r *Relay) begin(s io.ReadWriteCloser) error {
	hello := r.waitHello()
	if hello == nil {
		return io.EOF
	}
	r.send.Lock()
	packets, err := r.reconnect(s, hello)
	if err != nil {
		r.send.Unlock()
		return err
	}
	// Beside the reader of the answers: a server may wait until they are taken.
	go func() {
		defer r.send.Unlock() // what the client asks now comes after these
		for _, p := range packets {
			if _, err := s.Write(p); err != nil {
				return
			}
		}
	}()
	return nil
}

// reconnect makes a connection one that can be asked, and returns what was not
// answered. It is called with send held.
func (r *Relay) reconnect(s io.ReadWriteCloser, hello []byte) ([][]byte, error) {
	if _, err := s.Write(framed(hello)); err != nil {
		return nil, err
	}
	version, err := ReadPacket(s, nil)
	if err != nil {
		return nil, err
	}
	if Type(version[0]) != Ver {
		return nil, fmt.Errorf("%w: no version, but type %d", ErrFormat, version[0])
	}
	if !r.greeted {
		if _, err := r.client.Write(framed(version)); err != nil {
			return nil, err
		}
		r.greeted = true
	}
	// Nobody else changes these: there is no server whose answer could.
	for _, f := range r.files {
		if err := reopen(s, f); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != s {
		return nil, errReplaced
	}
	var packets [][]byte
	for _, q := range slices.SortedFunc(maps.Values(r.waiting), func(a, b *request) int { return cmp.Compare(a.seq, b.seq) }) {
		packets = append(packets, r.translate(q.packet))
	}
	r.server = s
	return packets, nil
}

func (r *Relay) waitHello() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.hello == nil && r.over == nil {
		r.changed.Wait()
	}
	if r.over != nil {
		return nil
	}
	return r.hello
}

// reopen opens a client's file once more. One that is not there any more has no
// handle, which no server knows.
func reopen(s io.ReadWriteCloser, f *file) error {
	t := Opendir
	if !f.dir {
		t = Open
	}
	p := NewPacket(nil, t, 0)
	p.String(f.path)
	if !f.dir {
		p.Uint32(f.flags &^ (FlagCreate | FlagTrunc | FlagExcl))
		p.Attrs(&Attrs{})
	}
	if _, err := s.Write(p.Bytes()); err != nil {
		return err
	}
	b, err := ReadPacket(s, nil)
	if err != nil {
		return err
	}
	f.handle = ""
	if t, _, rest := Parse(b); t == HandleReply {
		f.handle = rest.String(MaxHandle)
	}
	return nil
}

// fromServer passes answers on until the connection is lost.
func (r *Relay) fromServer(s io.ReadWriteCloser) error {
	for {
		b, err := ReadPacket(s, nil)
		if err != nil {
			return err
		}
		if b = r.answer(s, b); b == nil {
			continue
		}
		if _, err := r.client.Write(framed(b)); err != nil {
			return err
		}
	}
}

// answer learns from a server's answer what the relay has to know, and returns
// what the client is told; nil: nothing.
func (r *Relay) answer(s io.ReadWriteCloser, b []byte) []byte {
	t, id, rest := Parse(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	q := r.waiting[id]
	if q == nil || r.server != s {
		return nil
	}
	delete(r.waiting, id)
	ok := t == StatusReply && Code(rest.Uint32()) == OK
	switch asked := Type(q.packet[0]); {
	case t == HandleReply && (asked == Open || asked == Opendir):
		f := &file{dir: asked == Opendir, path: q.path, flags: q.flags, handle: rest.String(MaxHandle)}
		h := r.newHandle()
		r.files[h] = f
		p := NewPacket(nil, HandleReply, id)
		p.String(h)
		return p.Bytes()[4:]
	case asked == Close:
		delete(r.files, q.handle)
	case ok && q.to != "":
		r.renamed(q.path, q.to)
	}
	return b
}

func (r *Relay) newHandle() string {
	r.nextFile++
	return string(binary.BigEndian.AppendUint32(nil, r.nextFile))
}

// renamed follows a rename in the paths of what is open.
func (r *Relay) renamed(from, to string) {
	for _, f := range r.files {
		if f.path == from {
			f.path = to
		} else if below, ok := strings.CutPrefix(f.path, from+"/"); ok {
			f.path = to + "/" + below
		}
	}
}

// framed puts the length in front.
func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...)
}

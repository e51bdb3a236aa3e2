package sftp

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"
)

// FuzzParse: whatever comes, no packet is read beyond its end, and what was
// written is read again.
func FuzzParse(f *testing.F) {
	p := NewPacket(nil, Open, 7)
	p.String("/a")
	p.Uint32(FlagRead)
	p.Attrs(&Attrs{Flags: AttrSize | AttrOwner | AttrMode | AttrTimes, Size: 1, UID: 2, GID: 3, Mode: 4, Atime: 5, Mtime: 6})
	f.Add(p.Bytes())
	f.Add([]byte{0, 0, 0, 5, 1, 0, 0, 0, 3})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		packet, err := ReadPacket(bytes.NewReader(b), nil)
		if err != nil {
			return
		}
		kind, id, r := Parse(packet)
		s, n, a := r.String(MaxPath), r.Uint32(), r.Attrs()
		if r.Err() != nil || a.Flags&^(AttrSize|AttrOwner|AttrMode|AttrTimes) != 0 {
			return
		}
		out := NewPacket(nil, kind, id)
		out.String(s)
		out.Uint32(n)
		out.Attrs(&a)
		out.Raw(r.Rest())
		if !bytes.Equal(out.Bytes()[4:], packet) {
			t.Errorf("%x became %x", packet, out.Bytes()[4:])
		}
	})
}

// pipe is one end of a connection in memory.
type pipe struct {
	*io.PipeReader
	*io.PipeWriter
}

func (p pipe) Close() error { return errors.Join(p.PipeReader.Close(), p.PipeWriter.Close()) }

func newPipe() (pipe, pipe) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return pipe{r1, w2}, pipe{r2, w1}
}

// next reads a packet that must be of this kind.
func next(t *testing.T, r io.Reader, want Type) (uint32, *Parser) {
	t.Helper()
	type packet struct {
		b   []byte
		err error
	}
	got := make(chan packet, 1)
	go func() {
		b, err := ReadPacket(r, nil)
		got <- packet{b, err}
	}()
	select {
	case p := <-got:
		if p.err != nil {
			t.Fatalf("read a packet of type %d: %v", want, p.err)
		}
		kind, id, rest := Parse(p.b)
		if kind != want {
			t.Fatalf("type %d, want %d", kind, want)
		}
		return id, rest
	case <-time.After(30 * time.Second):
		t.Fatalf("no packet of type %d", want)
		return 0, nil
	}
}

func send(t *testing.T, w io.Writer, kind Type, id uint32, parts ...any) {
	t.Helper()
	p := NewPacket(nil, kind, id)
	for _, part := range parts {
		switch v := part.(type) {
		case string:
			p.String(v)
		case uint32:
			p.Uint32(v)
		case Attrs:
			p.Attrs(&v)
		}
	}
	if _, err := w.Write(p.Bytes()); err != nil {
		t.Fatal(err)
	}
}

func TestRelayGoesOnWithANewConnection(t *testing.T) {
	client, inner := newPipe()
	r := NewRelay(inner)
	ended := make(chan error, 1)
	go func() { ended <- r.Run() }()
	connect := func() pipe {
		ours, theirs := newPipe()
		go func() { _ = r.Connect(theirs) }()
		return ours
	}
	server := connect()
	send(t, client, Init, Version)
	next(t, server, Init)
	send(t, server, Ver, Version)
	next(t, client, Ver)

	send(t, client, Open, 1, "/a", uint32(FlagRead|FlagWrite|FlagCreate|FlagTrunc|FlagExcl), Attrs{})
	next(t, server, Open)
	send(t, server, HandleReply, 1, "server's first")
	_, rest := next(t, client, HandleReply)
	h := rest.String(MaxHandle)
	send(t, client, Extended, 2, ExtPosixRename, "/a", "/b")
	next(t, server, Extended)
	send(t, server, StatusReply, 2, uint32(OK), "", "")
	next(t, client, StatusReply)
	send(t, client, Fstat, 3, h)
	if _, rest := next(t, server, Fstat); rest.String(MaxHandle) != "server's first" {
		t.Error("the server was asked for a handle that it has not given")
	}

	// The answer does not come. The next server has the file opened, under its
	// new name, and neither made nor emptied, before it is asked again.
	_ = server.Close()
	server = connect()
	next(t, server, Init)
	send(t, server, Ver, Version)
	_, rest = next(t, server, Open)
	if path, flags := rest.String(MaxPath), rest.Uint32(); path != "/b" || flags != FlagRead|FlagWrite {
		t.Errorf("opened again: %s with %d", path, flags)
	}
	send(t, server, HandleReply, 0, "server's second")
	id, rest := next(t, server, Fstat)
	if got := rest.String(MaxHandle); got != "server's second" || id != 3 {
		t.Errorf("request %d for %q", id, got)
	}
	send(t, server, AttrsReply, 3, Attrs{})
	next(t, client, AttrsReply)
	send(t, client, Close, 4, h)
	next(t, server, Close)
	send(t, server, StatusReply, 4, uint32(OK), "", "")
	next(t, client, StatusReply)

	_ = client.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

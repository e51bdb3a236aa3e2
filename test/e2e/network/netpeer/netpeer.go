// Package netpeer tries a network whose two ends are on different machines: a
// server on one, calls on the other. Unlike those of package nettest, which
// hold both ends, they have only what comes over the network to go by.
//
// A call opens TCP connections and begins each with one line that says what it
// wants: see the requests. The server of UDP sends every datagram back.
package netpeer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// The requests, each a line with a size in bytes behind the word; where it
// says nothing, 0.
const (
	askName   = "name"   // the server says its name, and closes
	askEcho   = "echo"   // it sends back what comes, until the client ends
	askShout  = "shout"  // when the client has closed its half, it sends in capitals what came
	askBulk   = "bulk"   // both send so much at once, then its checksum; the server closes with its verdict
	askSink   = "sink"   // the client sends so much; the server says when it has it
	askSource = "source" // the server sends so much
)

// patience bounds each connection, on an emulated machine of a busy host.
const patience = 15 * time.Minute

// Verdicts on what has come.
const (
	good = 'y'
	bad  = 'n'
)

// chunk is how much is written at a time, bytes.
const chunk = 1 << 17

var table = crc32.MakeTable(crc32.Castagnoli)

// data is a stream of bytes of which no two parts of the size of a chunk are
// the same.
type data struct {
	block []byte
	part  uint64
}

func newData() *data {
	d := &data{block: make([]byte, chunk)}
	_, _ = rand.NewChaCha8([32]byte{}).Read(d.block)
	return d
}

// next is valid until the next call.
func (d *data) next() []byte {
	d.part++
	binary.BigEndian.PutUint64(d.block, d.part)
	return d.block
}

// sendChecked sends so many bytes and their checksum.
func sendChecked(w io.Writer, size int64) error {
	d, sum := newData(), uint32(0)
	for size > 0 {
		b := d.next()
		b = b[:min(size, int64(len(b)))]
		size -= int64(len(b))
		sum = crc32.Update(sum, table, b)
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return binary.Write(w, binary.BigEndian, sum)
}

// receiveChecked is the other end of sendChecked.
func receiveChecked(r io.Reader, size int64) error {
	h := crc32.New(table)
	if n, err := io.CopyN(h, r, size); err != nil {
		return fmt.Errorf("%d of %d bytes came: %w", n, size, err)
	}
	var want uint32
	if err := binary.Read(r, binary.BigEndian, &want); err != nil {
		return fmt.Errorf("the checksum did not come: %w", err)
	}
	if got := h.Sum32(); got != want {
		return fmt.Errorf("%d bytes with the checksum %08x came, sent were some with %08x", size, got, want)
	}
	return nil
}

// Serve serves l until it is closed.
func Serve(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		go func() {
			_ = c.SetDeadline(time.Now().Add(patience))
			_ = serve(c, name) // the client notices
			_ = c.Close()
		}()
	}
}

func serve(c net.Conn, name string) error {
	r := bufio.NewReaderSize(c, chunk)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	var word string
	var size int64
	if _, err := fmt.Sscan(line, &word, &size); err != nil {
		return err
	}
	switch word {
	case askName:
		_, err = io.WriteString(c, name)
	case askEcho:
		_, err = io.Copy(c, struct{ io.Reader }{r})
	case askShout:
		var b []byte
		if b, err = io.ReadAll(r); err == nil {
			_, err = c.Write(bytes.ToUpper(b))
		}
	case askBulk:
		verdict := make(chan byte, 1)
		go func() {
			if receiveChecked(r, size) == nil {
				verdict <- good
			}
			verdict <- bad
		}()
		if err = sendChecked(c, size); err == nil {
			_, err = c.Write([]byte{<-verdict})
		}
	case askSink:
		if _, err = io.CopyN(io.Discard, r, size); err == nil {
			_, err = c.Write([]byte{good})
		}
	case askSource:
		d := newData()
		for ; err == nil && size > 0; size -= chunk {
			_, err = c.Write(d.block[:min(size, chunk)])
		}
	}
	return err
}

// ServePackets serves pc until it is closed.
func ServePackets(pc net.PacketConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := pc.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = pc.WriteTo(b[:n], from)
		}
	}
}

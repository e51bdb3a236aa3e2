package netpeer

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// server serves this machine's loopback until the test's end.
func server(t *testing.T) Dial {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go Serve(l, "somebody")
	return func() (net.Conn, error) { return net.Dial("tcp4", l.Addr().String()) }
}

func TestCalls(t *testing.T) {
	dial := server(t)
	if name, err := dial.Name(); err != nil || name != "somebody" {
		t.Errorf("name %q, %v", name, err)
	}
	for _, size := range []int64{0, 1, chunk, 3*chunk + 7} {
		if err := dial.Bulk(size); err != nil {
			t.Errorf("%d bytes each way: %v", size, err)
		}
	}
	if err := dial.Short(20, 3); err != nil {
		t.Error(err)
	}
	if err := dial.HalfClose(); err != nil {
		t.Error(err)
	}
	for _, f := range []func(int64) (float64, error){dial.Push, dial.Pull} {
		if rate, err := f(3*chunk + 7); err != nil || rate <= 0 {
			t.Errorf("%f MB/s, %v", rate, err)
		}
	}
	if d, err := dial.Latency(3); err != nil || d <= 0 {
		t.Errorf("%s, %v", d, err)
	}
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pc.Close() }()
	go ServePackets(pc)
	if err := Dial(func() (net.Conn, error) { return net.Dial("udp4", pc.LocalAddr().String()) }).Datagrams(0, 1, 9000); err != nil {
		t.Error(err)
	}
}

// spoiled changes one bit of what is written, somewhere.
type spoiled struct {
	net.Conn
	at, n int
}

func (s *spoiled) Write(b []byte) (int, error) {
	if i := s.at - s.n; i >= 0 && i < len(b) {
		b = bytes.Clone(b)
		b[i] ^= 1
	}
	s.n += len(b)
	return s.Conn.Write(b)
}

// One wrong bit is noticed by whoever receives it.
func TestBulkNotices(t *testing.T) {
	dial := server(t)
	err := Dial(func() (net.Conn, error) {
		c, err := dial()
		return &spoiled{Conn: c, at: 2 * chunk}, err
	}).Bulk(3 * chunk)
	if err == nil {
		t.Error("the server does not notice what it gets")
	}
	ours, theirs := net.Pipe()
	go func() { _ = sendChecked(&spoiled{Conn: theirs, at: 100}, chunk) }()
	_ = ours.SetDeadline(time.Now().Add(time.Minute))
	if err := receiveChecked(ours, chunk); err == nil {
		t.Error("the client does not notice what it gets")
	}
	var short bytes.Buffer
	_ = sendChecked(&short, chunk)
	if err := receiveChecked(io.LimitReader(&short, chunk/2), chunk); err == nil {
		t.Error("the client does not notice what is missing")
	}
}

package netpeer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Dial connects to a server, from wherever the call is to come from.
type Dial func() (net.Conn, error)

// ask begins a connection.
func (dial Dial) ask(word string, size int64) (net.Conn, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, word, size); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Name asks the server for its name.
func (dial Dial) Name() (string, error) {
	c, err := dial.ask(askName, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(io.LimitReader(c, 1024))
	return string(b), err
}

// Bulk sends so many bytes each way at once, and both ends check what came.
func (dial Dial) Bulk(size int64) error {
	c, err := dial.ask(askBulk, size)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	sent := make(chan error, 1)
	go func() { sent <- sendChecked(c, size) }()
	if err := receiveChecked(c, size); err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("send: %w", err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return fmt.Errorf("the server's verdict did not come: %w", err)
	}
	if b[0] != good {
		return errors.New("what the server got was not what was sent")
	}
	return nil
}

// Short makes so many connections, atOnce at a time, and closes each when
// something has gone there and back.
func (dial Dial) Short(conns, atOnce int) error {
	var work sync.WaitGroup
	errs := make([]error, atOnce)
	for worker := range atOnce {
		work.Go(func() {
			for i := worker; i < conns && errs[worker] == nil; i += atOnce {
				if err := dial.once(fmt.Sprint("connection ", i)); err != nil {
					errs[worker] = fmt.Errorf("connection %d: %w", i, err)
				}
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

func (dial Dial) once(text string) error {
	c, err := dial.ask(askEcho, 0)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return thereAndBack(c, []byte(text))
}

func thereAndBack(c net.Conn, text []byte) error {
	if _, err := c.Write(text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if !bytes.Equal(b, text) {
		return fmt.Errorf("got %q back, not %q", b, text)
	}
	return nil
}

// HalfClose closes its half of a connection, and still gets an answer.
func (dial Dial) HalfClose() error {
	c, err := dial.ask(askShout, 0)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "question"); err != nil {
		return err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "QUESTION" {
		err = fmt.Errorf("the answer is %q", b)
	}
	return err
}

// Hold opens a connection, and returns it when something has gone there and
// back.
func (dial Dial) Hold() (net.Conn, error) {
	c, err := dial.ask(askEcho, 0)
	if err != nil {
		return nil, err
	}
	return c, StillThere(c)
}

// StillThere tries a connection that Hold has opened.
func StillThere(c net.Conn) error { return thereAndBack(c, []byte("still there")) }

// Datagrams sends datagrams of these sizes, each until it comes back, for some
// may get lost.
func (dial Dial) Datagrams(sizes ...int) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for _, size := range sizes {
		if err := datagram(c, bytes.Repeat([]byte{byte(size)}, size)); err != nil {
			return fmt.Errorf("datagram of %d bytes: %w", size, err)
		}
	}
	return nil
}

const (
	datagramTries   = 6
	datagramTimeout = 5 * time.Second
)

func datagram(c net.Conn, want []byte) (err error) {
	b := make([]byte, 1<<16)
	for range datagramTries {
		if _, err = c.Write(want); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(datagramTimeout))
		var n int
		if n, err = c.Read(b); err == nil {
			if !bytes.Equal(b[:n], want) {
				return fmt.Errorf("%d bytes came back, not the same", n)
			}
			return nil
		}
	}
	return err
}

// Push measures how fast the server gets so many bytes: MB/s.
func (dial Dial) Push(size int64) (float64, error) {
	c, err := dial.ask(askSink, size)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	d, start := newData(), time.Now()
	for left := size; left > 0; left -= chunk {
		if _, err := c.Write(d.block[:min(left, chunk)]); err != nil {
			return 0, err
		}
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return 0, err
	}
	return rate(size, start), nil
}

// Pull measures how fast so many bytes come from the server: MB/s.
func (dial Dial) Pull(size int64) (float64, error) {
	c, err := dial.ask(askSource, size)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	start := time.Now()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(c, size), make([]byte, chunk)); err != nil {
		return 0, err
	}
	return rate(size, start), nil
}

func rate(size int64, start time.Time) float64 {
	return float64(size) / 1e6 / time.Since(start).Seconds()
}

// Latency measures how long a byte takes there and back: the median of so many.
func (dial Dial) Latency(times int) (time.Duration, error) {
	c, err := dial.Hold()
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	took := make([]time.Duration, times)
	for i := range took {
		start := time.Now()
		if err := thereAndBack(c, []byte{1}); err != nil {
			return 0, err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[times/2], nil
}

package agentapi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"
)

func TestFramesRoundTrip(t *testing.T) {
	frames := []struct {
		t FrameType
		p []byte
	}{
		{FrameStdin, []byte("in")},
		{FrameStdinClose, nil},
		{FrameStdout, bytes.Repeat([]byte{0, 1, 0xff}, MaxFrame/3)},
		{FrameStderr, make([]byte, MaxFrame)},
		{FrameResize, Resize(24, 80)},
		{FrameSignal, []byte{15}},
		{FrameStdinAck, StdinAck(4096)},
		{FrameExit, []byte(`{"code":7}`)},
	}
	var b bytes.Buffer
	for _, f := range frames {
		if err := WriteFrame(&b, f.t, f.p); err != nil {
			t.Fatalf("write frame %d: %v", f.t, err)
		}
	}
	r := NewFrameReader(&b)
	for _, want := range frames {
		got, p, err := r.Next()
		if err != nil {
			t.Fatalf("read frame %d: %v", want.t, err)
		}
		if got != want.t || !bytes.Equal(p, want.p) {
			t.Errorf("got frame %d with %d bytes, want %d with %d", got, len(p), want.t, len(want.p))
		}
	}
	if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v, want io.EOF", err)
	}
}

func TestWriteFrameRefusesWhatNoReaderTakes(t *testing.T) {
	var b bytes.Buffer
	if err := WriteFrame(&b, FrameStdout, make([]byte, MaxFrame+1)); !errors.Is(err, ErrFrame) {
		t.Errorf("got %v, want ErrFrame", err)
	}
	if b.Len() != 0 {
		t.Errorf("%d bytes were written all the same", b.Len())
	}
}

func TestNextRefuses(t *testing.T) {
	header := func(typ byte, n uint32) []byte {
		return binary.BigEndian.AppendUint32([]byte{typ}, n)
	}
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"nothing":                {nil, io.EOF},
		"half a header":          {[]byte{1, 0}, io.ErrUnexpectedEOF},
		"no payload":             {header(1, 4), io.ErrUnexpectedEOF},
		"half a payload":         {append(header(1, 4), 'x'), io.ErrUnexpectedEOF},
		"type 0":                 {header(0, 0), ErrFrame},
		"type 11":                {header(11, 0), ErrFrame},
		"length over the limit":  {header(1, MaxFrame+1), ErrFrame},
		"length of all the bits": {header(3, 1<<32-1), ErrFrame},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := NewFrameReader(bytes.NewReader(tc.in)).Next(); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestPayloads(t *testing.T) {
	rows, cols, err := ParseResize(Resize(1, 65535))
	if rows != 1 || cols != 65535 || err != nil {
		t.Errorf("resize: got %d, %d, %v", rows, cols, err)
	}
	if n, err := ParseStdinAck(StdinAck(StdinWindow)); n != StdinWindow || err != nil {
		t.Errorf("ack: got %d, %v", n, err)
	}
	for name, err := range map[string]error{
		"short resize": second(ParseResize([]byte{1, 2, 3})),
		"long ack":     third(ParseStdinAck(make([]byte, 5))),
		"large ack":    third(ParseStdinAck(StdinAck(StdinWindow + 1))),
	} {
		if !errors.Is(err, ErrFrame) {
			t.Errorf("%s: got %v, want ErrFrame", name, err)
		}
	}
}

func second(_, _ uint16, err error) error { return err }
func third(_ uint32, err error) error     { return err }

func FuzzNext(f *testing.F) {
	var b bytes.Buffer
	_ = WriteFrame(&b, FrameStdout, []byte("hello"))
	_ = WriteFrame(&b, FrameExit, []byte(`{"code":0}`))
	f.Add(b.Bytes())
	f.Add([]byte{7, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewFrameReader(bytes.NewReader(in))
		var again bytes.Buffer
		for {
			typ, p, err := r.Next()
			if err != nil {
				break
			}
			if err := WriteFrame(&again, typ, p); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
		}
		if !bytes.HasPrefix(in, again.Bytes()) {
			t.Fatal("frames read are not the bytes given")
		}
	})
}

func TestClockPayloads(t *testing.T) {
	for _, q := range []ClockRequest{{}, {Seq: 1, Shift: -time.Hour}, {Seq: 1<<64 - 1, Shift: 1<<63 - 1}} {
		if got, err := ParseClockRequest(q.Encode()); err != nil || got != q {
			t.Errorf("%+v: got %+v, %v", q, got, err)
		}
	}
	for _, a := range []ClockAnswer{{Time: time.Unix(0, 0)}, {Seq: 7, Shift: -1, Time: time.Unix(-5, 3)}, {Time: time.Unix(0, 1<<63-1)}} {
		if got, err := ParseClockAnswer(a.Encode()); err != nil || got != a {
			t.Errorf("%+v: got %+v, %v", a, got, err)
		}
	}
	for _, n := range []int{0, 1, 15, 17, 23, 25} {
		_, err := ParseClockRequest(make([]byte, n))
		_, err2 := ParseClockAnswer(make([]byte, n))
		if !errors.Is(err, ErrFrame) || !errors.Is(err2, ErrFrame) {
			t.Errorf("%d bytes: %v, %v", n, err, err2)
		}
	}
}

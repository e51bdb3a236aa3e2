package agentclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// guest is whatever answers at the other end of the channel.
func newClient(t *testing.T, guest func(net.Conn)) *Client {
	t.Helper()
	c := New(func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer func() { _ = theirs.Close() }()
			guest(theirs)
		}()
		return ours, nil
	})
	t.Cleanup(c.Close)
	return c
}

// answers is a guest that reads a request and says this, and then nothing.
func answers(parts ...string) func(net.Conn) {
	return func(c net.Conn) {
		readRequest(c)
		for _, p := range parts {
			if _, err := io.WriteString(c, p); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, c)
	}
}

// readRequest reads up to the end of the header; bodies in these tests come with it.
func readRequest(c net.Conn) {
	var got []byte
	buf := make([]byte, 64<<10)
	for !bytes.Contains(got, []byte("\r\n\r\n")) {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		got = append(got, buf[:n]...)
	}
}

func answer(status int, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

const upgraded = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + agentapi.StreamProtocol + "\r\n\r\n"

// endless repeats a text until the host has had enough.
func endless(start, text string) func(net.Conn) {
	return func(c net.Conn) {
		readRequest(c)
		_, err := io.WriteString(c, start)
		for block := strings.Repeat(text, 1000); err == nil; {
			_, err = io.WriteString(c, block)
		}
	}
}

// hostileAnswers are answers to any request that are not those of an agent.
var hostileAnswers = map[string]func(net.Conn){
	"garbage":              answers("\x00\x01\x02 what?\r\n\r\n"),
	"text":                 answers("Debian GNU/Linux 12\r\n\r\nlogin: "),
	"no JSON":              answers(answer(200, "hello")),
	"another type":         answers(answer(200, `{"version":"one","pid":"x","cpus":"x","total":"x"}`)),
	"a redirect":           answers("HTTP/1.1 302 Found\r\nLocation: http://example.com/\r\nContent-Length: 0\r\n\r\n"),
	"an error of no words": answers(answer(500, "{}")),
	"an oversize body":     endless("HTTP/1.1 200 OK\r\n\r\n", "[[[["),
	"an oversize length":   endless("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "x"),
	"an oversize error":    endless("HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n", "40\r\n"+strings.Repeat(".", 0x40)+"\r\n"),
	"endless headers":      endless("HTTP/1.1 200 OK\r\n", "X: y\r\n"),
	"an endless header":    endless("HTTP/1.1 200 OK\r\nX: ", "yyyyyyyy"),
	"an endless status":    endless("HTTP/1.1 200 ", "OK OK OK"),
	"another protocol":     answers("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
}

// calls are all that a client asks.
var calls = map[string]func(context.Context, *Client) error{
	"status":   func(ctx context.Context, c *Client) error { _, err := c.Status(ctx); return err },
	"up":       func(ctx context.Context, c *Client) error { _, err := c.WaitUp(ctx); return err },
	"restore":  func(ctx context.Context, c *Client) error { _, err := c.Restore(ctx, request(), nil); return err },
	"ready":    func(ctx context.Context, c *Client) error { return c.WaitReady(ctx) },
	"start":    func(ctx context.Context, c *Client) error { _, err := c.Start(ctx); return err },
	"attach":   func(ctx context.Context, c *Client) error { return closed(c.Attach(ctx)) },
	"exec":     func(ctx context.Context, c *Client) error { return closed(c.Exec(ctx, agentapi.ExecRequest{})) },
	"plan":     func(ctx context.Context, c *Client) error { return c.SendPlan(ctx, &agentapi.Plan{}) },
	"signal":   func(ctx context.Context, c *Client) error { return c.Signal(ctx, 15) },
	"stats":    func(ctx context.Context, c *Client) error { _, err := c.Stats(ctx); return err },
	"procs":    func(ctx context.Context, c *Client) error { _, err := c.Processes(ctx, true); return err },
	"shutdown": func(ctx context.Context, c *Client) error { return c.Shutdown(ctx) },
}

func closed(s *Stream, err error) error {
	if s != nil {
		_ = s.Close()
	}
	return err
}

// answersWithoutBody are calls whose answer has no body that could be wrong.
var answersWithoutBody = map[string]bool{"plan": true, "signal": true, "shutdown": true}

func TestHostileAnswers(t *testing.T) {
	for name, guest := range hostileAnswers {
		for call, f := range calls {
			if answersWithoutBody[call] && (name == "no JSON" || name == "another type") {
				continue
			}
			t.Run(name+"/"+call, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				err := f(ctx, newClient(t, guest))
				if !errors.Is(err, ErrAgent) {
					t.Errorf("got %v, want ErrAgent", err)
				}
				if err != nil && (len(err.Error()) > maxMessage+500 || strings.ContainsAny(err.Error(), "\x00\x01\x02\x1b")) {
					t.Errorf("not fit for a person: %.200q", err.Error())
				}
			})
		}
	}
}

// A guest that says nothing, or stops in the middle, is left when the context ends.
func TestSilentGuests(t *testing.T) {
	for name, guest := range map[string]func(net.Conn){
		"reads nothing":         func(c net.Conn) { waitClosed(c) },
		"answers nothing":       answers(),
		"half a line":           answers("login: "),
		"half a header":         answers("HTTP/1.1 200 OK\r\nContent-"),
		"half a body":           answers("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"),
		"half an error":         answers("HTTP/1.1 500 X\r\nContent-Length: 10\r\n\r\n{"),
		"half another protocol": answers("HTTP/1.1 101 X\r\nConnection: Upg"),
		"continue, for ever":    answers(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 3)),
	} {
		for call, f := range calls {
			t.Run(name+"/"+call, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				start := time.Now()
				if err := f(ctx, newClient(t, guest)); err == nil {
					t.Error("no error")
				}
				if took := time.Since(start); took > patience {
					t.Errorf("it took %s", took)
				}
			})
		}
	}
}

// waitClosed waits for the end of a connection and reads nothing of it.
func waitClosed(c net.Conn) {
	for {
		if _, err := c.Write(nil); err != nil {
			return
		}
		_ = c.SetWriteDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Write([]byte("H")); errors.Is(err, io.ErrClosedPipe) {
			return
		}
		_ = c.SetWriteDeadline(time.Time{})
	}
}

// A guest that powers off at once takes its answer with it.
func TestShutdownWithoutAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		guest func(net.Conn)
		well  bool
	}{
		"the answer":     {answers(answer(204, "")), true},
		"no answer":      {readRequest, true},
		"half an answer": {func(c net.Conn) { readRequest(c); _, _ = io.WriteString(c, "HTTP/1.1 204 X\r\nConte") }, false},
	} {
		if err := newClient(t, test.guest).Shutdown(t.Context()); (err == nil) != test.well {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestHostileStatus(t *testing.T) {
	for name, body := range map[string]string{
		"another version": `{"version":1,"phase":"ready"}`,
		"no version":      `{"phase":"ready"}`,
		"exit code 256":   `{"version":2,"exit":{"code":256}}`,
		"exit code -1":    `{"version":2,"exit":{"code":-1}}`,
		"failed with 0":   `{"version":2,"exit":{"code":0,"failed":true}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := newClient(t, answers(answer(200, body))).Status(t.Context()); !errors.Is(err, ErrAgent) {
				t.Errorf("got %v, want ErrAgent", err)
			}
		})
	}
}

func TestGuestsTextIsCleaned(t *testing.T) {
	const evil = `\u001b]0;title\u0007\u001b[31mred\u202e\r\u0000 ä€ \n\tnext`
	const want = "·]0;title··[31mred··· ä€ \n\tnext"
	st, err := newClient(t, answers(answer(200, `{"version":2,"error":"`+evil+`"}`))).Status(t.Context())
	if err != nil || st.Error != want {
		t.Errorf("status: %q, %v", st.Error, err)
	}
	err = newClient(t, answers(answer(200, `{"version":2,"phase":"failed","error":"`+evil+`"}`))).WaitReady(t.Context())
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("ready: %v", err)
	}
	var refused *agentapi.Error
	err = newClient(t, answers(answer(409, `{"error":"`+evil+strings.Repeat("x", 2*maxMessage)+`"}`))).Signal(t.Context(), 1)
	if !errors.As(err, &refused) || !strings.HasPrefix(refused.Message, want) || len(refused.Message) > maxMessage+100 {
		t.Errorf("error: %.100q", err)
	}
	if got := clean("x" + strings.Repeat("€", maxMessage)); !strings.HasSuffix(got, "…") || strings.Contains(got, "\ufffd") {
		t.Errorf("cut within a character: %q", got[len(got)-20:])
	}
}

func raw(typ byte, n uint32, payload string) string {
	return string(binary.BigEndian.AppendUint32([]byte{typ}, n)) + payload
}

func exitFrame(body string) string {
	return raw(byte(agentapi.FrameExit), uint32(len(body)), body)
}

func TestHostileStreams(t *testing.T) {
	for name, tc := range map[string]struct {
		frames string
		want   error
	}{
		"unknown frame":        {raw(99, 0, ""), ErrAgent},
		"oversize frame":       {raw(byte(agentapi.FrameStdout), 1<<31, ""), ErrAgent},
		"a host's frame":       {raw(byte(agentapi.FrameStdin), 1, "x"), ErrAgent},
		"short ack":            {raw(byte(agentapi.FrameStdinAck), 1, "x"), ErrAgent},
		"ack of nothing sent":  {raw(byte(agentapi.FrameStdinAck), 4, "\x00\x00\x00\x01"), ErrAgent},
		"ack over the window":  {raw(byte(agentapi.FrameStdinAck), 4, "\xff\xff\xff\xff"), ErrAgent},
		"exit that is no JSON": {exitFrame("bye"), ErrAgent},
		"exit code 300":        {exitFrame(`{"code":300}`), ErrAgent},
		"exit code -1":         {exitFrame(`{"code":-1}`), ErrAgent},
		"failed with 3":        {exitFrame(`{"code":3,"failed":true}`), ErrAgent},
		"half a frame":         {raw(byte(agentapi.FrameStdout), 10, "x"), ErrLost},
		"the end":              {"", ErrLost},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, func(conn net.Conn) {
				readRequest(conn)
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				_, _ = io.WriteString(conn, upgraded+tc.frames)
			})
			s, err := c.Attach(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Run(t.Context(), Stdio{}); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// What the host sends stays within the window, whatever the guest does not
// acknowledge, and a guest that takes nothing does not hold Run.
func TestStdinStaysWithinTheWindow(t *testing.T) {
	got := make(chan int, 100)
	c := newClient(t, func(conn net.Conn) {
		readRequest(conn)
		_, _ = io.WriteString(conn, upgraded)
		r := agentapi.NewFrameReader(conn)
		for {
			typ, p, err := r.Next()
			if err != nil {
				return
			}
			if typ == agentapi.FrameStdin {
				got <- len(p)
			}
		}
	})
	s, err := c.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	go func() {
		sum := 0
		for sum < agentapi.StdinWindow {
			sum += <-got
		}
		select {
		case n := <-got:
			t.Errorf("%d bytes more than the window", n)
		case <-time.After(100 * time.Millisecond):
		}
		cancel(reason)
	}()
	if _, err := s.Run(ctx, Stdio{Stdin: zeros{}}); !errors.Is(err, reason) {
		t.Errorf("got %v, want the context's cause", err)
	}
	if err := s.Signal(15); err == nil {
		t.Error("a signal on a stream that is over: no error")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRunReportsWhatItCannotWrite(t *testing.T) {
	c := newClient(t, answers(upgraded, raw(byte(agentapi.FrameStdout), 1, "x"), exitFrame(`{"code":0}`)))
	s, err := c.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	if _, err := s.Run(t.Context(), Stdio{Stdout: failing{full}}); !errors.Is(err, full) || !strings.Contains(err.Error(), "stdout") {
		t.Errorf("got %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestOversizeRequestIsNotSent(t *testing.T) {
	c := New(func(context.Context) (net.Conn, error) { return nil, errors.New("dialed") })
	err := c.SendPlan(t.Context(), &agentapi.Plan{Hostname: strings.Repeat("x", agentapi.MaxBody)})
	if err == nil || strings.Contains(err.Error(), "dialed") || !strings.Contains(err.Error(), "more than the agent takes") {
		t.Errorf("got %v", err)
	}
}

func TestWaitAgent(t *testing.T) {
	dials := 0
	agent := newClient(t, answers(answer(200, `{"version":2,"phase":"booting"}`)))
	c := New(func(ctx context.Context) (net.Conn, error) {
		if dials++; dials < 4 {
			return nil, errors.New("not yet")
		}
		return agent.dial(ctx)
	})
	t.Cleanup(c.Close)
	st, err := c.WaitAgent(t.Context())
	if err != nil || st.Phase != agentapi.PhaseBooting || dials != 4 {
		t.Errorf("%+v, %v after %d dials", st, err, dials)
	}

	never := New(func(context.Context) (net.Conn, error) { return nil, errors.New("connection refused") })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = never.WaitAgent(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v, want the deadline and the last failure", err)
	}
	if _, err := newClient(t, answers("SSH-2.0-OpenSSH\r\n")).WaitAgent(t.Context()); !errors.Is(err, ErrAgent) {
		t.Errorf("something that is no agent: %v", err)
	}
}

// FuzzStream: no guest makes Run panic or hang, or give an exit that no
// process has.
func FuzzStream(f *testing.F) {
	f.Add([]byte(exitFrame(`{"code":3}`)))
	f.Add([]byte(raw(byte(agentapi.FrameStdout), 2, "hi") + raw(byte(agentapi.FrameStdinAck), 4, "\x00\x00\x00\x02")))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := newClient(t, answers(upgraded+string(in)))
		s, err := c.Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if exit, err := s.Run(ctx, Stdio{Stdin: strings.NewReader("in")}); err == nil && (exit.Code < 0 || exit.Code > 255) {
			t.Errorf("exit %+v", exit)
		}
	})
}

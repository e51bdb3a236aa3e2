package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
)

// guests are a guest for each carrier of the channel, and one to enter the
// container in.
var guests = map[string]func(*testing.T) *guest{
	"pipe":      func(t *testing.T) *guest { return newGuest(t, pipeCarrier) },
	"serial":    func(t *testing.T) *guest { return newGuest(t, serialCarrier) },
	"container": func(t *testing.T) *guest { return newContainerGuest(t, serialCarrier) },
}

func TestExecStreamsAreApartAndComplete(t *testing.T) {
	for name, guestOf := range guests {
		t.Run(name, func(t *testing.T) {
			g := guestOf(t)
			r := run(t, g.exec(t, sh("echo out; echo err >&2; seq 1 200000; exit 7")), nil)
			var want strings.Builder
			want.WriteString("out\n")
			for i := range 200000 {
				fmt.Fprintln(&want, i+1)
			}
			if r.out != want.String() {
				t.Errorf("stdout: %d bytes, want %d; it ends with %q", len(r.out), want.Len(), tail(r.out))
			}
			if r.err != "err\n" {
				t.Errorf("stderr: %q", r.err)
			}
			if r.exit != (agentapi.Exit{Code: 7}) {
				t.Errorf("exit: %+v, want code 7", r.exit)
			}
		})
	}
}

func TestExecExit(t *testing.T) {
	eachPlace(t, func(t *testing.T, g *guest) {
		for _, tc := range []struct {
			args   []string
			code   int
			failed bool
		}{
			{[]string{"true"}, 0, false},
			{[]string{"sh", "-c", "exit 255"}, 255, false},
			{[]string{"sh", "-c", "kill -TERM $$"}, 143, false},
			{[]string{"sh", "-c", "kill -KILL $$"}, 137, false},
			{[]string{"no-such-command"}, 127, true},
			{[]string{"/no/such/file"}, 127, true},
			{[]string{"/etc/passwd"}, 126, true},
			{[]string{"/etc"}, 126, true},
		} {
			r := run(t, g.exec(t, agentapi.ExecRequest{Args: tc.args}), nil)
			if r.exit.Code != tc.code || r.exit.Failed != tc.failed || (r.exit.Error != "") != tc.failed {
				t.Errorf("%q: %+v, want code %d, failed %v", tc.args, r.exit, tc.code, tc.failed)
			}
		}
	})
}

func TestExecSurroundings(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	req := sh(`echo "$A|$PATH|$PWD"; cat`)
	req.Env, req.WorkDir = []string{"A=b c\nd"}, "/usr"
	r := run(t, g.exec(t, req), strings.NewReader("not asked for"))
	if want := "b c\nd|" + guestPath + "|/usr\n"; r.out != want {
		t.Errorf("got %q, want %q", r.out, want)
	}
}

func TestExecRefuses(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	for _, tc := range []struct {
		req  agentapi.ExecRequest
		want string
	}{
		{agentapi.ExecRequest{Guest: true}, "no command"},
		{agentapi.ExecRequest{Args: []string{"true"}}, "not running"},
		{agentapi.ExecRequest{Args: []string{"true"}, Guest: true, User: "nobody"}, `"nobody"`},
	} {
		_, err := g.client.Exec(t.Context(), tc.req)
		var refused *agentapi.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: got %v, want an error with %s", tc.req, err, tc.want)
		}
	}
}

// noise is size bytes that look like nothing, the same for each seed.
func noise(seed byte, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

func TestStdinArrivesIntact(t *testing.T) {
	const size = 64 << 20
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, carrier)
			s := g.exec(t, agentapi.ExecRequest{Args: []string{"cat"}, Stdin: true})
			got, want := sha256.New(), sha256.New()
			_, _ = io.Copy(want, noise(1, size))
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			exit, err := s.Run(ctx, agentclient.Stdio{Stdin: noise(1, size), Stdout: got})
			if err != nil || exit.Code != 0 {
				t.Fatalf("exit %+v, %v", exit, err)
			}
			if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
				t.Error("other bytes came back")
			}
		})
	}
}

// Input that nobody reads holds neither a signal back nor the end.
func TestSignalOvertakesStdin(t *testing.T) {
	for name, guestOf := range guests {
		t.Run(name, func(t *testing.T) {
			g := guestOf(t)
			req := sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
			req.Stdin = true
			s := g.exec(t, req)
			out := newLines()
			type end struct {
				exit agentapi.Exit
				err  error
			}
			ended := make(chan end, 1)
			go func() {
				exit, err := s.Run(t.Context(), agentclient.Stdio{Stdin: noise(2, 64<<20), Stdout: out})
				ended <- end{exit, err}
			}()
			out.wait(t, "ready")
			time.Sleep(50 * time.Millisecond) // let the input fill all there is
			if err := s.Signal(int(unix.SIGTERM)); err != nil {
				t.Fatal(err)
			}
			select {
			case e := <-ended:
				if e.err != nil || e.exit.Code != 9 {
					t.Errorf("%+v", e)
				}
			case <-time.After(patience):
				t.Fatal("the signal did not arrive")
			}
		})
	}
}

func TestProcessThatClosesItsStdin(t *testing.T) {
	eachPlace(t, func(t *testing.T, g *guest) {
		req := sh("exec <&-; sleep 0.1; echo done")
		req.Stdin = true
		if r := run(t, g.exec(t, req), noise(3, 8<<20)); r.out != "done\n" || r.exit.Code != 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestExecTerminal(t *testing.T) {
	eachPlace(t, func(t *testing.T, g *guest) {
		req := sh("tty >/dev/null && stty size; read x; stty size; echo to-stderr >&2; exit 3")
		req.TTY, req.Stdin, req.Rows, req.Cols = true, true, 11, 22
		s := g.exec(t, req)
		out := newLines()
		stdin, typed := io.Pipe()
		sizes := make(chan agentclient.Size)
		ended := make(chan agentapi.Exit, 1)
		go func() {
			exit, err := s.Run(t.Context(), agentclient.Stdio{Stdin: stdin, Stdout: out, Resize: sizes})
			if err != nil {
				t.Error(err)
			}
			ended <- exit
		}()
		out.wait(t, "11 22")
		sizes <- agentclient.Size{Rows: 33, Cols: 44}
		sizes <- agentclient.Size{Rows: 33, Cols: 44} // the first was sent once this is taken
		if _, err := typed.Write([]byte("go\n")); err != nil {
			t.Fatal(err)
		}
		out.wait(t, "33 44")
		out.wait(t, "to-stderr\r\n") // a terminal has one stream
		if exit := <-ended; exit.Code != 3 {
			t.Errorf("exit %+v, want 3", exit)
		}
		_ = typed.Close()
	})
}

func TestTerminalControls(t *testing.T) {
	eachPlace(t, func(t *testing.T, g *guest) {
		req := agentapi.ExecRequest{Args: []string{"cat"}, TTY: true, Stdin: true}
		if r := run(t, g.exec(t, req), strings.NewReader("line\n")); r.exit.Code != 0 || !strings.Contains(r.out, "line\r\nline\r\n") {
			t.Errorf("end of input: %+v", r)
		}
		if r := run(t, g.exec(t, req), io.MultiReader(strings.NewReader("\x03"), never{t})); r.exit.Code != 130 {
			t.Errorf("Ctrl-C: %+v, want 130", r)
		}
	})
}

// never is an input that says nothing until the test ends.
type never struct{ t *testing.T }

func (n never) Read([]byte) (int, error) { <-n.t.Context().Done(); return 0, io.EOF }

func TestClosedStreamHangsUp(t *testing.T) {
	for name, script := range map[string]string{
		"quiet":                    "echo $$; exec sleep 1000",
		"in the middle of output":  "echo $$; exec yes",
		"deaf, but it has a pipe":  "trap '' HUP; echo $$; while echo more; do :; done",
		"with a child of its own":  "echo $$; sleep 1000; true",
		"that does not read stdin": "echo $$; exec sleep 1000",
	} {
		for _, tty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, terminal %v", name, tty), func(t *testing.T) {
				eachPlace(t, func(t *testing.T, g *guest) {
					req := sh(script)
					req.TTY, req.Stdin = tty, true
					s := g.exec(t, req)
					stdin := noise(4, 4<<20)
					if tty {
						stdin = never{t} // noise on a terminal is Ctrl-C, sooner or later
					}
					out := newLines()
					ended := make(chan error, 1)
					go func() {
						_, err := s.Run(t.Context(), agentclient.Stdio{Stdin: stdin, Stdout: out})
						ended <- err
					}()
					out.wait(t, "\n")
					_ = s.Close()
					if err := <-ended; !errors.Is(err, agentclient.ErrLost) {
						t.Errorf("got %v, want ErrLost", err)
					}
					pid, _, _ := strings.Cut(out.String(), "\n")
					eventually(t, "the end of the command", func() bool { return gone(pid) })
				})
			})
		}
	}
}

// What runs on in the background holds nobody who waits for the command.
func TestBackgroundProcessDoesNotHoldTheExit(t *testing.T) {
	eachPlace(t, func(t *testing.T, g *guest) {
		for _, script := range []string{
			"sleep 1000 & echo $!",
			"yes more & echo $! >&2; sleep 0.1",
		} {
			for _, tty := range []bool{false, true} {
				req := sh(script)
				req.TTY = tty
				r := run(t, g.exec(t, req), nil)
				if r.exit.Code != 0 {
					t.Errorf("%s: exit %+v", script, r.exit)
				}
				for field := range strings.FieldsSeq(r.out + " " + r.err) {
					var pid int
					if _, err := fmt.Sscanf(field, "%d", &pid); err == nil {
						_ = unix.Kill(pid, unix.SIGKILL)
					}
				}
			}
		}
	})
}

func TestManyExecsAtOnce(t *testing.T) {
	for name, guestOf := range guests {
		t.Run(name, func(t *testing.T) {
			g := guestOf(t)
			const many = 32
			done := make(chan string, many)
			for i := range many {
				req := sh(fmt.Sprintf("cat; echo %d >&2; exit %d", i, i))
				req.Stdin = true
				s := g.exec(t, req)
				go func() {
					in := strings.Repeat(fmt.Sprintf("line %d\n", i), 10000)
					r := run(t, s, strings.NewReader(in))
					if r.out != in || r.err != fmt.Sprintln(i) || r.exit.Code != i {
						done <- fmt.Sprintf("command %d: %d bytes of %d, %q, %+v", i, len(r.out), len(in), r.err, r.exit)
						return
					}
					done <- ""
				}()
			}
			for range many {
				if msg := <-done; msg != "" {
					t.Error(msg)
				}
			}
		})
	}
}

// A host that breaks the protocol loses its command, and nothing else.
func TestExecBadHosts(t *testing.T) {
	g := newGuest(t, pipeCarrier)
	window := agentapi.StdinWindow / agentapi.MaxFrame
	for name, frames := range map[string][]byte{
		"no frame":        []byte("hello, is anybody there?"),
		"a guest's frame": frame(t, agentapi.FrameStdout, []byte("x")),
		"short resize":    frame(t, agentapi.FrameResize, []byte{1}),
		"long signal":     frame(t, agentapi.FrameSignal, []byte{1, 2}),
		"over the window": bytes.Repeat(frame(t, agentapi.FrameStdin, make([]byte, agentapi.MaxFrame)), window+40),
	} {
		t.Run(name, func(t *testing.T) {
			req := agentapi.ExecRequest{Args: []string{"sleep", "1000"}, Stdin: true, Guest: true}
			conn := rawStream(t, g, agentapi.PathExec, req)
			go func() { _, _ = conn.Write(frames) }()
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Errorf("the connection is not ended: %v", err)
			}
		})
	}
	if r := run(t, g.exec(t, sh("echo fine")), nil); r.out != "fine\n" {
		t.Errorf("the next command: %+v", r)
	}
}

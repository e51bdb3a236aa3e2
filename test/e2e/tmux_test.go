package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tmux is a terminal with one command on it, as a person has it: what the
// command writes is drawn by a program that knows how.
type tmux struct {
	t      *testing.T
	socket string
}

// inTmux starts a command of fcvm's in a tmux of 80 columns and 24 lines.
func inTmux(t *testing.T, args ...string) *tmux {
	t.Helper()
	return newTmux(t, command(t.Context(), args...).Args...)
}

func newTmux(t *testing.T, program ...string) *tmux {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not there")
	}
	m := &tmux{t: t, socket: filepath.Join(t.TempDir(), "tmux")}
	// A session ends with its command; what was on its screen is wanted then, too.
	config := filepath.Join(t.TempDir(), "tmux.conf")
	if err := os.WriteFile(config, []byte("set -g remain-on-exit on\nset -g status off\nset -g default-terminal tmux-256color\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.do(append([]string{"-f", config, "new-session", "-d", "-x", "80", "-y", "24", "--"}, program...)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the screen at last:\n%s", m.screen())
		}
		_ = m.command("kill-server").Run()
	})
	return m
}

func (m *tmux) command(args ...string) *exec.Cmd {
	cmd := exec.Command("tmux", append([]string{"-S", m.socket}, args...)...)
	cmd.Env = append(command(m.t.Context()).Env, "TMUX=", "LC_ALL=C.UTF-8")
	return cmd
}

func (m *tmux) do(args ...string) string {
	m.t.Helper()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// keys presses keys, by their names in tmux(1).
func (m *tmux) keys(names ...string) { m.t.Helper(); m.do(append([]string{"send-keys"}, names...)...) }

// line types a line.
func (m *tmux) line(text string) { m.t.Helper(); m.do("send-keys", "-l", text); m.keys("Enter") }

// screen is what is to be seen; with flags as capture-pane has them.
func (m *tmux) screen(flags ...string) string {
	out, _ := m.command(append([]string{"capture-pane", "-p"}, flags...)...).Output()
	return string(out)
}

// see waits until the screen has all the texts.
func (m *tmux) see(texts ...string) {
	m.t.Helper()
	m.seeWith(nil, texts...)
}

// seeInTheEnd asks again and again until the screen has the text.
func (m *tmux) seeInTheEnd(text string, ask func()) {
	m.t.Helper()
	eventually(m.t, text+" on the screen", func() bool {
		ask()
		for range 20 {
			if strings.Contains(m.screen(), text) {
				return true
			}
			time.Sleep(50 * time.Millisecond)
		}
		return false
	})
}

// seeWith is see with the flags of capture-pane: with -e colours are seen.
func (m *tmux) seeWith(flags []string, texts ...string) {
	m.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		screen, missing := m.screen(flags...), ""
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				missing = text
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("no %q on the screen:\n%s", missing, m.screen(flags...))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// running waits until the foreground of the terminal is a process of that name.
func (m *tmux) running(box, args string) {
	m.t.Helper()
	eventually(m.t, args+" in "+box, func() bool {
		return strings.Contains(fcvm(m.t, "exec", box, "ps", "-ww", "-eo", "stat,args").stdout, "+ "+args) ||
			strings.Contains(fcvm(m.t, "exec", box, "ps", "-ww", "-eo", "stat,args").stdout, "+   "+args)
	})
}

// TestExecInTmux has a shell, an editor, a pager, and a terminal in the
// terminal, as a person has them. What is looked for is never what is typed:
// that is on the screen as well.
func TestExecInTmux(t *testing.T) {
	detach(t, []string{"--name", "desk", "--network", "none", "--mem", "768"}, "terminal", "sleep", "9999")
	for name, test := range map[string]func(*testing.T, *tmux){
		"size": tmuxSize, "keys": tmuxKeys, "colours": tmuxColours, "paste": tmuxPaste,
		"vim": tmuxVim, "top": tmuxTop, "less": tmuxLess, "tmux": tmuxTmux,
	} {
		t.Run(name, func(t *testing.T) {
			m := inTmux(t, "exec", "-it", "-e", "PS1=here$((1+1))> ", "desk", "bash", "--norc")
			m.see("here2>")
			test(t, m)
			// Before the prompt, the key would be the terminal's and not the shell's.
			eventually(t, "prompt at last", func() bool { return strings.HasSuffix(strings.TrimSpace(m.screen()), "here2>") })
			m.keys("C-d") // the shell's end is fcvm's, with its exit code
			eventually(t, "end of fcvm", func() bool {
				return strings.TrimSpace(m.do("list-panes", "-F", "#{pane_dead}")) == "1"
			})
		})
	}
	// No command is left, and the container's terminals are given back. Its first
	// process waits for no orphan: what was the tmux server's stays defunct.
	eventually(t, "the container's first process alone", func() bool {
		return fcvm(t, "exec", "desk", "sh", "-c", "ps -eo stat,comm | grep bash | grep -cv ^Z; ls /dev/pts").stdout == "0\nptmx\n"
	})
}

func tmuxSize(_ *testing.T, m *tmux) {
	m.line("stty size")
	m.see("24 80")
	m.do("resize-window", "-x", "101", "-y", "37")
	m.line(`until [ "$(stty size)" = '37 101' ]; do sleep 0.1; done; echo si""zed, $LINES $COLUMNS; tput cols`)
	m.see("sized, 37 101\n101\n")
}

func tmuxKeys(_ *testing.T, m *tmux) {
	m.line("sleep 1001")
	m.running("desk", "sleep 1001")
	m.keys("C-c")
	m.see("^C\nhere2>") // before that the terminal would show what is typed at once
	m.line("echo code $?")
	m.see("code 130\n")

	m.line("sleep 1002")
	m.running("desk", "sleep 1002")
	m.keys("C-z")
	m.see("Stopped")
	m.line("fg")
	m.running("desk", "sleep 1002")
	m.keys("C-c")
	m.see("sleep 1002\n^C\nhere2>")

	m.line(`cat; echo end of $((2+2)) input`)
	m.running("desk", "cat")
	m.line("one line")
	m.see("one line\none line\n") // as it was typed, and from cat
	m.keys("C-d")
	m.see("end of 4 input\n")

	m.line(`trap 'echo qu""it' QUIT; echo tr""apped; read`)
	m.see("trapped\n") // before that the shell ignores it
	m.keys(`C-\`)
	m.keys("Enter") // bash may run a trap only when read is over
	m.see("quit\n")
}

func tmuxColours(_ *testing.T, m *tmux) {
	m.line(`printf '\033[31mr%s\033[0m \033[1mb%s\033[0m \033[38;5;208mo%s\033[0m\n' ed old range`)
	m.seeWith([]string{"-e"}, "\x1b[31mred", "\x1b[1m", "\x1b[38;5;208morange")
	m.line(`touch /tmp/d; mkdir -p /tmp/colours/dir; ls --color=auto /tmp/colours`)
	m.seeWith([]string{"-e"}, "\x1b[1m\x1b[34mdir")
}

func tmuxPaste(t *testing.T, m *tmux) {
	// Lines of 80 bytes, each another: what is lost or comes twice shows.
	var text bytes.Buffer
	for i := 0; text.Len() < 100<<10; i++ {
		fmt.Fprintf(&text, "%079d\n", i)
	}
	m.line("cat >/tmp/pasted; echo all of $((1+1))")
	m.running("desk", "cat")
	load := m.command("load-buffer", "-")
	load.Stdin = bytes.NewReader(text.Bytes())
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("load-buffer: %v: %s", err, out)
	}
	m.do("paste-buffer")
	// Its echo is not waited for: when the terminal's reader falls behind, the guest's
	// kernel keeps the rest of it until the next key.
	m.keys("C-d")
	m.see("all of 2")
	fcvm(t, "exec", "desk", "sha256sum", "/tmp/pasted").want(t, 0, fmt.Sprintf("%x  /tmp/pasted\n", sha256.Sum256(text.Bytes())))
}

func tmuxVim(t *testing.T, m *tmux) {
	m.line("clear; vim -u NONE -N /tmp/letter")
	m.see("~\n~\n", `"/tmp/letter"`)
	m.keys("i")
	m.line("Dear VM,")
	m.do("send-keys", "-l", "bye")
	m.keys("Escape")
	m.do("resize-window", "-x", "60", "-y", "18")
	// An answer that comes before the new size is wrong, and drawn over.
	m.seeInTheEnd("lines 18 columns 60", func() { m.line(":echo 'lines' &lines 'columns' &columns") })
	m.keys("g", "g", "A")
	m.do("send-keys", "-l", " hello")
	m.keys("Escape")
	m.line(":wq")
	m.see("here2>")
	fcvm(t, "exec", "desk", "cat", "/tmp/letter").want(t, 0, "Dear VM, hello\nbye\n")
}

func tmuxTop(_ *testing.T, m *tmux) {
	m.line("top -d 1")
	m.see("load average:", "PID USER", "sleep")
	m.keys("c") // with the commands' arguments
	m.see("sleep 9999")
	m.do("resize-window", "-x", "70", "-y", "20")
	m.keys("1") // each CPU by itself, drawn at the new size
	m.see("%Cpu1")
	m.keys("q")
	m.see("here2>") // what is typed before is top's, and lost
	m.line("echo top ended with $?")
	m.see("top ended with 0\n")
}

func tmuxLess(_ *testing.T, m *tmux) {
	m.line("seq 1 1000 | less")
	m.see("1\n2\n3\n", "\n23\n:")
	m.keys("G")
	m.see("1000\n(END)")
	m.line("?^500$")
	m.see("500\n501\n")
	m.keys("q")
	m.see("here2>")
	m.line("echo less ended with $?")
	m.see("less ended with 0\n")
}

func tmuxTmux(_ *testing.T, m *tmux) {
	m.line("tmux -f /dev/null new-session -s inner bash --norc")
	m.see("[inner]")
	m.keys("C-b", "%")
	m.see("│")
	m.line("stty size")
	m.see("23 39")
	m.do("resize-window", "-x", "120", "-y", "30")
	m.line("clear; until [ $(stty size | cut -d ' ' -f 1) = 29 ]; do sleep 0.1; done; stty size")
	m.see("29 59")
	m.keys("C-b", "d")
	m.see("[detached (from session inner)]")
	m.line("tmux kill-server; echo tmux ended with $?")
	m.see("tmux ended with 0")
}

// top is stopped by Ctrl-Z, and the terminal the shell's; when it goes on it reads its
// keys again.
func TestTopIsStoppedAndGoesOn(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("bash is not there")
	}
	m := newTmux(t, "bash", "--norc", "-i")
	m.line(strings.Join(command(t.Context(), "top").Args, " "))
	m.see("CPU %")
	m.keys("C-z")
	m.see("Stopped")
	m.line("echo $((40 + 2))")
	m.see("42")
	m.line("fg")
	m.see("CPU %")
	m.keys("q")
	m.line("echo $((40 + 3))")
	m.see("42", "43")
}

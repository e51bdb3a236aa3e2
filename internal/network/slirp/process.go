package slirp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/netns"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// Limits of what is waited for, and read.
const (
	startTimeout = 30 * time.Second
	callTimeout  = 10 * time.Second
	maxAnswer    = 64 << 10 // bytes
	maxMessages  = 16 << 10 // bytes of what the program says
)

// process is one slirp4netns.
type process struct {
	*launch.Process
	dir  *os.File // holds the API socket
	exit *os.File // slirp4netns ends when it is closed
	log  *os.File
}

// hardening are the options by which the program, which reads what a guest sends,
// confines itself: to an empty file system, and to the system calls that it needs.
var hardening = []string{"--enable-sandbox", "--enable-seccomp"}

// hardened returns those that a program knows.
func hardened(ctx context.Context, path string) []string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	help, err := exec.CommandContext(ctx, path, "--help").CombinedOutput()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(hardening), func(option string) bool { return !bytes.Contains(help, []byte(option)) })
}

// start starts the program for the namespace of the VMM, process pid, whose
// directory and control group it shares, and returns when the guest has a
// network. Where the host does not let it confine itself (mounts are forbidden in
// many containers), it does so less.
func (a *attachment) start(ctx context.Context, pid int, beside vmm.Command) (*process, error) {
	for options := a.hardened; ; options = options[1:] {
		p, err := startWith(ctx, a.program, options, pid, beside)
		if err == nil || len(options) == 0 || ctx.Err() != nil {
			return p, err
		}
	}
}

func startWith(ctx context.Context, program string, options []string, pid int, beside vmm.Command) (_ *process, err error) {
	dir := beside.Dir
	p := &process{}
	defer func() {
		if err != nil {
			_ = p.close()
		}
	}()
	if p.dir, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("open the VM's directory: %w", err)
	}
	_ = os.Remove(filepath.Join(dir, socketName)) // of an earlier start
	// Its messages are read if it does not start: a file without a name.
	if p.log, err = os.CreateTemp(dir, "slirp-"); err != nil {
		return nil, fmt.Errorf("keep messages of %s: %w", program, err)
	}
	_ = os.Remove(p.log.Name())
	exitRead, exitWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.exit = exitWrite
	defer func() { _ = exitRead.Close() }()
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = readyRead.Close() }()

	ns := "/proc/" + strconv.Itoa(pid) + "/ns/"
	cmd := exec.Command(program,
		"--mtu", strconv.Itoa(mtu), "--exit-fd", "3", "--ready-fd", "4",
		"--api-socket", socketName, "--netns-type", "path")
	cmd.Args = append(cmd.Args, options...)
	if !netns.Privileged() {
		cmd.Args = append(cmd.Args, "--userns-path", ns+"user")
	}
	cmd.Args = append(cmd.Args, ns+"net", netns.UplinkName)
	cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = dir, []*os.File{exitRead, readyWrite}, p.log, p.log
	p.Process, err = launch.Start(cmd, launch.Attr(beside))
	_ = readyWrite.Close()
	if err != nil {
		return nil, err
	}
	limit := time.Now().Add(startTimeout)
	_ = readyRead.SetReadDeadline(limit)
	stop := context.AfterFunc(ctx, func() { _ = readyRead.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.ReadFull(readyRead, make([]byte, 1)); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("start %s: it does not get ready: %s", program, p.messages())
	}
	return p, nil
}

// messages is the end of what the program has said.
func (p *process) messages() string {
	b := make([]byte, maxMessages)
	n, _ := p.log.ReadAt(b, 0)
	text := strings.Join(strings.Fields(string(b[:n])), " ")
	if text == "" {
		return "it says nothing"
	}
	return strconv.Quote(text)
}

// close ends the program, which gives the ports back.
func (p *process) close() error {
	if p.exit != nil {
		_ = p.exit.Close()
	}
	if p.Process != nil {
		_ = p.Signal(syscall.SIGKILL)
		p.Wait()
	}
	var err error
	if p.dir != nil {
		err = os.Remove(socketPath(p.dir))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		_ = p.dir.Close()
	}
	if p.log != nil {
		_ = p.log.Close()
	}
	return err
}

// call is a request of the API, and its answer.
type (
	call struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments"`
	}
	answer struct {
		Return struct {
			ID int `json:"id"`
		} `json:"return"`
		Error *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
)

// forward opens a port, and returns its number for remove.
func (p *process) forward(ctx context.Context, port network.Port) (int, error) {
	a, err := p.call(ctx, call{"add_hostfwd", map[string]any{
		"proto": port.Protocol, "host_addr": port.HostIP.String(), "host_port": port.HostPort,
		"guest_addr": netip.MustParsePrefix(network.GuestAddress).Addr().String(), "guest_port": port.GuestPort,
	}})
	if err != nil {
		return 0, fmt.Errorf("have %s open the port: %w", program, err)
	}
	return a.Return.ID, nil
}

// remove closes a port.
func (p *process) remove(id int) error {
	_, err := p.call(context.Background(), call{"remove_hostfwd", map[string]any{"id": id}})
	if err != nil {
		return fmt.Errorf("have %s close the port: %w", program, err)
	}
	return nil
}

// call makes one request, for which the API wants a connection of its own.
func (p *process) call(ctx context.Context, c call) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socketPath(p.dir))
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(c); err != nil {
		return answer{}, err
	}
	_ = conn.(*net.UnixConn).CloseWrite()
	var a answer
	if err := json.NewDecoder(io.LimitReader(conn, maxAnswer)).Decode(&a); err != nil {
		return answer{}, fmt.Errorf("read its answer: %w", err)
	}
	if a.Error != nil {
		return answer{}, fmt.Errorf("it says %q", a.Error.Desc)
	}
	return a, nil
}

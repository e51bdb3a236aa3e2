// Command guest is process 1 of the machines that package vmmtest boots. It
// serves, on the agent channel, the agent's status and what the suite asks of
// a guest: see the handlers.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/serialmux"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vsocklink"
)

const (
	modules = "/lib/modules"
	retry   = 5 * time.Millisecond

	balloonModule = "virtio_balloon.ko" // the agent loads it, too
)

func main() {
	if os.Getpid() != 1 {
		log.Fatal("this is the first process of a VM, for tests")
	}
	if err := run(); err != nil {
		log.Print(err)
		reset()
	}
}

func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		err := unix.Mount(m[0], m[1], m[0], 0, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	g := &guest{}
	go g.tick()
	srv := &http.Server{Handler: g.handler(), ReadHeaderTimeout: time.Minute}
	return srv.Serve(l)
}

// loadModules loads what the list in the initramfs names, in its order.
func loadModules() error {
	list, err := os.ReadFile(modules + "/boot.list")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range append(strings.Fields(string(list)), balloonModule) {
		f, err := os.Open(filepath.Join(modules, name))
		if errors.Is(err, fs.ErrNotExist) && name == balloonModule {
			continue // built in
		}
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// listen waits for the channel that the kernel's command line names.
func listen() (net.Listener, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(cmdline), agentapi.ParamChannel+"=serial") {
		return serialmux.Listen(serialmux.OpenPort(vmm.AgentSerialName)), nil
	}
	for {
		l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, vmm.AgentPort, nil)
		if err == nil {
			return vsocklink.Listen(l), nil
		}
		time.Sleep(retry)
	}
}

// guest is what changes while the machine runs.
type guest struct {
	ticks   atomic.Int64
	pattern pattern
}

// tick counts for as long as the guest's CPUs run.
func (g *guest) tick() {
	for range time.Tick(5 * time.Millisecond) {
		g.ticks.Add(1)
	}
}

// reset ends the machine, as the agent does.
func reset() {
	unix.Sync()
	log.Print(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

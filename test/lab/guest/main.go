// Command guest is the first process of the lab: it makes a KVM host of the
// machine, runs one job in it and reports its output and its end.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/serialmux"
	"github.com/fcvm/fcvm/test/lab/labapi"
)

const (
	modules       = "/lib/modules"
	deviceTimeout = 30 * time.Second
	failedCode    = 125
)

func main() {
	if os.Getpid() != 1 {
		log.Fatal("this is the first process of the lab; run the lab with: go run ./test/lab")
	}
	if err := run(); err != nil {
		log.Print(err) // on the console
	}
	// The host ends the machine once it has the exit.
	time.Sleep(5 * time.Second)
	log.Print(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

func run() error {
	if err := mountAll(early); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	out := &output{w: agentapi.NewFrameWriter(port)}
	go out.beat()
	code, err := runJob(out)
	if err != nil {
		return out.exit(agentapi.Exit{Code: failedCode, Error: err.Error(), Failed: true})
	}
	return out.exit(agentapi.Exit{Code: code})
}

// loadModules loads what the list in the initramfs names, in its order.
func loadModules() error {
	list, err := os.ReadFile(modules + "/list")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open(filepath.Join(modules, name))
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

func openPort() (io.Writer, error) {
	var port io.Writer
	err := wait(func() (err error) {
		port, err = serialmux.OpenPort(labapi.PortName)()
		return err
	})
	return port, err
}

// wait tries until it works: devices come when the kernel finds them.
func wait(try func() error) error {
	deadline := time.Now().Add(deviceTimeout)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func readJob() (labapi.Job, error) {
	var j labapi.Job
	b, err := os.ReadFile(filepath.Join(labapi.PayloadDir, labapi.JobFile))
	if err != nil {
		return j, err
	}
	if err := json.Unmarshal(b, &j); err != nil {
		return j, fmt.Errorf("read the job: %w", err)
	}
	return j, nil
}

// output is the way to the host. It is safe for concurrent use.
type output struct {
	mu sync.Mutex
	w  *agentapi.FrameWriter
}

func (o *output) write(t agentapi.FrameType, p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(t, p)
}

// say tells the person on the host how far the lab is.
func (o *output) say(j labapi.Job, what string) {
	if !j.Verbose {
		return
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return
	}
	line := fmt.Sprintf("lab: %7.2f s: %s\n", float64(now.Nano())/1e9, what)
	_ = o.write(agentapi.FrameStderr, []byte(line)) // the exit frame will fail, too
}

// beat tells the host that the lab lives, as long as it does.
func (o *output) beat() {
	for o.write(agentapi.FrameStderr, nil) == nil {
		time.Sleep(labapi.Beat)
	}
}

func (o *output) exit(e agentapi.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return o.write(agentapi.FrameExit, b)
}

// copyFrames passes on what a job writes, until nobody can write any more.
func (o *output) copyFrames(t agentapi.FrameType, r io.Reader) {
	b := make([]byte, agentapi.MaxFrame)
	for {
		n, err := r.Read(b)
		if n > 0 && o.write(t, b[:n]) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// errBooting: a guest that is not up has nothing yet that could be its own.
var errBooting = errors.New("the guest is not up yet")

// restorer makes this guest, which was loaded from a snapshot, a machine of its
// own. Processes of the snapshot run meanwhile; whoever started it from outside
// waits.
type restorer struct {
	agent  *agent
	root   string // of the guest's files
	reseed func([]byte) error

	mu   sync.Mutex
	last agentapi.RestoreResponse // of what was done last
}

// postRestore answers for the clock while the rest is done.
func (a *agent) postRestore(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	var req agentapi.RestoreRequest
	if !decode(w, r, &req) {
		return
	}
	if err := checkRestore(&req); err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	a.serveClock(w, r, &req.ClockSync, arrived, func(ctx context.Context) *agentapi.RestoreResponse {
		resp, err := a.restorer.restore(ctx, &req)
		if err != nil {
			resp = agentapi.RestoreResponse{Epoch: req.Epoch, Error: err.Error()}
		}
		return &resp
	})
}

// restore does all that the request asks for, unless it was done before.
func (r *restorer) restore(ctx context.Context, req *agentapi.RestoreRequest) (agentapi.RestoreResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.Epoch == req.Epoch {
		return r.last, nil
	}
	began := time.Now()
	n, err := r.become(ctx, req)
	if err != nil {
		return agentapi.RestoreResponse{}, err
	}
	r.last = agentapi.RestoreResponse{Epoch: req.Epoch, Took: time.Since(began), Reset: n}
	return r.last, nil
}

func checkRestore(req *agentapi.RestoreRequest) error {
	if err := checkSync(&req.ClockSync); err != nil {
		return err
	}
	switch {
	case len(req.Entropy) < agentapi.MinEntropy || len(req.Entropy) > agentapi.MaxEntropy:
		return fmt.Errorf("%d bytes of entropy, want %d to %d", len(req.Entropy), agentapi.MinEntropy, agentapi.MaxEntropy)
	case req.MachineID != "" && !machineIDPattern.MatchString(req.MachineID):
		return fmt.Errorf("machine id %q is not 32 hexadecimal digits", req.MachineID)
	case strings.ContainsAny(req.Hostname, " \t\r\n#\x00"):
		return fmt.Errorf("hostname %q", req.Hostname)
	}
	for _, line := range req.Hosts {
		if strings.ContainsAny(line, "\r\n\x00") {
			return fmt.Errorf("%q is no line for hosts", line)
		}
	}
	for _, kv := range req.Env {
		if !strings.Contains(kv, "=") || strings.Contains(kv, "\x00") {
			return fmt.Errorf("%q is no environment variable", kv)
		}
	}
	return nil
}

// become returns how many TCP connections were reset. Each step may be done
// again after one that failed.
func (r *restorer) become(ctx context.Context, req *agentapi.RestoreRequest) (reset int, err error) {
	st := r.agent.state
	if !st.isUp() {
		return 0, errBooting
	}
	if err := r.reseed(req.Entropy); err != nil {
		return 0, err
	}
	id := &renaming{name: req.Hostname, machineID: req.MachineID, hosts: req.Hosts}
	id.was(st.hostname())
	old := st.network()
	if n := req.Network; n != nil && old != nil && resolvConf(n) != resolvConf(old) {
		text := resolvConf(n)
		id.resolv = &text
	}
	local, err := localAddresses()
	if err != nil {
		return 0, err
	}
	var both errgroup.Group
	both.Go(func() error {
		if err := r.rename(id); err != nil {
			return err
		}
		if err := r.agent.container.rename(ctx, id); err != nil {
			return fmt.Errorf("in the container: %w", err)
		}
		return nil
	})
	both.Go(func() error { return r.reconnect(old, req.Network) })
	if err := both.Wait(); err != nil {
		return 0, err
	}
	// What went over the old network ends last: those who connect again do so over
	// the new one, and find the new names.
	if reset, err = resetTCP(local); err != nil {
		return 0, err
	}
	st.restored(req)
	return reset, nil
}

// rename gives the guest around the container its new identity.
func (r *restorer) rename(id *renaming) error {
	old, err := renameHere(id.name)
	if err != nil {
		return err
	}
	id.was(old)
	root, err := openTree(r.root)
	if err != nil {
		return err
	}
	defer func() { _ = root.close() }()
	if err := id.netFiles(root, "etc/"); err != nil {
		return err
	}
	if id.machineID == "" {
		return nil
	}
	return r.setMachineID(root, id)
}

// setMachineID makes sure that programs read the new id, wherever the guest's
// systemd has put it.
func (r *restorer) setMachineID(root *tree, id *renaming) error {
	path := filepath.Join(r.root, machineIDs[0])
	old := strings.TrimSpace(readFile(path))
	if old == id.machineID {
		return nil
	}
	if err := id.machineIDFiles(root); err != nil {
		return err
	}
	if strings.TrimSpace(readFile(path)) != id.machineID {
		if err := replaceFile(path, id.machineID+"\n"); err != nil {
			return fmt.Errorf("change the machine id: %w", err)
		}
	}
	// The journal goes on where it is; its reader looks for the machine's id.
	journal := filepath.Join(r.root, "run/log/journal")
	if _, err := os.Stat(filepath.Join(journal, old)); err == nil && old != "" {
		err := os.Symlink(old, filepath.Join(journal, id.machineID))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("rename the journal: %w", err)
		}
	}
	return nil
}

// reconnect gives the guest its network.
func (r *restorer) reconnect(old, n *agentapi.Network) error {
	if old != nil && n != nil {
		if err := changeNetwork(old, n); err != nil {
			return err
		}
	}
	if err := forgetNeighbours(); err != nil {
		return err
	}
	if n == nil {
		n = old
	}
	if n != nil {
		// To close its socket takes the kernel up to 20 ms.
		go func() {
			if err := announce(n.Interface, n.Address); err != nil {
				r.agent.log.Warn("announce the guest", "error", err)
			}
		}()
	}
	return nil
}

// rename gives a container that runs its new identity. One that does not has
// none to change.
func (c *container) rename(ctx context.Context, guest *renaming) error {
	if err := c.settle(ctx); err != nil {
		return err
	}
	root, pidfd, err := c.enter()
	if errors.Is(err, errNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.close() }()
	defer func() { _ = unix.Close(pidfd) }()
	id := *guest
	// It has a UTS namespace of its own, with a name that it may have changed.
	old, err := hostnameIn(pidfd, id.name)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has just ended
	}
	if err != nil {
		return err
	}
	id.was(old)
	if err := c.renameFiles(&id); err != nil {
		return err
	}
	return id.machineIDFiles(root)
}

// renameFiles changes the files that Podman has made for the container. They
// are mounted there, and changed from outside, where no link of the container's
// leads anywhere, and its root may be read-only.
func (c *container) renameFiles(id *renaming) error {
	name, err := c.engine.id()
	if err != nil {
		return err
	}
	dir, err := openTree(c.engine.userFiles(name))
	if err != nil {
		return fmt.Errorf("find Podman's files: %w", err)
	}
	defer func() { _ = dir.close() }()
	return id.netFiles(dir, "")
}

// settle waits for a container that is being started.
func (c *container) settle(ctx context.Context) error {
	c.mu.Lock()
	started := c.started
	c.mu.Unlock()
	if !started {
		return nil
	}
	select {
	case <-c.watched:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the container to start: %w", ctx.Err())
	}
}

// ownMachineID gives a guest that has no machine id one. A guest root comes
// without; systemd makes one itself.
func ownMachineID(path string) error {
	if strings.TrimSpace(readFile(path)) != "" {
		return nil
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // it does not fail
	// As systemd makes them: a UUID of version 4.
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return replaceFile(path, hex.EncodeToString(id)+"\n")
}

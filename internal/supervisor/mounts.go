package supervisor

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/share"
	"github.com/fcvm/fcvm/internal/vm"
)

// sharePause is the time between two tries to reach a guest again to which the
// connection of a share was lost.
const sharePause = 200 * time.Millisecond

// troubleEvery is how often at most a share's troubles are told.
const troubleEvery = time.Minute

// planMounts tells the guest where shares and disks go.
func (in *instance) planMounts() []agentapi.Mount {
	var mounts []agentapi.Mount
	disk := agentapi.DiskVolumes
	for i, m := range in.Spec.Mounts {
		p := agentapi.Mount{Target: m.Target, ReadOnly: m.ReadOnly}
		switch {
		case m.Kind == vm.MountShare:
			p.Share, p.File = shareName(i), m.File
		case m.OnDisk():
			p.Disk = disk
			disk++
			volume := m.Kind == vm.MountVolume && !m.ReadOnly
			p.Own, p.Seed = volume || m.Kind == vm.MountBlock, volume && !m.NoCopy
		default:
			continue
		}
		mounts = append(mounts, p)
	}
	return mounts
}

// shareName is what a share is called between host and guest.
func shareName(i int) string { return strconv.Itoa(i) }

// anonymousVolumes are the image's, but for those that something is mounted at,
// and those that were asked for: each place once, however it is written.
func (in *instance) anonymousVolumes() []agentapi.Volume {
	taken := map[string]bool{}
	for _, t := range in.tmpfs() {
		dir, _, _ := strings.Cut(t, ":")
		taken[path.Clean(dir)] = true
	}
	var asked []agentapi.Volume
	for _, m := range in.Spec.Mounts {
		dir := path.Clean(m.Target)
		if m.Kind == vm.MountAnonymous && !taken[dir] {
			asked = append(asked, agentapi.Volume{Target: dir, NoCopy: m.NoCopy})
		}
		taken[dir] = true
	}
	var all []agentapi.Volume
	for _, v := range in.image.Config.Volumes {
		if dir := path.Join("/", v); !taken[dir] {
			taken[dir] = true
			all = append(all, agentapi.Volume{Target: dir})
		}
	}
	return append(all, asked...)
}

func (in *instance) tmpfs() []string {
	all := slices.Clone(in.Spec.Container.Tmpfs)
	for _, m := range in.Spec.Mounts {
		if m.Kind != vm.MountTmpfs {
			continue
		}
		if m.Options != "" {
			all = append(all, m.Target+":"+m.Options)
		} else {
			all = append(all, m.Target)
		}
	}
	return all
}

// serveShares serves the live shares of a guest that is ready, for as long as
// this boot lasts. It is called again after a restore.
func (in *instance) serveShares(ctx context.Context) error {
	for i, m := range in.Spec.Mounts {
		if m.Kind != vm.MountShare {
			continue
		}
		if err := in.serveShare(ctx, i, m); err != nil {
			return err
		}
	}
	return nil
}

// checkShares refuses shares that cannot be served, before anything is started.
func checkShares(mounts []vm.Mount) error {
	for _, m := range mounts {
		if m.Kind != vm.MountShare {
			continue
		}
		s, err := openShare(m, nil)
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func openShare(m vm.Mount, trouble func(error)) (*share.Share, error) {
	s, err := share.Open(m.Source, share.Options{ReadOnly: m.ReadOnly, Trouble: trouble})
	if err != nil {
		return nil, err
	}
	if s.IsFile() != m.File {
		return nil, errors.Join(fmt.Errorf("share %s: it was a file, or a directory, when it was asked for, and is no more", m.Source), s.Close())
	}
	return s, nil
}

func (in *instance) serveShare(ctx context.Context, i int, m vm.Mount) error {
	s, err := openShare(m, in.shareTrouble(m))
	if err != nil {
		return err
	}
	wait, cancelWait := untilDone(ctx, in.machine, startTimeout)
	defer cancelWait()
	conn, err := in.agent.Share(wait, shareName(i))
	if err != nil {
		return errors.Join(in.guestError(ctx, err), s.Close())
	}
	serve, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var served sync.WaitGroup
	served.Go(func() {
		for {
			_ = s.Serve(conn) // whatever ended it, the guest may be there again
			for conn = nil; conn == nil; {
				select {
				case <-serve.Done():
					return
				case <-in.machine.Done():
					return
				case <-time.After(sharePause):
				}
				conn, _ = in.agent.Share(serve, shareName(i))
			}
		}
	})
	in.undo.add("end the share of "+m.Source, func(context.Context) error {
		cancel()
		err := s.Close()
		served.Wait()
		return err
	})
	return nil
}

// shareTrouble tells of what the guest cannot be told.
func (in *instance) shareTrouble(m vm.Mount) func(error) {
	var (
		mu   sync.Mutex
		last time.Time
	)
	return func(err error) {
		mu.Lock()
		now := time.Now()
		due := now.Sub(last) > troubleEvery
		if due {
			last = now
		}
		mu.Unlock()
		if due {
			in.warn(fmt.Sprintf("%v: the container has an input/output error; make room there (it is mounted at %s)", err, m.Target), now)
		}
	}
}

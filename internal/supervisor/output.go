package supervisor

import (
	"context"
	"io"
	"time"

	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/vm"
)

// Bounds on what a guest can write by way of its console and its VMM, bytes of
// each, and how often they are looked at.
const (
	consoleKept = 4 << 20
	trimPause   = 2 * time.Second
)

// openOutput says where the container's stdout and stderr go.
func (in *instance) openOutput() error {
	out, errs := in.Stdio.Out, in.Stdio.Err
	if in.Spec.Logs != vm.LogsStream {
		log, err := logs.Create(in.vm.Dir().ContainerLog(), int64(in.Spec.LogMiB)<<20)
		if err != nil {
			return err
		}
		in.undo.add("close the log", func(context.Context) error { return in.closeLog(log) })
		toFile, errsToFile := log.Stream(logs.Stdout), log.Stream(logs.Stderr)
		if in.Spec.Logs == vm.LogsBoth {
			out, errs = io.MultiWriter(out, toFile), io.MultiWriter(errs, errsToFile)
		} else {
			out, errs = toFile, errsToFile
		}
	}
	in.out, in.err = in.watchOutput(out), in.watchOutput(errs)
	return nil
}

// closeLog remembers what the log could not take.
func (in *instance) closeLog(log *logs.Writer) error {
	err := log.Close()
	if lost, _ := log.Lost(); lost > 0 {
		if in.vm.Update(func(r *vm.Record) error { r.LogLost += lost; return nil }) != nil {
			in.later(func(r *vm.Record) { r.LogLost += lost })
		}
	}
	return err
}

// boundConsole keeps the console and the VMM's messages from filling the disk,
// until ctx ends.
func (in *instance) boundConsole(ctx context.Context) {
	tick := time.NewTicker(trimPause)
	defer tick.Stop()
	full := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		full = in.watchRoom(full)
		for _, path := range []string{in.vm.Dir().Console(), in.vm.Dir().VMMLog()} {
			if err := logs.Trim(path, consoleKept); err != nil {
				in.Verbose(err.Error())
			}
		}
	}
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
)

// cloneOfEnv and cloneNumberEnv tell a clone command that it is one of several, or
// the one in the background: which snapshot it starts from, and its number.
const (
	cloneOfEnv     = "FCVM_CLONE_OF"
	cloneNumberEnv = "FCVM_CLONE_NUMBER"
)

// clonesAtOnce bounds how many are started side by side.
const clonesAtOnce = 32

// startClones starts a supervisor for each clone, and prints in order what comes
// of each: its id, or the output of its command. One that fails does not keep
// the others from starting; the first failure is the command's.
func (a *app) startClones(ctx context.Context, o *cloneOptions, id string) error {
	results := make([]cloneResult, o.count)
	done := sideBySide(o.count, clonesAtOnce, func(i int) {
		r := &results[i]
		if ctx.Err() != nil {
			r.err = context.Cause(ctx)
			return
		}
		env := []string{cloneOfEnv + "=" + id, cloneNumberEnv + "=" + strconv.Itoa(i+1)}
		if o.detach {
			r.id, r.err = startDetached(ctx, "the VM", a.again(env...))
		} else {
			r.out, r.err = a.runAgain(ctx, env...)
		}
	})
	defer allDone(done)
	var failed error
	count := 0
	for i := range results {
		<-done[i]
		r := &results[i]
		if err := r.print(a.sys.Stdout); err != nil {
			return err
		}
		if r.err != nil {
			count++
			if failed == nil {
				failed = r.err
			}
		}
	}
	if count > 0 && o.count > 1 {
		_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: %d of %d clones failed\n", count, o.count)
	}
	return failed
}

// cloneResult is what comes of one clone.
type cloneResult struct {
	id  string
	out *os.File // what its command has written; it has no name any more
	err error
}

func (r *cloneResult) print(w io.Writer) error {
	if r.id != "" {
		_, err := fmt.Fprintln(w, r.id)
		return err
	}
	if r.out == nil {
		return nil
	}
	defer func() { _ = r.out.Close() }()
	if _, err := r.out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := io.Copy(w, r.out)
	return err
}

// runAgain runs this program again to its end, and returns what it has written
// to its stdout, in a file without a name.
func (a *app) runAgain(ctx context.Context, env ...string) (*os.File, error) {
	out, err := os.CreateTemp("", "fcvm-clone-*")
	if err != nil {
		return nil, fmt.Errorf("start a clone: %w", err)
	}
	_ = os.Remove(out.Name())
	cmd := a.again(env...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Start(); err != nil {
		return out, fmt.Errorf("start a clone: %w", err)
	}
	defer passSignals(ctx, cmd.Process)()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return out, exitStatus(exit.ExitCode())
	}
	return out, err
}

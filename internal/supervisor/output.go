package supervisor

import (
	"io"

	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/vm"
)

// outputs returns where the container's stdout and stderr go.
func outputs(where vm.Logs, stdio Stdio, path string) (out, err io.Writer, closeLog func() error, e error) {
	if where == vm.LogsStream {
		return stdio.Out, stdio.Err, func() error { return nil }, nil
	}
	log, e := logs.Create(path)
	if e != nil {
		return nil, nil, nil, e
	}
	out, err = log.Stream(logs.Stdout), log.Stream(logs.Stderr)
	if where == vm.LogsBoth {
		out, err = io.MultiWriter(stdio.Out, out), io.MultiWriter(stdio.Err, err)
	}
	return out, err, log.Close, nil
}

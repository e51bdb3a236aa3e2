package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/treecopy"
)

// Dir implements treecopy.View: what the container sees.
func (t *tree) Dir(path string) (*os.Root, error) {
	f, err := t.open(path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// copyOf opens the container's tree for a request; nil: it was answered.
func (a *agent) copyOf(w http.ResponseWriter, r *http.Request) (agentapi.CopyRequest, *tree) {
	req := agentapi.ParseCopyRequest(r.URL.Query())
	if len(req.Path) > agentapi.MaxPath {
		replyError(w, http.StatusBadRequest, fmt.Errorf("path of more than %d bytes", agentapi.MaxPath))
		return req, nil
	}
	root, err := a.container.openRoot()
	if err != nil {
		replyError(w, http.StatusConflict, err)
		return req, nil
	}
	return req, root
}

func (a *agent) getCopyOut(w http.ResponseWriter, r *http.Request) {
	req, root := a.copyOf(w, r)
	if root == nil {
		return
	}
	defer func() { _ = root.close() }()
	src, err := treecopy.Open(root, absolute(req.Path), treecopy.PackOptions{Follow: req.Follow, Sparse: req.Sparse})
	if err != nil {
		replyError(w, copyStatus(err), plain(err, req.Path))
		return
	}
	defer func() { _ = src.Close() }()
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", agentapi.TrailerError)
	if err := src.Pack(w); err != nil {
		w.Header().Set(agentapi.TrailerError, trailer(err))
	}
}

// maxTrailer bounds what comes behind a body, bytes. The peer takes 4 KiB, and a
// path may have as many.
const maxTrailer = 2 << 10

// trailer is an error as the value of a header.
func trailer(err error) string {
	text := printable(err.Error())
	if len(text) > maxTrailer {
		text = text[:maxTrailer/2] + "…" + text[len(text)-maxTrailer/2:]
	}
	return text
}

func (a *agent) postCopyIn(w http.ResponseWriter, r *http.Request) {
	req, root := a.copyOf(w, r)
	if root == nil {
		return
	}
	defer func() { _ = root.close() }()
	// An early answer must not wait for the rest of the stream.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		replyError(w, http.StatusInternalServerError, err)
		return
	}
	var done agentapi.CopyResponse
	err := treecopy.Unpack(root, r.Body, absolute(req.Path), treecopy.UnpackOptions{
		Archive: req.Archive, Extract: req.Extract,
		Skipped: func(name, why string) {
			if len(done.Skipped) < agentapi.MaxSkipped {
				done.Skipped = append(done.Skipped, name+": "+why)
			}
		},
	})
	if err != nil {
		replyError(w, copyStatus(err), plain(err, req.Path))
		_ = http.NewResponseController(w).Flush()
	} else {
		reply(w, http.StatusOK, done)
	}
	// The peer reads the answer when it has sent all, or stops to send.
	_, _ = io.Copy(io.Discard, r.Body)
}

// absolute makes a path of the container's root, as people expect it.
func absolute(path string) string {
	if path == "" || path[0] != '/' {
		return "/" + path
	}
	return path
}

func copyStatus(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return http.StatusNotFound
	}
	return http.StatusConflict
}

// plain names the path that was asked for where the error names a descriptor.
func plain(err error, path string) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("%s: %w", path, p.Err)
	}
	return err
}

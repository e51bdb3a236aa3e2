package share

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/sftp"
)

const (
	// maxOpen is how many files a guest may have open at a time. Each is a
	// descriptor of the supervisor's.
	maxOpen = 4096

	namesAtOnce = 128 // of a directory that is read; they fit into a packet

	buffer = 64 << 10 // bytes
)

var (
	errHandle = errors.New("no such handle")
	errMany   = errors.New("too many files are open")
)

// session is one client's connection.
type session struct {
	*Share
	files map[string]*openFile
	next  uint64
	out   *bufio.Writer
	reply []byte // used again and again
}

// openFile is one that the client has open.
type openFile struct {
	fd  int
	dir *os.File // of a directory; nil: a file
	end bool     // all of the directory was read
}

func newSession(s *Share) *session { return &session{Share: s, files: map[string]*openFile{}} }

func (c *session) close() {
	for _, f := range c.files {
		f.close()
	}
}

func (f *openFile) close() {
	if f.dir != nil {
		_ = f.dir.Close()
		return
	}
	_ = unix.Close(f.fd)
}

func (c *session) serve(conn io.ReadWriter) error {
	in := bufio.NewReaderSize(conn, buffer)
	c.out = bufio.NewWriterSize(conn, buffer)
	var b []byte
	for {
		if in.Buffered() == 0 {
			if err := c.out.Flush(); err != nil {
				return err
			}
		}
		var err error
		if b, err = sftp.ReadPacket(in, b); err != nil {
			return err
		}
		if err := c.handle(b); err != nil {
			return err
		}
	}
}

// send sends an answer. Its buffer serves the next one.
func (c *session) send(p *sftp.Packet) error {
	c.reply = p.Bytes()
	_, err := c.out.Write(c.reply)
	return err
}

func (c *session) packet(t sftp.Type, id uint32) *sftp.Packet { return sftp.NewPacket(c.reply, t, id) }

// handle answers one request. An error ends the connection.
func (c *session) handle(b []byte) error {
	t, id, r := sftp.Parse(b)
	switch t {
	case sftp.Init:
		return c.sendVersion()
	case sftp.Open:
		return c.openFile(id, r)
	case sftp.Opendir:
		path := r.String(sftp.MaxPath)
		return c.opened(id, r, func() (int, error) { return c.openDir(path) }, true)
	case sftp.Read:
		return c.read(id, r)
	case sftp.Readdir:
		return c.readdir(id, r)
	case sftp.Lstat, sftp.Stat: // an honest client has followed links itself
		path := r.String(sftp.MaxPath)
		return c.sendAttrs(id, r, func() (sftp.Attrs, error) { return c.stat(path) })
	case sftp.Fstat:
		f, err := c.file(r)
		return c.sendAttrs(id, r, func() (sftp.Attrs, error) {
			if err != nil {
				return sftp.Attrs{}, err
			}
			return c.fstat(f.fd)
		})
	case sftp.Readlink:
		path := r.String(sftp.MaxPath)
		return c.sendName(id, r, func() (string, error) { return c.readlink(path) })
	case sftp.Realpath:
		path := r.String(sftp.MaxPath)
		return c.sendName(id, r, func() (string, error) {
			_, err := c.clean(path)
			return "/" + strings.Trim(path, "/."), err // there are no links, and no ".."
		})
	case sftp.Extended:
		name := r.String(sftp.MaxPath)
		if name == sftp.ExtStatvfs {
			return c.statvfs(id, r)
		}
		return c.change(id, r, c.extended(name, r))
	}
	return c.change(id, r, c.plain(t, r))
}

// change carries out a request that is answered by a status. A nil do is one
// that is not known.
func (c *session) change(id uint32, r *sftp.Parser, do func() error) error {
	if err := r.Err(); err != nil {
		return err
	}
	if do == nil {
		return c.sendStatus(id, unix.EOPNOTSUPP)
	}
	return c.sendStatus(id, do())
}

// plain reads a request of the protocol's own that is answered by a status.
func (c *session) plain(t sftp.Type, r *sftp.Parser) func() error {
	switch t {
	case sftp.Close:
		h := r.String(sftp.MaxHandle)
		return func() error { return c.closeFile(h) }
	case sftp.Write:
		f, err := c.file(r)
		offset, data := r.Uint64(), r.Bytes(sftp.MaxData)
		return func() error {
			if err != nil {
				return err
			}
			return write(f.fd, data, int64(offset))
		}
	case sftp.Setstat:
		path, a := r.String(sftp.MaxPath), r.Attrs()
		return func() error { return c.setstat(path, &a) }
	case sftp.Fsetstat:
		f, err := c.file(r)
		a := r.Attrs()
		return func() error {
			if err != nil {
				return err
			}
			return c.set(f.fd, &a)
		}
	case sftp.Remove:
		path := r.String(sftp.MaxPath)
		return func() error { return c.remove(path, 0) }
	case sftp.Rmdir:
		path := r.String(sftp.MaxPath)
		return func() error { return c.remove(path, unix.AT_REMOVEDIR) }
	case sftp.Mkdir:
		path, a := r.String(sftp.MaxPath), r.Attrs()
		return func() error { return c.mkdir(path, &a) }
	case sftp.Rename:
		from, to := r.String(sftp.MaxPath), r.String(sftp.MaxPath)
		return func() error { return c.rename(from, to, unix.RENAME_NOREPLACE) }
	case sftp.Symlink: // in the order in which OpenSSH has them, not the draft
		target, path := r.String(sftp.MaxPath), r.String(sftp.MaxPath)
		return func() error { return c.symlink(target, path) }
	}
	return nil
}

// extended reads one of the extensions that are answered by a status.
func (c *session) extended(name string, r *sftp.Parser) func() error {
	switch name {
	case sftp.ExtPosixRename:
		from, to := r.String(sftp.MaxPath), r.String(sftp.MaxPath)
		return func() error { return c.rename(from, to, 0) }
	case sftp.ExtHardlink:
		from, to := r.String(sftp.MaxPath), r.String(sftp.MaxPath)
		return func() error { return c.link(from, to) }
	case sftp.ExtFsync:
		f, err := c.file(r)
		return func() error {
			if err != nil {
				return err
			}
			return unix.Fsync(f.fd)
		}
	}
	return nil
}

func (c *session) sendVersion() error {
	p := c.packet(sftp.Ver, sftp.Version)
	for _, e := range [][2]string{
		{sftp.ExtPosixRename, "1"}, {sftp.ExtHardlink, "1"}, {sftp.ExtStatvfs, "2"}, {sftp.ExtFsync, "1"},
	} {
		p.String(e[0])
		p.String(e[1])
	}
	return c.send(p)
}

// file reads a handle.
func (c *session) file(r *sftp.Parser) (*openFile, error) {
	f := c.files[r.String(sftp.MaxHandle)]
	if f == nil {
		return nil, errHandle
	}
	return f, nil
}

func (c *session) openFile(id uint32, r *sftp.Parser) error {
	path, flags, a := r.String(sftp.MaxPath), r.Uint32(), r.Attrs()
	return c.opened(id, r, func() (int, error) { return c.open(path, flags, &a) }, false)
}

func (c *session) opened(id uint32, r *sftp.Parser, open func() (int, error), dir bool) error {
	if err := r.Err(); err != nil {
		return err
	}
	if len(c.files) >= maxOpen {
		return c.sendStatus(id, errMany)
	}
	fd, err := open()
	if err != nil {
		return c.sendStatus(id, err)
	}
	f := &openFile{fd: fd}
	if dir {
		f.dir = os.NewFile(uintptr(fd), "directory")
	}
	c.next++
	h := string(binary.BigEndian.AppendUint64(nil, c.next))
	c.files[h] = f
	p := c.packet(sftp.HandleReply, id)
	p.String(h)
	return c.send(p)
}

func (c *session) closeFile(h string) error {
	f := c.files[h]
	if f == nil {
		return errHandle
	}
	delete(c.files, h)
	f.close()
	return nil
}

func (c *session) setstat(path string, a *sftp.Attrs) error {
	fd, err := c.find(path)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return c.set(fd, a)
}

// read answers with as much as was asked for, unless the file ends before.
func (c *session) read(id uint32, r *sftp.Parser) error {
	f, err := c.file(r)
	offset, n := r.Uint64(), int(min(r.Uint32(), sftp.MaxData))
	if err := r.Err(); err != nil {
		return err
	}
	if err != nil {
		return c.sendStatus(id, err)
	}
	p := c.packet(sftp.DataReply, id)
	at := p.Len()
	p.Uint32(0)
	data := p.Room(n)
	got := 0
	for got < n {
		m, err := unix.Pread(f.fd, data[got:], int64(offset)+int64(got))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil && got == 0 {
			return c.sendStatus(id, err)
		}
		if err != nil || m == 0 {
			break
		}
		got += m
	}
	if got == 0 {
		return c.sendStatus(id, io.EOF)
	}
	p.SetUint32(at, uint32(got))
	p.Cut(at + 4 + got)
	return c.send(p)
}

func write(fd int, data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, offset = data[n:], offset+int64(n)
	}
	return nil
}

// readdir answers with the next names of a directory.
func (c *session) readdir(id uint32, r *sftp.Parser) error {
	f, err := c.file(r)
	if err := r.Err(); err != nil {
		return err
	}
	switch {
	case err != nil:
		return c.sendStatus(id, err)
	case f.dir == nil:
		return c.sendStatus(id, unix.ENOTDIR)
	case f.end:
		return c.sendStatus(id, io.EOF)
	}
	names := []string{c.only}
	if c.only == "" {
		if names, err = f.dir.Readdirnames(namesAtOnce); err != nil {
			f.end = errors.Is(err, io.EOF)
			return c.sendStatus(id, err)
		}
	} else {
		f.end = true
	}
	p := c.packet(sftp.NameReply, id)
	at := p.Len()
	p.Uint32(0)
	n := uint32(0)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(f.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // it has gone
		}
		a := c.attrs(&st)
		if c.only != "" {
			name = FileName
		}
		p.String(name)
		p.String(name) // a line for people: nobody reads it
		p.Attrs(&a)
		n++
	}
	p.SetUint32(at, n)
	return c.send(p)
}

func (c *session) sendAttrs(id uint32, r *sftp.Parser, get func() (sftp.Attrs, error)) error {
	if err := r.Err(); err != nil {
		return err
	}
	a, err := get()
	if err != nil {
		return c.sendStatus(id, err)
	}
	p := c.packet(sftp.AttrsReply, id)
	p.Attrs(&a)
	return c.send(p)
}

func (c *session) sendName(id uint32, r *sftp.Parser, get func() (string, error)) error {
	if err := r.Err(); err != nil {
		return err
	}
	name, err := get()
	if err != nil {
		return c.sendStatus(id, err)
	}
	p := c.packet(sftp.NameReply, id)
	p.Uint32(1)
	p.String(name)
	p.String(name)
	p.Attrs(&sftp.Attrs{})
	return c.send(p)
}

func (c *session) statvfs(id uint32, r *sftp.Parser) error {
	path := r.String(sftp.MaxPath)
	if err := r.Err(); err != nil {
		return err
	}
	fd, err := c.find(path)
	if err != nil {
		return c.sendStatus(id, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return c.sendStatus(id, err)
	}
	p := c.packet(sftp.ExtendedReply, id)
	for _, n := range []uint64{
		uint64(st.Bsize), uint64(st.Frsize), st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Ffree, 0, 0, uint64(st.Namelen),
	} {
		p.Uint64(n)
	}
	return c.send(p)
}

// codes are what SFTP, and after it sshfs, can say of an error. What is not
// here is Failure, which sshfs makes EPERM of; where NoSpace stands, EIO.
var codes = map[error]sftp.Code{
	unix.ENOENT: sftp.NoSuchFile,
	unix.EACCES: sftp.PermissionDenied, unix.EROFS: sftp.PermissionDenied, unix.ELOOP: sftp.PermissionDenied,
	unix.EOPNOTSUPP: sftp.Unsupported,
	unix.ENOSPC:     sftp.NoSpace, unix.EDQUOT: sftp.NoSpace, unix.EIO: sftp.NoSpace, unix.EFBIG: sftp.NoSpace,
	unix.EMFILE: sftp.NoSpace, unix.ENFILE: sftp.NoSpace, unix.EAGAIN: sftp.NoSpace, unix.ENAMETOOLONG: sftp.NoSpace,
	io.EOF: sftp.EOF, errHandle: sftp.NoSpace, errMany: sftp.NoSpace,
}

func (c *session) sendStatus(id uint32, err error) error {
	code, text := sftp.OK, ""
	if err != nil {
		code, text = sftp.Failure, err.Error()
		for known, as := range codes {
			if errors.Is(err, known) {
				code = as
				break
			}
		}
		if (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && c.o.Trouble != nil {
			c.o.Trouble(fmt.Errorf("write to the share %s: %w", c.root.Name(), err))
		}
	}
	p := c.packet(sftp.StatusReply, id)
	p.Uint32(uint32(code))
	p.String(text)
	p.String("")
	return c.send(p)
}

package posix

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// randomOps is what fsx, the file system exerciser, does: one file is written,
// read, mapped, made shorter and longer at random, always the same way, and
// beside it an array of bytes, which the file has to be like at each step.
func randomOps(d string) error {
	f, err := os.Create(d + "/f")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	x := exerciser{f: f, random: rand.New(rand.NewPCG(1, 2))} //nolint:gosec // the same each time
	ops := []func(at, n int) error{x.write, x.write, x.mapWrite, x.truncate, x.read, x.read, x.mapRead}
	for i := range exerciserSteps {
		at := x.random.IntN(exerciserSize)
		n := x.random.IntN(min(exerciserSize-at, 20_000)) + 1
		if err := ops[x.random.IntN(len(ops))](at, n); err != nil {
			return fmt.Errorf("step %d, %d bytes at %d: %w", i, n, at, err)
		}
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if fi.Size() != int64(len(x.want)) {
			return fmt.Errorf("step %d, %d bytes at %d: the file has %d bytes, not %d", i, n, at, fi.Size(), len(x.want))
		}
	}
	return first(f.Sync(), f.Close(), reads(d+"/f", string(x.want)))
}

// exerciserSize is the most that the file gets, bytes.
const exerciserSize, exerciserSteps = 256 << 10, 600

type exerciser struct {
	f      *os.File
	random *rand.Rand
	want   []byte
}

// grow makes what is wanted at least n bytes long.
func (x *exerciser) grow(n int) {
	if n > len(x.want) {
		x.want = append(x.want, make([]byte, n-len(x.want))...)
	}
}

func (x *exerciser) data(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(x.random.Uint32())
	}
	return b
}

func (x *exerciser) write(at, n int) error {
	data := x.data(n)
	if _, err := x.f.WriteAt(data, int64(at)); err != nil {
		return err
	}
	x.grow(at + n)
	copy(x.want[at:], data)
	return nil
}

func (x *exerciser) truncate(at, _ int) error {
	if err := x.f.Truncate(int64(at)); err != nil {
		return err
	}
	x.grow(at)
	clear(x.want[at:]) // what comes back later is zeros
	x.want = x.want[:at]
	return nil
}

func (x *exerciser) read(at, n int) error {
	got := make([]byte, n)
	k, err := x.f.ReadAt(got, int64(at))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if want := x.part(at, n); !bytes.Equal(got[:k], want) {
		return fmt.Errorf("%d bytes were read, and are not what was written (%d bytes)", k, len(want))
	}
	return nil
}

// part is what is wanted in n bytes from at on, less at the end.
func (x *exerciser) part(at, n int) []byte {
	return x.want[min(at, len(x.want)):min(at+n, len(x.want))]
}

func (x *exerciser) mapRead(at, n int) error {
	want := x.part(at, n)
	return x.mapped(at, len(want), func(m []byte) error {
		if !bytes.Equal(m, want) {
			return errors.New("what is mapped is not what was written")
		}
		return nil
	})
}

func (x *exerciser) mapWrite(at, n int) error {
	part := x.part(at, n)
	copy(part, x.data(len(part)))
	return x.mapped(at, len(part), func(m []byte) error {
		copy(m, part)
		return nil
	})
}

// mapped calls do with n bytes of the file from at on, as they are mapped.
func (x *exerciser) mapped(at, n int, do func([]byte) error) error {
	if n == 0 {
		return nil
	}
	within := at % os.Getpagesize()
	m, err := unix.Mmap(int(x.f.Fd()), int64(at-within), within+n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	return first(do(m[within:]), unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
}

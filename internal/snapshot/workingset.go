package snapshot

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"slices"
)

// A snapshot's working set is recorded when the snapshot is whole already, and may be
// recorded again: its manifest does not have it among the files, which never change.
// That of an archive has, so that it travels as they do, and an fcvm that knows
// nothing of it takes it for one of them. It is a hint: who uses it (package
// memserver) looks whether it is any good, and records another if it is not.

// maxWorkingSet bounds a working set's file, bytes: a bit for each page of the memory,
// in words of 64, with a header before them and a checksum behind.
func maxWorkingSet(memory int64) int64 {
	const page, frame = 4 << 10, 32 + 32 // there are no smaller pages
	return (memory/page+63)/64*8 + frame
}

// maxWorkingSet is that of the snapshot's memory.
func (m *Manifest) maxWorkingSet() int64 {
	i := slices.IndexFunc(m.Files, func(f File) bool { return f.Name == MemoryName })
	return maxWorkingSet(m.Files[i].Size) // it is there: see check
}

func isWorkingSet(f File) bool { return f.Name == WorkingSetName }

// packedSet is a working set on its way into an archive: the very file that the
// manifest tells of, should another be recorded meanwhile.
type packedSet struct {
	is   File
	file *os.File // nil: there is none
}

// openWorkingSet leaves out what cannot be one.
func (s *Snapshot) openWorkingSet(ctx context.Context) (p packedSet, err error) {
	path := s.Path(WorkingSetName)
	known := slices.ContainsFunc(s.Manifest.Files, isWorkingSet) // imported by who knew nothing of it
	if _, _, err := stampOf(path); err != nil || known {
		return p, nil
	}
	if p.file, err = os.Open(path); err != nil {
		return p, err
	}
	st, err := p.file.Stat()
	if err != nil || st.Size() > s.Manifest.maxWorkingSet() {
		p.close()
		return packedSet{}, err
	}
	p.is = File{Name: WorkingSetName, Size: st.Size()}
	if p.is.Digest, p.is.Data, err = digestOfFile(ctx, p.file); err != nil {
		p.close()
	}
	return p, err
}

func (p *packedSet) close() {
	if p.file != nil {
		_ = p.file.Close()
	}
}

// addTo is the manifest for the archive.
func (p *packedSet) addTo(m Manifest) Manifest {
	if p.file != nil {
		m.Files = append(slices.Clip(m.Files), p.is)
	}
	return m
}

func (p *packedSet) pack(ctx context.Context, t *tar.Writer) error {
	if p.file == nil {
		return nil
	}
	return packOpen(ctx, t, p.is, p.file)
}

// takeWorkingSet takes the working set out of an archive's manifest, if it has one.
func (m *Manifest) takeWorkingSet() (*File, error) {
	i := slices.IndexFunc(m.Files, isWorkingSet)
	if i < 0 {
		return nil, nil
	}
	set := m.Files[i]
	if most := m.maxWorkingSet(); set.Size > most {
		return nil, fmt.Errorf("%w: its %s has %d bytes, for its memory it has %d at most", ErrCorrupt, set.Name, set.Size, most)
	}
	m.Files = slices.Concat(m.Files[:i], m.Files[i+1:])
	return &set, nil
}

// checkWorkingSet says whether what came of a working set is what left.
func checkWorkingSet(ctx context.Context, d *Draft, set *File) error {
	if set == nil {
		return nil
	}
	digest, err := Digest(ctx, d.Path(set.Name))
	if err != nil {
		return err
	}
	if digest != set.Digest {
		return fmt.Errorf("%w: the checksum of its %s is wrong", ErrCorrupt, set.Name)
	}
	return nil
}

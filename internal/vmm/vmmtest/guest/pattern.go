package main

import (
	"encoding/json"
	"errors"
	"io"
	"sync"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/vmm/vmmtest/testapi"
)

// maxPattern bounds a pattern, MiB.
const maxPattern = 1 << 10

// pattern is memory with numbers in it that follow from a seed.
type pattern struct {
	mu      sync.Mutex
	seed    uint64
	numbers []uint64
}

// number is the i-th: splitmix64, which is small and has no pages that are
// alike.
func number(seed, i uint64) uint64 {
	z := seed + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// fill reads a testapi.Pattern, and fills as much memory as it says, which is
// the same memory again if it is as large as before.
func (p *pattern) fill(body io.Reader) error {
	var want testapi.Pattern
	if err := json.NewDecoder(io.LimitReader(body, agentapi.MaxBody)).Decode(&want); err != nil {
		return err
	}
	if want.MiB < 0 || want.MiB > maxPattern {
		return errors.New("the pattern is too large")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := want.MiB << 20 / 8; n != len(p.numbers) {
		p.numbers = make([]uint64, n)
	}
	p.seed = want.Seed
	for i := range p.numbers {
		p.numbers[i] = number(p.seed, uint64(i))
	}
	return nil
}

func (p *pattern) check() testapi.Pattern {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := testapi.Pattern{Seed: p.seed, MiB: len(p.numbers) * 8 >> 20}
	for i, n := range p.numbers {
		if n != number(p.seed, uint64(i)) {
			found.Wrong++
		}
	}
	return found
}

package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// platform is an operating system and architecture in Go's words, as the OCI
// specification has them.
type platform struct {
	os, arch, variant string
}

func (p platform) String() string {
	s := p.os + "/" + p.arch
	if p.variant != "" {
		s += "/" + p.variant
	}
	return s
}

// plain is the platform without its variant. Names that are given here are kept
// under it: what runs asks for its machine's platform, and says none.
func (p platform) plain() platform {
	p.variant = ""
	return p
}

// parsePlatform reads "os/arch[/variant]"; empty is this machine's.
func parsePlatform(s string) (platform, error) {
	if s == "" {
		return platform{os: "linux", arch: runtime.GOARCH}, nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return platform{}, fmt.Errorf("%w: platform %q: it has the form linux/amd64 or linux/arm64/v8", ErrPlatform, s)
	}
	if parts[0] != "linux" {
		return platform{}, fmt.Errorf("%w: platform %q: fcvm runs linux images only", ErrPlatform, s)
	}
	p := platform{os: parts[0], arch: parts[1]}
	if len(parts) == 3 {
		p.variant = parts[2]
	}
	return p, nil
}

// runs reports whether an image of platform has can be taken for p. What an
// image does not say is not held against it.
func (p platform) runs(has platform) bool {
	if has.os != "" && has.os != p.os || has.arch != "" && has.arch != p.arch {
		return false
	}
	return p.variant == "" || has.variant == "" || has.variant == p.variant
}

// usual is the variant an architecture has when none is named.
var usual = map[string]string{"arm64": "v8", "arm": "v7", "amd64": "v1"}

// rank orders the images of an index that run: the exact variant, then the
// usual one, then any. Below 0 it does not run.
func (p platform) rank(has platform) int {
	switch {
	case has.os != p.os || has.arch != p.arch:
		return -1
	case has.variant == p.variant:
		return 3
	case has.variant == "" || p.variant == "" && has.variant == usual[p.arch]:
		return 2
	case p.variant == "":
		return 1
	}
	return -1
}

func platformOf(p *v1.Platform) platform {
	if p == nil {
		return platform{}
	}
	return platform{os: p.OS, arch: p.Architecture, variant: p.Variant}
}

// pick chooses from an index. Entries without a platform are taken only when
// there is one entry in all: then nothing else can be meant.
func pick(list []v1.Descriptor, want platform) (v1.Descriptor, error) {
	if len(list) == 1 && platformOf(list[0].Platform) == (platform{}) {
		return list[0], nil
	}
	best, rank := v1.Descriptor{}, -1
	var have []string
	for _, d := range list {
		p := platformOf(d.Platform)
		if p.os == "" || p.os == "unknown" { // attestations
			continue
		}
		if s := p.String(); !slices.Contains(have, s) {
			have = append(have, s)
		}
		if r := want.rank(p); r > rank {
			best, rank = d, r
		}
	}
	if rank < 0 {
		if len(have) == 0 {
			return best, fmt.Errorf("%w: the index names no image with a platform", ErrCorrupt)
		}
		return best, wrongPlatform(want, strings.Join(have, ", "))
	}
	return best, nil
}

func wrongPlatform(want platform, have string) error {
	return fmt.Errorf("%w: wanted %s, there is %s; choose another image, or one built for %s", ErrPlatform, want, have, want)
}

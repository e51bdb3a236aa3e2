// Package volume is what a container sees besides its image: it reads -v and
// --mount, looks at what they name on the host, keeps named volumes, and makes
// the disks that a VM's mounts are on. How a live share is served is package
// share's.
package volume

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/fcvm/fcvm/internal/vm"
)

// Mode says what a directory of the host's becomes in the guest (--map-mode).
type Mode string

// The two modes.
const (
	ModeLive  Mode = "live"  // a live share
	ModeBlock Mode = "block" // a disk made of it
)

// Sizes of volumes, MiB: ext4 as it is made here has no 64-bit block numbers.
const (
	MinSizeMiB     = 16
	MaxSizeMiB     = 8 << 20
	DefaultSizeMiB = 16 << 10 // of one that is made by -v; it costs what is written
)

// namePattern is a volume's name, as Docker has it.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// CheckName refuses what is not a volume's name.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w: volume %q: a name has 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit", vm.ErrInvalid, name)
	}
	return nil
}

// request is a mount as it was typed: what a source that is a path is shows only
// on the host.
type request struct {
	vm.Mount
	path bool // Source is a path on the host, and Kind may not be known yet
	bind bool // a file is shared, whatever is in it
}

// parseVolume reads an argument of -v: HOST:GUEST[:OPTIONS], NAME:GUEST[:OPTIONS]
// or GUEST. As in Docker a source with a slash, or a dot in front, is a path.
func parseVolume(arg string) (request, error) {
	bad := func(format string, a ...any) (request, error) {
		return request{}, fmt.Errorf("%w: -v %q: %s", vm.ErrInvalid, arg, fmt.Sprintf(format, a...))
	}
	parts := strings.Split(arg, ":")
	var r request
	switch len(parts) {
	case 1:
		r.Kind, r.Target = vm.MountAnonymous, parts[0]
	case 2, 3:
		r.Source, r.Target = parts[0], parts[1]
		if r.Source == "" {
			return bad("nothing is before the first colon; it is HOST:GUEST[:ro] or NAME:GUEST[:ro]")
		}
	default:
		return bad("it is HOST:GUEST[:ro]; paths with colons can be given to --mount")
	}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			r.ReadOnly = true
		case "rw":
		default:
			return bad("option %q: it is ro or rw", parts[2])
		}
	}
	if r.Kind == "" {
		if strings.Contains(r.Source, "/") || strings.HasPrefix(r.Source, ".") {
			r.path = true
		} else if r.Kind = vm.MountVolume; CheckName(r.Source) != nil {
			return bad("%q is neither a path nor a volume's name", r.Source)
		}
	}
	return r.checked("-v " + strconv.Quote(arg))
}

// mountKeys are Docker's names and their short forms.
var mountKeys = map[string]string{
	"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "tmpfs-size": "size", "volume-size": "size",
}

// parseMount reads an argument of --mount: KEY=VALUE pairs, separated by commas, in
// quotes where a value holds one (encoding/csv).
func parseMount(arg string) (request, error) {
	bad := func(format string, a ...any) (request, error) {
		return request{}, fmt.Errorf("%w: --mount %q: %s", vm.ErrInvalid, arg, fmt.Sprintf(format, a...))
	}
	reader := csv.NewReader(strings.NewReader(arg))
	fields, err := reader.Read()
	if err != nil {
		return bad("it is type=bind|volume|tmpfs|disk,source=…,target=…")
	}
	values := map[string]string{}
	for _, f := range fields {
		key, value, given := strings.Cut(f, "=")
		if long, ok := mountKeys[key]; ok {
			key = long
		}
		if key == "readonly" && !given {
			value = "true"
		} else if !given {
			return bad("%q has no value", f)
		}
		if _, twice := values[key]; twice {
			return bad("%s is given twice", key)
		}
		values[key] = value
	}
	var r request
	kind, ok := values["type"]
	if !ok {
		kind = "volume" // as in Docker
	}
	r.Source, r.Target = values["source"], values["target"]
	if v, ok := values["readonly"]; ok {
		if r.ReadOnly, err = strconv.ParseBool(v); err != nil {
			return bad("readonly=%s: it is true or false", v)
		}
	}
	delete(values, "type")
	delete(values, "source")
	delete(values, "target")
	delete(values, "readonly")
	if err := r.setKind(kind, values); err != nil {
		return bad("%v", err)
	}
	for key := range values {
		return bad("%s is not for type=%s", key, kind)
	}
	return r.checked("--mount " + strconv.Quote(arg))
}

// setKind takes what is left of a --mount and is for this type.
func (r *request) setKind(kind string, values map[string]string) error {
	take := func(key string) string {
		v := values[key]
		delete(values, key)
		return v
	}
	switch kind {
	case "bind":
		r.path, r.bind = true, true
		switch mode := Mode(take("map-mode")); mode {
		case "":
		case ModeLive:
			r.Kind = vm.MountShare
		case ModeBlock:
			r.Kind = vm.MountBlock
		default:
			return fmt.Errorf("map-mode=%s: it is live or block", mode)
		}
	case "disk":
		r.Kind, r.path = vm.MountDisk, true
	case "volume":
		r.Kind = vm.MountVolume
		if r.Source == "" {
			r.Kind = vm.MountAnonymous
			return nil
		}
		if err := CheckName(r.Source); err != nil {
			return err
		}
		return r.setSize(take("size"))
	case "tmpfs":
		if r.Source != "" {
			return errors.New("a tmpfs has no source")
		}
		r.Kind = vm.MountTmpfs
		var options []string
		if r.ReadOnly {
			options = append(options, "ro")
		}
		for _, key := range []string{"size", "tmpfs-mode"} {
			v, option := take(key), strings.TrimPrefix(key, "tmpfs-")
			if v == "" {
				continue
			}
			if !regexp.MustCompile(`^[0-9]+[kKmMgG]?$`).MatchString(v) {
				return fmt.Errorf("%s=%s: it is a number", key, v)
			}
			options = append(options, option+"="+v)
		}
		r.Options = strings.Join(options, ",")
		return nil
	default:
		return fmt.Errorf("type=%s: it is bind, volume, tmpfs or disk", kind)
	}
	if r.Source == "" {
		return fmt.Errorf("type=%s needs a source", kind)
	}
	return nil
}

func (r *request) setSize(text string) error {
	if text == "" {
		return nil
	}
	mib, err := ParseSize(text)
	r.SizeMiB = mib
	return err
}

// sizePattern: a number with a unit.
var sizePattern = regexp.MustCompile(`^([0-9]{1,8})([mMgGtT])(?:i?[bB])?$`)

// ParseSize reads the size of a volume: 512m, 10g.
func ParseSize(text string) (mib int, err error) {
	g := sizePattern.FindStringSubmatch(text)
	if g == nil {
		return 0, fmt.Errorf("size %q: it is a number with a unit, as 512m or 10g", text)
	}
	n, err := strconv.Atoi(g[1])
	if err != nil {
		return 0, err
	}
	n <<= map[string]int{"m": 0, "g": 10, "t": 20}[strings.ToLower(g[2])]
	if n < MinSizeMiB || n > MaxSizeMiB {
		return 0, fmt.Errorf("size %s: a volume has %d MiB to %d TiB", text, MinSizeMiB, MaxSizeMiB>>20)
	}
	return n, nil
}

// checked refuses what no mount has, and cleans the target.
func (r request) checked(what string) (request, error) {
	if err := vm.CheckTarget(r.Target); err != nil {
		return request{}, fmt.Errorf("%s: %w", what, err)
	}
	if strings.ContainsRune(r.Source, 0) {
		return request{}, fmt.Errorf("%w: %s: the source holds a zero byte", vm.ErrInvalid, what)
	}
	if r.ReadOnly && r.Kind == vm.MountAnonymous {
		return request{}, fmt.Errorf("%w: %s: nothing could ever be in it", vm.ErrInvalid, what)
	}
	r.Target = path.Clean(r.Target)
	return r, nil
}

package cli

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// choice is a flag that takes one of a few words.
type choice[S ~string] struct {
	value   *S
	allowed []S
}

// newChoice sets value to the first of the allowed words.
func newChoice[S ~string](value *S, allowed ...S) *choice[S] {
	*value = allowed[0]
	return &choice[S]{value: value, allowed: allowed}
}

// String, Set and Type implement pflag.Value.
func (c *choice[S]) String() string { return string(*c.value) }

func (c *choice[S]) Set(s string) error {
	if !slices.Contains(c.allowed, S(s)) {
		return fmt.Errorf("it is %s", orList(c.words()))
	}
	*c.value = S(s)
	return nil
}

func (c *choice[S]) Type() string { return strings.Join(c.words(), "|") }

func (c *choice[S]) words() []string {
	w := make([]string, len(c.allowed))
	for i, a := range c.allowed {
		w[i] = string(a)
	}
	return w
}

func orList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// addChoice registers a choice and lets the shell complete its words.
func addChoice[S ~string](cmd *cobra.Command, c *choice[S], name, usage string) {
	cmd.Flags().Var(c, name, usage)
	complete(cmd, name, cobra.FixedCompletions(c.words(), cobra.ShellCompDirectiveNoFileComp))
}

// complete says how the shell completes a flag's value.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // there is no such flag: a defect of the caller
	}
}

// memory is a flag for an amount of memory, kept in MiB.
type memory struct{ mib *int }

var _ pflag.Value = memory{}

// memoryPattern: a number, with a unit or in MiB.
var memoryPattern = regexp.MustCompile(`^(\d+(?:\.\d+)?)(?:([mMgGtT])(?:i?[bB])?)?$`)

// Set takes MiB, or a number with the suffix m, g or t.
func (m memory) Set(s string) error {
	n, err := parseMemory(s)
	if err != nil {
		return err
	}
	*m.mib = n
	return nil
}

// String and Type implement pflag.Value.
func (m memory) String() string { return strconv.Itoa(*m.mib) }
func (m memory) Type() string   { return "SIZE" }

func parseMemory(s string) (mib int, err error) {
	g := memoryPattern.FindStringSubmatch(s)
	if g == nil {
		return 0, fmt.Errorf("it is a number of MiB, or one with a unit: 512, 512m, 2g")
	}
	v, err := strconv.ParseFloat(g[1], 64)
	if err != nil {
		return 0, err
	}
	v *= map[string]float64{"": 1, "m": 1, "g": 1 << 10, "t": 1 << 20}[strings.ToLower(g[2])]
	if v != math.Trunc(v) || v > math.MaxInt32 {
		return 0, fmt.Errorf("it is a whole number of MiB, at most %d", math.MaxInt32)
	}
	return int(v), nil
}

// rate is a flag for bytes a second.
type rate struct{ bytes *uint64 }

var _ pflag.Value = rate{}

// ratePattern: a number of bytes, or one with a unit.
var ratePattern = regexp.MustCompile(`^(\d{1,12})(?:([kKmMgG])(?:i?[bB])?)?$`)

// Set takes bytes, or a number with the suffix k, m or g.
func (r rate) Set(s string) error {
	g := ratePattern.FindStringSubmatch(s)
	if g == nil {
		return fmt.Errorf("it is a number of bytes, or one with a unit: 1048576, 50m, 1g")
	}
	v, err := strconv.ParseUint(g[1], 10, 64)
	if err != nil {
		return err
	}
	*r.bytes = v << map[string]int{"": 0, "k": 10, "m": 20, "g": 30}[strings.ToLower(g[2])]
	return nil
}

// String and Type implement pflag.Value.
func (r rate) String() string { return strconv.FormatUint(*r.bytes, 10) }
func (r rate) Type() string   { return "SIZE" }

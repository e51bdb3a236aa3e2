package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manPage writes a command's manual page in the man macros (man(7)). Cobra
// has a generator of its own, which brings a Markdown parser, a YAML encoder
// and a converter into the program; this is all that is needed of it. Pages
// hold no date, so that the same program writes the same pages.
func manPage(cmd *cobra.Command) []byte {
	p := &roff{}
	p.macro("TH", strings.ToUpper(manName(cmd)), "1", "", "fcvm", "fcvm manual")
	p.macro("SH", "NAME")
	p.text(manName(cmd) + " - " + cmd.Short)
	p.macro("SH", "SYNOPSIS")
	p.line(`\fB` + escape(cmd.CommandPath()) + `\fR` + escape(strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath())))
	if cmd.Long != "" {
		p.macro("SH", "DESCRIPTION")
		p.text(cmd.Long)
	}
	p.flags("OPTIONS", cmd.NonInheritedFlags())
	p.flags("GLOBAL OPTIONS", cmd.InheritedFlags())
	p.commands(cmd)
	if cmd.Example != "" {
		p.macro("SH", "EXAMPLES")
		p.macro("EX")
		p.lines(cmd.Example)
		p.macro("EE")
	}
	p.seeAlso(cmd)
	return []byte(p.b.String())
}

// manName is a command's name as a page: fcvm-setup-kernel.
func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

type roff struct{ b strings.Builder }

func (p *roff) macro(name string, args ...string) {
	p.b.WriteString("." + name)
	for _, a := range args {
		p.b.WriteString(` "` + strings.ReplaceAll(escape(a), `"`, `\(dq`) + `"`)
	}
	p.b.WriteByte('\n')
}

// line writes a line of what is roff already.
func (p *roff) line(s string) {
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s // not a macro
	}
	p.b.WriteString(s + "\n")
}

// lines writes text line by line as it stands.
func (p *roff) lines(s string) {
	for _, l := range strings.Split(strings.TrimRight(s, "\n"), "\n") {
		p.line(escape(l))
	}
}

// text writes paragraphs, separated by empty lines.
func (p *roff) text(s string) {
	for i, para := range strings.Split(strings.TrimSpace(s), "\n\n") {
		if i > 0 {
			p.macro("PP")
		}
		p.lines(para)
	}
}

func (p *roff) flags(title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	p.macro("SH", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Deprecated != "" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		head := `\fB` + escape("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			head = `\fB` + escape("-"+f.Shorthand) + `\fR, ` + head
		}
		if value != "" {
			head += ` \fI` + escape(value) + `\fR`
		}
		p.macro("TP")
		p.line(head)
		p.text(usage + defaultText(f))
	})
}

func defaultText(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "false", "[]", "0", "0s":
		return ""
	}
	return fmt.Sprintf(" (default %s)", f.DefValue)
}

func (p *roff) commands(cmd *cobra.Command) {
	if !cmd.HasAvailableSubCommands() {
		return
	}
	p.macro("SH", "COMMANDS")
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			p.macro("TP")
			p.line(`\fB` + escape(manName(sub)) + `\fR(1)`)
			p.text(sub.Short)
		}
	}
}

func (p *roff) seeAlso(cmd *cobra.Command) {
	if !cmd.HasParent() {
		return
	}
	p.macro("SH", "SEE ALSO")
	p.line(`\fB` + escape(manName(cmd.Parent())) + `\fR(1)`)
}

// escape makes text stand for itself in roff.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "^", `\(ha`, "~", `\(ti`).Replace(s)
}

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/vm"
)

// format is the value of --format: empty for people, "json", or a Go template
// that is applied to each item.
type format struct {
	json   bool
	tmpl   *template.Template // nil: none
	header string             // of a table; empty: none, and nothing is aligned
}

// addFormat registers --format. fields are what a template can name.
func addFormat(cmd *cobra.Command, value *string, fields ...string) {
	addFormatAs(cmd, value, "", fields...)
}

// addFormatAs is addFormat with a short flag, where that is free.
func addFormatAs(cmd *cobra.Command, value *string, short string, fields ...string) {
	usage := "print `json`, or each item by a Go template"
	if len(fields) > 0 {
		usage += " with the fields ." + strings.Join(fields, ", .")
	}
	cmd.Flags().StringVarP(value, "format", short, "", usage)
	complete(cmd, "format", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
}

// parseFormat takes what Docker's --format does, and its functions: \t and \n
// are the characters, and "table" before a template aligns its columns under the
// names of its fields. What a map does not have is <no value>.
func parseFormat(s string) (format, error) {
	text, table := strings.CutPrefix(strings.TrimSpace(s), "table")
	switch {
	case s == "", table && strings.TrimSpace(text) == "":
		return format{}, nil
	case s == "json":
		return format{json: true}, nil
	case table:
		text = strings.TrimSpace(text)
	default:
		text = s
	}
	t, err := template.New("--format").Funcs(formatFuncs).Parse(unescape(text))
	if err != nil {
		return format{}, fmt.Errorf("%w: --format: %w", vm.ErrInvalid, err)
	}
	f := format{tmpl: t}
	if table {
		f.header = headerOf(t.Root)
	}
	return f, nil
}

// plain reports whether the command is to print for people.
func (f format) plain() bool { return !f.json && f.tmpl == nil }

// writeJSON writes one value, with a final line feed.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// execute applies the template to one item; each makes a line.
func (f format) execute(w io.Writer, item any) error {
	return f.aligned(w, func(w io.Writer) error { return f.line(w, item) })
}

func (f format) line(w io.Writer, item any) error {
	var b strings.Builder
	if err := f.tmpl.Execute(&b, item); err != nil {
		return fmt.Errorf("%w: --format: %w", vm.ErrInvalid, err)
	}
	_, err := io.WriteString(w, b.String()+"\n")
	return err
}

// aligned puts the lines of a table into columns, under their header.
func (f format) aligned(w io.Writer, lines func(io.Writer) error) error {
	if f.header == "" {
		return lines(w)
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = io.WriteString(t, f.header+"\n")
	return errors.Join(lines(t), t.Flush())
}

// writeLine writes a list of which many may follow one another: as JSON each is
// one line.
func writeLine[T any](w io.Writer, f format, items []T) error {
	if !f.json {
		return writeItems(w, f, items)
	}
	if items == nil {
		items = []T{} // [], not null
	}
	b, err := json.Marshal(items)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// writeItems writes a list that is not for people.
func writeItems[T any](w io.Writer, f format, items []T) error {
	if f.json {
		if items == nil {
			items = []T{} // [], not null
		}
		return writeJSON(w, items)
	}
	return f.aligned(w, func(w io.Writer) error {
		for _, item := range items {
			if err := f.line(w, item); err != nil {
				return err
			}
		}
		return nil
	})
}

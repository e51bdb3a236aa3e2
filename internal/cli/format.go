package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/vm"
)

// format is the value of --format: empty for people, "json", or a Go template
// that is applied to each item.
type format struct {
	json bool
	tmpl *template.Template // nil: none
}

// addFormat registers --format. fields are what a template can name.
func addFormat(cmd *cobra.Command, value *string, fields ...string) {
	usage := "print `json`, or each item by a Go template"
	if len(fields) > 0 {
		usage += " with the fields ." + strings.Join(fields, ", .")
	}
	cmd.Flags().StringVar(value, "format", "", usage)
	complete(cmd, "format", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
}

func parseFormat(s string) (format, error) {
	switch s {
	case "", "table":
		return format{}, nil
	case "json":
		return format{json: true}, nil
	}
	t, err := template.New("--format").Option("missingkey=error").Funcs(template.FuncMap{
		"json": toJSON,
		"join": func(words []string, sep string) string { return strings.Join(words, sep) },
	}).Parse(s)
	if err != nil {
		return format{}, fmt.Errorf("%w: --format: %w", vm.ErrInvalid, err)
	}
	return format{tmpl: t}, nil
}

func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
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
	var b strings.Builder
	if err := f.tmpl.Execute(&b, item); err != nil {
		return fmt.Errorf("%w: --format: %w", vm.ErrInvalid, err)
	}
	_, err := io.WriteString(w, b.String()+"\n")
	return err
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
	for _, item := range items {
		if err := f.execute(w, item); err != nil {
			return err
		}
	}
	return nil
}

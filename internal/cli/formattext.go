package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/template"
	ast "text/template/parse"
	"unicode"
)

// formatFuncs are the functions of a template of --format, as Docker has them.
var formatFuncs = template.FuncMap{
	"json":  toJSON,
	"join":  func(words []string, sep string) string { return strings.Join(words, sep) },
	"split": func(v any, sep string) []string { return strings.Split(plainText(v), sep) },
	"lower": func(v any) string { return strings.ToLower(plainText(v)) },
	"upper": func(v any) string { return strings.ToUpper(plainText(v)) },
	"title": func(v any) string { return titled(plainText(v)) },
}

func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// plainText is a field as a template prints it: many are strings of a type of
// their own.
func plainText(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// titled begins each word with a capital letter.
func titled(s string) string {
	begins := true
	return strings.Map(func(r rune) rune {
		at := begins
		begins = unicode.IsSpace(r)
		if at {
			return unicode.ToTitle(r)
		}
		return r
	}, s)
}

// unescape makes characters of \t and \n, outside of a template's actions:
// there they are Go's.
func unescape(s string) string {
	chars := strings.NewReplacer(`\t`, "\t", `\n`, "\n")
	var b strings.Builder
	for {
		text, rest, ok := strings.Cut(s, "{{")
		b.WriteString(chars.Replace(text))
		if !ok {
			return b.String()
		}
		action, rest, ok := strings.Cut(rest, "}}")
		if b.WriteString("{{" + action); !ok {
			return b.String()
		}
		b.WriteString("}}")
		s = rest
	}
}

// headerOf is a template with the names of its fields for their values.
func headerOf(list *ast.ListNode) string {
	var b strings.Builder
	for _, n := range list.Nodes {
		switch n := n.(type) {
		case *ast.TextNode:
			b.Write(n.Text)
		case *ast.ActionNode:
			b.WriteString(fieldOf(n.Pipe))
		case *ast.RangeNode:
			b.WriteString(fieldOf(n.Pipe))
		case *ast.IfNode:
			b.WriteString(fieldOf(n.Pipe))
		case *ast.WithNode:
			b.WriteString(fieldOf(n.Pipe))
		}
	}
	return b.String()
}

// fieldOf is the name of the first field of an action.
func fieldOf(p *ast.PipeNode) string {
	for _, c := range p.Cmds {
		for _, arg := range c.Args {
			switch arg := arg.(type) {
			case *ast.FieldNode:
				return strings.ToUpper(arg.Ident[len(arg.Ident)-1])
			case *ast.PipeNode:
				if name := fieldOf(arg); name != "" {
					return name
				}
			}
		}
	}
	return ""
}

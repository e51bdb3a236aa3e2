package cli

import (
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestFormat(t *testing.T) {
	items := []vmItem{
		{Name: "web", Status: vm.StatusRunning, Ports: []string{"80", "443"}, Labels: map[string]string{"app": "shop", "a.b": "c"}},
		{Name: "a-long-name", Status: vm.StatusExited},
	}
	for format, want := range map[string]string{
		`{{.Name}}\t{{.Status}}`:                                         "web\trunning\na-long-name\texited\n",
		`{{.Name}}\n-`:                                                   "web\n-\na-long-name\n-\n",
		`{{.Name}}{{"\t"}}{{printf "%q\n" .Name}}`:                       "web\t\"web\"\n\na-long-name\t\"a-long-name\"\n\n",
		`{{.Labels.app}}`:                                                "shop\n<no value>\n",
		`{{index .Labels "a.b"}}`:                                        "c\n\n",
		`{{upper .Status}} {{.Name | lower | title}}`:                    "RUNNING Web\nEXITED A-long-name\n",
		`{{title "two words"}}{{upper .Labels.none}}`:                    "Two Words\nTwo Words\n",
		`{{join .Ports "+"}} {{json .Status}}`:                           "80+443 \"running\"\n \"exited\"\n",
		`{{index (split .Name "-") 0}}`:                                  "web\na\n",
		`table {{.Name}}\t{{.Status}}`:                                   "NAME          STATUS\nweb           running\na-long-name   exited\n",
		`table {{upper .Name}}\t{{.Labels.app}}\t{{len (json .Status)}}`: "NAME          APP          STATUS\nWEB           shop         9\nA-LONG-NAME   <no value>   8\n",
		"table {{.Name}}":                                                "NAME\nweb\na-long-name\n",
		`table {{range .Ports}}{{.}} {{end}}\t{{.Name}}`:                 "PORTS     NAME\n80 443    web\n          a-long-name\n",
	} {
		f, err := parseFormat(format)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		var b strings.Builder
		if err := writeItems(&b, f, items); err != nil || b.String() != want {
			t.Errorf("%s: %v\ngot  %q\nwant %q", format, err, b.String(), want)
		}
	}
	for _, format := range []string{"", "table", "table "} {
		if f, err := parseFormat(format); err != nil || !f.plain() {
			t.Errorf("%q: %+v, %v; want the table for people", format, f, err)
		}
	}
	for _, format := range []string{"{{.Name", "{{nothing .Name}}", "table {{"} {
		if _, err := parseFormat(format); err == nil {
			t.Errorf("%q was taken", format)
		}
	}
	f, err := parseFormat("{{.Nothing}}")
	if err != nil {
		t.Fatal(err)
	}
	if err := writeItems(new(strings.Builder), f, items); err == nil {
		t.Error("a field that there is none of was taken")
	}
}

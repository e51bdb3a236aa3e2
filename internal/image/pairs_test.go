package image

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestParseChangesPairs(t *testing.T) {
	tests := []struct {
		text string
		want []string // NAME=VALUE
	}{
		{`A=1 B=2`, []string{"A=1", "B=2"}},
		{"A=1\t B=2  C=", []string{"A=1", "B=2", "C="}},
		{`A="1 2" B='3 4' C=5\ 6`, []string{"A=1 2", "B=3 4", "C=5 6"}},
		{`A="say \"hi\" \n \\" B='\"'`, []string{`A=say "hi" \n \`, `B=\"`}},
		{`A=x"y z"'w'`, []string{"A=xy zw"}},
		{`A=b=c`, []string{"A=b=c"}},
		{`"com.example.vendor"="ACME Incorporated"`, []string{"com.example.vendor=ACME Incorporated"}},
		{`KEY value with  spaces`, []string{"KEY=value with  spaces"}},
		{`KEY value with an = in it`, []string{"KEY=value with an = in it"}},
		{`KEY "quoted value"`, []string{"KEY=quoted value"}},
		{`A=1 A=2`, []string{"A=2"}},
		{`PATH=$HOME/bin`, []string{"PATH=$HOME/bin"}},
		{`A=1 B`, nil},
		{`A`, nil},
		{`=1`, nil},
		{`""=1`, nil},
		{`A="1`, nil},
		{`A it's`, nil},
	}
	for _, tt := range tests {
		for _, word := range []string{"ENV ", "ENV=", "LABEL ", "label "} {
			c, err := parseChanges([]string{word + tt.text})
			got := c.Env
			for k, v := range c.Labels {
				got = append(got, k+"="+v)
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) || (err != nil) != (tt.want == nil) || err != nil && !errors.Is(err, ErrReference) {
				t.Errorf("%s: got %q, want %q; %v", word+tt.text, got, tt.want, err)
			}
		}
	}
	c, err := parseChanges([]string{"ENV A=1 B=2", "ENV B=3", "LABEL a=1 b=2", "LABEL b=3"})
	if err != nil || !slices.Equal(c.Env, []string{"A=1", "B=3"}) || fmt.Sprint(c.Labels) != "map[a:1 b:3]" {
		t.Errorf("%q %v, %v", c.Env, c.Labels, err)
	}
}

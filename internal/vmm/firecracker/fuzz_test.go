package firecracker

import (
	"strings"
	"testing"
)

// FuzzFault: what Firecracker says of a failure is one line, and never nothing.
func FuzzFault(f *testing.F) {
	f.Add("400 Bad Request", []byte(`{"fault_message":"An error occurred:\n bad"}`))
	f.Add("500", []byte(`{"fault_message":" "}`))
	f.Add("500", []byte(`[]`))
	f.Fuzz(func(t *testing.T, status string, body []byte) {
		got := fault(status, body)
		if strings.TrimSpace(got) == "" {
			t.Errorf("nothing is said of %q", body)
		}
		if strings.ContainsAny(strings.TrimPrefix(got, "HTTP status "+status), "\n\r\t") {
			t.Errorf("more than a line: %q", got)
		}
	})
}

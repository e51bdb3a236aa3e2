package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

// said is a connection on which all that the other side says is known. What is
// written to it is lost.
type said struct{ io.Reader }

func (said) Write(p []byte) (int, error) { return len(p), nil }
func (said) Close() error                { return nil }

// FuzzQMP: whatever QEMU says, a command ends, and an error says whose it is.
func FuzzQMP(f *testing.F) {
	greeting := `{"QMP":{"version":{}}}` + "\n"
	f.Add([]byte(greeting + `{"return":{},"id":1}` + "\n" + `{"event":"STOP"}` + "\n" + `{"return":{"status":"running"},"id":2}` + "\n"))
	f.Add([]byte(greeting + `{"return":{},"id":1}` + "\n" + `{"error":{"class":"GenericError","desc":"no"},"id":2}` + "\n"))
	f.Add([]byte(greeting + greeting + `{"id":1}` + "\n" + `{"id":18446744073709551615,"return":[]}`))
	f.Add([]byte(`{"QMP":null}`))
	f.Add([]byte("\xff\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		q, err := newQMP(ctx, said{bytes.NewReader(b)}, func(string, json.RawMessage) {})
		if err == nil {
			var out map[string]any
			err = q.execute(ctx, "query-status", nil, &out)
			_ = q.Close()
		}
		if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Errorf("it waits for what cannot come: %v", err)
		}
		if err != nil && !errors.Is(err, errQMP) && !errors.Is(err, vmm.ErrExited) {
			t.Errorf("an error that does not say whose it is: %v", err)
		}
	})
}

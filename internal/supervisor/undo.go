package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// undoStack remembers how to take down what was set up, last in, first out.
type undoStack struct {
	steps []undoStep
}

type undoStep struct {
	what string
	do   func(context.Context) error
}

func (u *undoStack) add(what string, do func(context.Context) error) {
	u.steps = append(u.steps, undoStep{what, do})
}

// run undoes everything, whatever fails, and forgets it.
func (u *undoStack) run(ctx context.Context) error {
	var errs []error
	for _, s := range slices.Backward(u.steps) {
		if err := s.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.what, err))
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}

package volume

import (
	"context"

	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
)

// Step names a step of an operation; STATUS=, conditions and progress go by it.
type Step string

// The steps of opening, in their order, then those of closing, of changing what is recorded or in the header, and of creating.
const (
	StepRecord    Step = "record"
	StepGuard     Step = "guard"
	StepContainer Step = "container"
	StepHeader    Step = "header"
	StepAttach    Step = "attach"
	StepUnlock    Step = "unlock"
	StepCheck     Step = "filesystem"
	StepMount     Step = "mount"
	StepBind      Step = "bind"

	StepUnbind  Step = "unbind"
	StepUnmount Step = "unmount"
	StepLock    Step = "lock"

	StepProve   Step = "prove key"
	StepCompare Step = "compare"
	StepStores  Step = "stores"

	StepResize Step = "mapping"
	StepGrowFS Step = "grow filesystem"

	StepPreflight Step = "preflight"
	StepCopy      Step = "copy"
	StepVerify    Step = "verify"
	StepStop      Step = "stop service"
	StepDelta     Step = "copy the rest"
	StepVerifyAll Step = "verify all"
	StepSwap      Step = "swap"
	StepStart     Step = "start service"
	StepTrial     Step = "trial"
	StepCarryBack Step = "carry back"
	StepSwapBack  Step = "swap back"
	StepDiscard   Step = "discard the copy"
	StepPurge     Step = "purge"

	StepAllocate Step = "allocate"
	StepFormat   Step = "format"
	StepKeys     Step = "keys"
	StepMakeFS   Step = "make filesystem"
)

// StepError says in which step an operation failed. It wraps the cause.
type StepError struct {
	Step Step
	Err  error
}

func (e *StepError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }

// step is a named part of an operation.
type step struct {
	name Step
	do   func(context.Context) error
}

func runSteps(ctx context.Context, observer Observer, steps []step) error {
	for _, step := range steps {
		observer.Step(step.name)
		err := context.Cause(ctx)
		if err == nil {
			err = step.do(ctx)
		}
		if err != nil {
			return &StepError{Step: step.name, Err: err}
		}
	}
	return nil
}

// silent observes nothing.
type silent struct{}

func (silent) Step(Step)                             {}
func (silent) Progress(int64, int64)                 {}
func (silent) Attempt(unlock.Attempt)                {}
func (silent) Event(journal.Event, ...journal.Field) {}

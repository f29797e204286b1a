package volume

import (
	"context"

	"luksmediad/pkg/unlock/luks2"
)

// Foresee does the steps of Open that need no key and change nothing: record, container, header. It fails with a
// [StepError], and tells of a valid header what is damaged of it.
func (v *Volume) Foresee(ctx context.Context) (*luks2.Header, error) {
	o := &opening{Volume: v, observer: silent{}}
	defer o.release()
	err := o.run(ctx, []step{
		{StepRecord, o.loadRecord},
		{StepContainer, o.open},
		{StepHeader, o.readHeader},
	})
	return o.opened.Header, err
}

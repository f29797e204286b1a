package volume

import (
	"context"
	"os"

	"luksmediad/pkg/unlock/luks2"
)

// Foresee does the steps of Open that need no key and change nothing: record, container, header. It fails with a
// [StepError], and tells of a valid header what is damaged of it.
func (v *Volume) Foresee(ctx context.Context) (*luks2.Header, error) {
	o := &opening{Volume: v, observer: silent{}}
	defer o.release()
	err := o.run(ctx, []step{
		{StepRecord, o.loadRecord},
		{StepContainer, o.look},
		{StepHeader, o.readHeader},
	})
	return o.opened.Header, err
}

// look opens the container only for reading.
func (o *opening) look(context.Context) (err error) {
	if o.container, err = openContainer(o.config.Volume.Container, os.O_RDONLY); err != nil {
		return err
	}
	return o.container.checkAllocated()
}

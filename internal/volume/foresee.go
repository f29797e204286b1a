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

// look opens the container as an opening does, for writing, and writes nothing: a container that may not be written to, since it
// is immutable or its filesystem is mounted read-only, is of no use.
func (o *opening) look(context.Context) (err error) {
	if o.container, err = openContainer(o.config.Volume.Container, os.O_RDWR); err != nil {
		return err
	}
	return o.container.checkAllocated()
}

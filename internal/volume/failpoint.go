package volume

// fail is where tests interrupt an operation; see [Volume.failpoint].
func (v *Volume) fail(point string) error {
	if v.failpoint == nil {
		return nil
	}
	return v.failpoint(point)
}

// after is the failpoint behind a step that has ended with err.
func (v *Volume) after(step string, err error) error {
	if err != nil {
		return err
	}
	return v.fail("after " + step)
}

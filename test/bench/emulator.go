package main

import (
	"fmt"
	"slices"

	"luksmediad/test/swtpm"
)

// harness lets a program that is no test have an emulated TPM.
type harness struct {
	cleanups []func()
}

// Helper does nothing.
func (*harness) Helper() {}

// Error is for what cannot be put right any more.
func (*harness) Error(args ...any) { panic(fmt.Sprint(args...)) }

// Fatal ends the program.
func (*harness) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// Cleanup keeps f for end.
func (h *harness) Cleanup(f func()) { h.cleanups = append(h.cleanups, f) }

func (h *harness) end() {
	for _, f := range slices.Backward(h.cleanups) {
		f()
	}
}

// newTPM starts a TPM whose PCR 7 has been extended, until end is called.
func newTPM() (tpm *swtpm.TPM, end func()) {
	h := &harness{}
	tpm = swtpm.Start(h)
	tpm.Extend(7, "firmware")
	return tpm, h.end
}

//go:build kernel

// Package kernel drives the luksmediad binary end to end, as root, on a real kernel with loop devices, device mapper
// and dm-crypt: the one that test/kernel/uml boots. LUKSMEDIAD_BINARY names the binary.
package kernel

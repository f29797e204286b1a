// Package keys tells what is known about each keyslot of a LUKS2 container, and what can be proven: of any container,
// made by whomever, as an ordinary user who may only read it.
//
// Nothing here writes. The container is opened for reading, its header is read once, and everything else, cryptsetup
// included, works on that copy.
package keys

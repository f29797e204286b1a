// Package volume performs the operations on the one configured volume: create, adopt, open, close, inspect and grow it, migrate stores
// into it and back, and change its keys.
//
// Each operation is a list of steps. A step looks first: what is already as it should be is adopted, what is foreign
// is refused, only the rest is done. So every operation can be interrupted anywhere and run again. Nothing here
// decides when: that is for the daemon and the commands, which hold the lock of [Volume.Acquire] meanwhile.
package volume

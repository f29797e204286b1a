// Package daemon keeps the volume open: it knows the order of things and nothing else does.
//
// One goroutine owns the lifecycle, which is a table (lifecycle.go). It starts at most one operation on the volume at
// a time, hears its outcome, and decides what follows: serve, try again later, stay locked. Everything that others see
// of it, by HTTP, metrics, STATUS= and journal, is the board of conditions and a snapshot that it publishes.
package daemon

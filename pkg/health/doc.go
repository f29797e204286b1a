// Package health knows how an encrypted volume is doing: one closed list of conditions,
// the probes that check some of them by doing something real, and the three faces of the
// list: HTTP health endpoints, Prometheus metrics and plain values.
//
// A Board holds the outcome of every condition. Lifecycle steps report to it with Set; a
// Prober runs probes on its own timer and reports theirs. Rendering reads the Board and does
// no I/O, so a scrape can neither cause a write nor hang on a broken disk.
package health

package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// figure is one row of the table.
type figure struct {
	name, unit string
	ours, peer []float64
}

func (f figure) row() string {
	peer, ratio := "–", "–"
	if len(f.peer) > 0 {
		peer = summary(f.peer)
		ratio = fmt.Sprintf("%.3g×", median(f.ours)/median(f.peer))
	}
	return fmt.Sprintf("| %s, %s | %s | %s | %s |", f.name, f.unit, summary(f.ours), peer, ratio)
}

// summary is the median with the extremes.
func summary(values []float64) string {
	digits := 1
	if median(values) < 10 {
		digits = 3
	}
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, median(values), digits, slices.Min(values), digits, slices.Max(values))
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// percentile is the smallest value that a share of them does not exceed.
func percentile(values []float64, share float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

// printConditions says under which conditions the figures of a table hold.
func printConditions(runs int) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("cannot tell the kernel's version: %w", err)
	}
	_, err := fmt.Printf("%d runs of each by turns, median (min–max); kernel %s, %d CPUs; %s; systemd %s; %s.\n\n", runs,
		unix.ByteSliceToString(name.Release[:]), runtime.NumCPU(), firstLine("cryptsetup", "--version"),
		firstLine("udevadm", "--version"), firstLine("swtpm", "--version"))
	return err
}

// firstLine is what a program says of its version.
func firstLine(program string, args ...string) string {
	output, err := exec.Command(program, args...).Output()
	if err != nil {
		return program + " of unknown version"
	}
	line, _, _ := bytes.Cut(output, []byte("\n"))
	return string(line)
}

// Command bench measures luksmediad beside what it replaces, always both in one run, and prints a table. It changes
// the machine it runs on: test/bench/run starts it in one of its own.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: bench LUKSMEDIAD RUNS")
		os.Exit(2)
	}
	runs, err := strconv.Atoi(os.Args[2])
	if err == nil {
		err = bench(os.Args[1], runs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench takes every figure and prints the table.
func bench(binary string, runs int) error {
	v, err := newVolume(binary)
	if err != nil {
		return err
	}
	figures, err := v.measure(runs)
	if err != nil {
		return err
	}
	if err := printConditions(runs); err != nil {
		return err
	}
	fmt.Println("| | luksmediad | peer | ratio |")
	fmt.Println("|---|---|---|---|")
	for _, f := range figures {
		fmt.Println(f.row())
	}
	return nil
}

// measure opens and closes the volume by turns. The first turn warms the caches and does not count.
func (v *volume) measure(runs int) ([]figure, error) {
	ready := figure{name: "closed to mounted: start to READY=1, beside systemd-cryptsetup attach + systemd-fsck + mount", unit: "ms"}
	adopted := figure{name: "restart: start to READY=1 while the volume is open (the peer has no daemon)", unit: "ms"}
	idle := figure{name: "resident memory after READY=1", unit: "MiB"}
	scraped := figure{name: "resident memory after ten scrapes of /metrics", unit: "MiB"}
	for turn := range runs + 1 {
		ours, err := v.openWithDaemon()
		if err != nil {
			return nil, err
		}
		theirs, err := v.openWithSystemd()
		if err != nil {
			return nil, err
		}
		if turn == 0 {
			continue
		}
		ready.ours, ready.peer = append(ready.ours, ours.ready), append(ready.peer, theirs)
		adopted.ours = append(adopted.ours, ours.adopted)
		idle.ours, scraped.ours = append(idle.ours, ours.idle), append(scraped.ours, ours.scraped)
	}
	return []figure{ready, adopted, idle, scraped}, nil
}

// Command bench measures luksmediad beside what it replaces, always both in one run, and prints a table.
//
//	bench host RUNS                  what needs no privileges, on this machine
//	bench disk RUNS FILES ENTRIES    moving FILES files and reading them, and ENTRIES empty ones for the memory, on this machine's disk, as root
//	bench guest LUKSMEDIAD RUNS      what changes the machine: test/bench/run starts it in one of its own
//	bench grow LUKSMEDIAD RUNS       growing volumes beneath a writer, in a machine of its own too
//	bench crypt RUNS FILES           moving FILES files through dm-crypt and reading them, in a machine of its own too
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
)

func main() {
	if err := bench(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: bench host RUNS | disk RUNS FILES ENTRIES | guest LUKSMEDIAD RUNS | grow LUKSMEDIAD RUNS | crypt RUNS FILES")

func bench(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "host":
		return measured(args[1], measureHost)
	case len(args) == 3 && args[0] == "guest":
		return measured(args[2], func(runs int) ([]figure, error) { return measureGuest(args[1], runs) })
	case len(args) == 3 && args[0] == "grow":
		return measured(args[2], func(runs int) ([]figure, error) { return measureGrowing(args[1], runs) })
	case len(args) == 4 && args[0] == "disk":
		files, entries, err := counts(args[2], args[3])
		if err != nil {
			return err
		}
		return measured(args[1], func(runs int) ([]figure, error) { return measureDisk(runs, files, entries) })
	case len(args) == 3 && args[0] == "crypt":
		files, _, err := counts(args[2], "0")
		if err != nil {
			return err
		}
		return measured(args[1], func(runs int) ([]figure, error) { return measureCrypt(runs, files) })
	case len(args) == 2 && args[0] == "job": // a child of this program
		var j job
		if err := json.Unmarshal([]byte(args[1]), &j); err != nil {
			return err
		}
		return j.run()
	}
	return errUsage
}

func counts(files, entries string) (f, e int, err error) {
	f, err = strconv.Atoi(files)
	if err == nil {
		e, err = strconv.Atoi(entries)
	}
	if err != nil || f < 1 || e < 0 {
		return 0, 0, errUsage
	}
	return f, e, nil
}

// measured takes the figures and prints their table.
func measured(count string, measure func(runs int) ([]figure, error)) error {
	runs, err := strconv.Atoi(count)
	if err != nil || runs < 1 {
		return errUsage
	}
	figures, err := measure(runs)
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
	fmt.Println()
	return nil
}

// measureGuest takes every figure that needs root and a device mapper.
func measureGuest(binary string, runs int) ([]figure, error) {
	v, err := newVolume(binary, "bench")
	if err != nil {
		return nil, err
	}
	whole, err := v.measure(runs)
	if err != nil {
		return nil, err
	}
	unlocking, err := measureUnlock(runs)
	if err != nil {
		return nil, err
	}
	scraping, err := v.measureScraping(runs)
	return slices.Concat(whole, unlocking, scraping), err
}

// measureScraping takes the figures of the daemon's HTTP side, with the volume open.
func (v *volume) measureScraping(runs int) (_ []figure, err error) {
	daemon, _, err := v.startDaemon()
	if err != nil {
		return nil, err
	}
	if err := end(daemon); err != nil {
		return nil, err
	}
	figures, err := v.measureExporters(runs)
	if err != nil {
		return nil, err
	}
	suspended, err := v.measureSuspended(runs)
	return append(figures, suspended), err
}

// measure opens and closes the volume by turns. The first turn warms the caches and does not count.
func (v *volume) measure(runs int) ([]figure, error) {
	ready := figure{name: "closed to mounted: start to READY=1, beside systemd-cryptsetup attach + systemd-fsck + mount", unit: "ms"}
	adopted := figure{name: "restart: start to READY=1 while the volume is open (the peer has no daemon)", unit: "ms"}
	idle := figure{name: "resident memory after READY=1", unit: "MiB"}
	scraped := figure{name: "resident memory after ten scrapes of /metrics", unit: "MiB"}
	for turn := range runs + 1 {
		ours, err := v.openWithDaemon()
		if err := errors.Join(err, settle()); err != nil {
			return nil, err
		}
		theirs, err := v.openWithSystemd()
		if err := errors.Join(err, settle()); err != nil {
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

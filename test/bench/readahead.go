package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// readaheadKiB is what Linux gives a disk (VM_READAHEAD_PAGES of include/linux/pagemap.h).
const readaheadKiB = "128"

// withReadahead gives the disk that a path is on Linux's own readahead for as long as measure takes.
func withReadahead(path string, measure func() ([]figure, error)) (figures []figure, err error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return nil, err
	}
	file := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(stat.Dev), unix.Minor(stat.Dev))
	before, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(readaheadKiB), 0); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.WriteFile(file, before, 0)) }()
	if was := strings.TrimSpace(string(before)); was != readaheadKiB {
		fmt.Printf("For reading the readahead of the disk is %s KiB, otherwise %s.\n\n", readaheadKiB, was)
	}
	return measure()
}

package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"
)

// openWithSystemd does with systemd's programs what luksmediad does from its start to READY=1, closes everything, and gives the
// milliseconds of the first part.
//
// luksmediad's guard makes the mountpoints immutable; that does not keep anybody from mounting over them.
func (v *volume) openWithSystemd() (float64, error) {
	device := "/dev/mapper/" + v.mapping
	began := time.Now()
	err := runAll([][]string{
		// systemd-cryptsetup@.service, ExecStart=.
		{systemd("systemd-cryptsetup"), "attach", v.mapping, v.container, v.keyFile, "luks"},
		// systemd-fsck@.service, ExecStart=.
		{systemd("systemd-fsck"), device},
		// A mount unit runs mount(8), systemd.mount(5).
		{"mount", "-t", "ext4", "-o", "nosuid,nodev,noexec", device, v.root},
		{"mount", "--bind", filepath.Join(v.root, "stores/media"), v.store},
	})
	took := milliseconds(time.Since(began))
	return took, errors.Join(err, runAll([][]string{
		{"umount", v.store},
		{"umount", v.root},
		{systemd("systemd-cryptsetup"), "detach", v.mapping},
	}))
}

func runAll(commands [][]string) error {
	for _, command := range commands {
		if err := run(command[0], command[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// systemd is where a program of systemd lies; from version 255 on systemd-cryptsetup is in the PATH too.
func systemd(program string) string {
	const folder = "/lib/systemd/"
	if _, err := os.Stat(folder + program); err != nil {
		return program
	}
	return folder + program
}

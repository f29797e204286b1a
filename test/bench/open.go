package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// open takes a container to its mapping by the steps of the daemon. key is a TPM's address or the path of a key file.
func open(container, name, key string) error {
	ctx := context.Background()
	file, err := os.OpenFile(container, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	header, err := luks2.Read(file, size)
	if err == nil {
		err = header.Validate(size)
	}
	if err != nil {
		return err
	}
	loop, err := attach(file)
	if err != nil {
		return err
	}
	info := loop.Info()
	opener := unlock.Opener{Cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}}, Sources: []unlock.Source{sourceOf(key)}}
	_, err = opener.Open(ctx, unlock.Target{
		Container: container, Device: loop.Path(), Backing: fmt.Sprintf("%d:%d", info.Major, info.Minor), Name: name, Header: header,
	})
	return errors.Join(err, loop.Close())
}

// attach gives the container the loop device that luksmediad gives it.
func attach(container *os.File) (*mount.Loop, error) {
	options := mount.LoopOptions{BlockBytes: sectorBytes, DirectIO: true, AutoClear: true}
	return mount.AttachLoop(context.Background(), container, options)
}

func sourceOf(key string) unlock.Source {
	if filepath.IsAbs(key) {
		return unlock.KeyFile{Path: key}
	}
	return unlock.TPM2{Device: key}
}

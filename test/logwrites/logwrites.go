// Package logwrites reads what the device-mapper target log-writes has logged, and replays it. It is for tests.
//
// The target logs a write when it is completed and a flush has made it durable, so that the beginning of a log, up to any flush, is what a
// power failure leaves at the least (admin-guide/device-mapper/log-writes.rst in Linux).
package logwrites

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The format, in little endian (drivers/md/dm-log-writes.c): a header in a sector of its own, then for each entry one that describes it, or
// is the mark, and its data.
const (
	magic       = 0x6a736677736872
	version     = 1
	superBytes  = 28
	entryBytes  = 32
	unitBytes   = 512
	maxSector   = 64 << 10 // bytes; more than any device has
	maxWrite    = 1 << 30  // bytes; more than any bio has
	zeroedBytes = 1 << 20
)

// ErrCorrupt means that this is no log.
var ErrCorrupt = errors.New("not a log of dm-log-writes")

// Flags say what an entry is.
type Flags uint64

// The flags of an entry.
const (
	Flush Flags = 1 << iota
	FUA
	Discard
	Mark
	Metadata
)

// Entry is one write, or a mark.
type Entry struct {
	Flags Flags
	// Mark is what was to be noted.
	Mark string
	// At and Bytes say where in the device was written, and At 0 and Bytes 0 is a flush alone.
	At, Bytes int64
	// data is where in the log it lies.
	data int64
}

// Durable tells whether the disk has said of this entry, or of all before it, that it is durable.
func (e *Entry) Durable() bool { return e.Flags&(Flush|FUA) != 0 }

// Log is what was logged.
type Log struct {
	Entries []Entry
	file    io.ReaderAt
}

// Read reads the log at the beginning of a device or file. Error: ErrCorrupt.
func Read(file io.ReaderAt) (*Log, error) {
	super := make([]byte, superBytes)
	if _, err := file.ReadAt(super, 0); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	count, sector := binary.LittleEndian.Uint64(super[16:]), int64(binary.LittleEndian.Uint32(super[24:]))
	switch {
	case binary.LittleEndian.Uint64(super) != magic || binary.LittleEndian.Uint64(super[8:]) != version:
		return nil, fmt.Errorf("%w: magic or version is another", ErrCorrupt)
	case sector < unitBytes || sector > maxSector || sector&(sector-1) != 0:
		return nil, fmt.Errorf("%w: a sector has %d bytes", ErrCorrupt, sector)
	}
	l := &Log{file: file}
	at := sector
	for range count {
		e, err := readEntry(file, at, sector)
		if err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrCorrupt, len(l.Entries), err)
		}
		l.Entries = append(l.Entries, *e)
		at = e.data
		if e.Flags&Discard == 0 {
			at += e.Bytes
		}
	}
	return l, nil
}

func readEntry(file io.ReaderAt, at, sector int64) (*Entry, error) {
	raw := make([]byte, sector)
	if _, err := file.ReadAt(raw, at); err != nil {
		return nil, err
	}
	first, sectors := binary.LittleEndian.Uint64(raw), binary.LittleEndian.Uint64(raw[8:])
	flags, length := Flags(binary.LittleEndian.Uint64(raw[16:])), binary.LittleEndian.Uint64(raw[24:])
	limit := uint64(maxWrite)
	if flags&Discard != 0 {
		limit = 1 << 40
	}
	switch {
	case flags >= Metadata<<1:
		return nil, fmt.Errorf("flags %#x", flags)
	case flags&Mark != 0 && (length > uint64(sector-entryBytes) || sectors != 0):
		return nil, fmt.Errorf("a mark of %d bytes and %d sectors", length, sectors)
	case flags&Mark == 0 && length != 0:
		return nil, fmt.Errorf("%d bytes of its own", length)
	case sectors > limit/uint64(sector) || first > 1<<50:
		return nil, fmt.Errorf("%d sectors from %d", sectors, first)
	}
	return &Entry{
		Flags: flags, Mark: string(raw[entryBytes : entryBytes+length]),
		At: int64(first) * sector, Bytes: int64(sectors) * sector, data: at + sector,
	}, nil
}

// Replay does the entries from and up to, but not including, to once more.
func (l *Log) Replay(onto io.WriterAt, from, to int) error {
	for i := from; i < to; i++ {
		if err := l.replay(onto, &l.Entries[i]); err != nil {
			return fmt.Errorf("cannot replay entry %d: %w", i, err)
		}
	}
	return nil
}

func (l *Log) replay(onto io.WriterAt, e *Entry) error {
	if e.Flags&Discard != 0 {
		return zero(onto, e.At, e.Bytes)
	}
	if e.Bytes == 0 {
		return nil
	}
	data := make([]byte, e.Bytes)
	if _, err := l.file.ReadAt(data, e.data); err != nil {
		return err
	}
	_, err := onto.WriteAt(data, e.At)
	return err
}

// zero stands for a discard, after which a device holds what it likes.
func zero(onto io.WriterAt, at, length int64) error {
	zeros := bytes.Repeat([]byte{0}, int(min(length, zeroedBytes)))
	for end := at + length; at < end; {
		n, err := onto.WriteAt(zeros[:min(int64(len(zeros)), end-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

package volume

import (
	"bytes"
	"os"
	"slices"
	"time"

	"luksmediad/internal/config"
)

// Purposes are the words by which records name what opens a keyslot: a closed set.
func Purposes() []string {
	return append(config.SourceKinds(), sourceRecovery)
}

// Kept is what is kept about the keys beside the container.
type Kept struct {
	// Purposes has one of [Purposes] for each keyslot that luksmediad made.
	Purposes []string
	// HeaderBackup is when header and keyslots were last copied; zero if there is no copy.
	HeaderBackup time.Time
	// RecoveryProven is when a recovery key was last seen to open its keyslot; zero if never.
	RecoveryProven time.Time
}

// Kept is empty where there is no record of the container.
func (v *Volume) Kept() Kept {
	var kept Kept
	record, err := v.loadRecord()
	if err != nil {
		return kept
	}
	for _, keyslot := range record.Keyslots {
		kept.Purposes = append(kept.Purposes, keyslot.Source)
	}
	if info, err := os.Stat(v.backupPath(record.Pin.UUID)); err == nil {
		kept.HeaderBackup = info.ModTime()
	}
	kept.RecoveryProven = v.recoveryProven(record)
	return kept
}

// HeaderCopy is the file with the copy of the recorded container's header; empty if none is kept.
func (v *Volume) HeaderCopy() string {
	record, err := v.loadRecord()
	if err != nil {
		return ""
	}
	path := v.backupPath(record.Pin.UUID)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// recoveryProven goes by the salts in the record, so that no header has to be read.
func (v *Volume) recoveryProven(record *Record) (last time.Time) {
	known, err := v.loadProofs()
	if err != nil {
		return time.Time{}
	}
	for _, proof := range known {
		recovery := slices.ContainsFunc(record.Keyslots, func(made Keyslot) bool {
			return made.Source == sourceRecovery && made.Slot == proof.Keyslot && bytes.Equal(made.Salt, proof.Salt)
		})
		if recovery && proof.Time.After(last) {
			last = proof.Time
		}
	}
	return last
}

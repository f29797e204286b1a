package volume

import (
	"os"
	"time"
)

// Purposes are the words by which records name what opens a keyslot: a closed set.
func Purposes() []string {
	return []string{sourceRecovery, sourceTPM2, sourceKeyFile, sourcePassphrase, sourceClevis}
}

// Kept is what is kept about the keys beside the container.
type Kept struct {
	// Purposes has one of [Purposes] for each keyslot that luksmediad made.
	Purposes []string
	// HeaderBackup is when header and keyslots were last copied; zero if there is no copy.
	HeaderBackup time.Time
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
	return kept
}

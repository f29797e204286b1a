package volume

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock/luks2"
)

// recordVersion is raised when a field changes its meaning; an unknown newer version is refused.
const recordVersion = 1

// Record is what luksmediad wrote down about a volume when it was complete: no record, no use.
type Record struct {
	// Container is the configured path; Pin what must be found there.
	Container string    `json:"container"`
	Pin       luks2.Pin `json:"pin"`
	// Filesystem is the kind, FilesystemUUID its identity, Marker the content of the marker file in it.
	Filesystem     mount.Kind `json:"filesystem"`
	FilesystemUUID string     `json:"filesystem_uuid"`
	Marker         string     `json:"marker"`
	// Keyslots lists the slots that luksmediad made; it never touches another.
	Keyslots []Keyslot `json:"keyslots"`
	// Encrypted lists the stores that have moved in: they never fall back to clear text.
	Encrypted []EncryptedStore `json:"encrypted"`
	// Plaintext lists the stores that were seen with files in clear text: where such a path is empty, its disk is missing rather than that the
	// store is new. What moves in stays listed, for its way back.
	Plaintext []EncryptedStore `json:"plaintext,omitempty"`
	Created   time.Time        `json:"created"`
}

// EncryptedStore is a store that has moved in, or may: its folder in the volume goes by its name, and what a service finds at
// the path must be that folder.
type EncryptedStore struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

func (s EncryptedStore) String() string { return s.Name + " at " + s.Path }

// isEncrypted tells whether the store has moved in.
func (r *Record) isEncrypted(store config.Store) bool {
	return slices.Contains(r.Encrypted, recorded(store))
}

// hadFiles tells whether a store of that name or at that path was seen in clear text.
func (r *Record) hadFiles(store config.Store) bool {
	return slices.ContainsFunc(r.Plaintext, func(s EncryptedStore) bool { return s.Name == store.Name || s.Path == store.Path })
}

// Unconfigured are the stores that have moved in and that the configuration does not name any more.
func (v *Volume) Unconfigured(record *Record) []EncryptedStore {
	return slices.DeleteFunc(slices.Clone(record.Encrypted), v.isConfigured)
}

func (v *Volume) isConfigured(store EncryptedStore) bool {
	return slices.ContainsFunc(v.config.Stores, func(s config.Store) bool { return recorded(s) == store })
}

// Outside are the configured stores that have not moved in.
func (v *Volume) Outside(record *Record) []config.Store {
	return slices.DeleteFunc(slices.Clone(v.config.Stores), record.isEncrypted)
}

func recorded(store config.Store) EncryptedStore {
	return EncryptedStore{Name: store.Name, Path: store.Path}
}

// checkStore refuses a store whose name or path was recorded for another one: it would be bound as an empty folder while
// its files lie in the other.
func (r *Record) checkStore(store config.Store) error {
	for _, encrypted := range r.Encrypted {
		if (encrypted.Name == store.Name) != (encrypted.Path == store.Path) {
			return r.unknownStore(store)
		}
	}
	return nil
}

func (r *Record) unknownStore(store config.Store) error {
	known := make([]string, len(r.Encrypted))
	for i, encrypted := range r.Encrypted {
		known[i] = encrypted.String()
	}
	return wrongf(ErrSettings, "cannot use store %s: the recorded stores are %s", recorded(store), strings.Join(known, ", "))
}

// Keyslot is a keyslot that luksmediad made.
type Keyslot struct {
	Slot   int    `json:"slot"`
	Source string `json:"source"`
	// Salt is that of the keyslot: what has another under the same number is somebody else's.
	Salt Hex `json:"salt,omitempty"`
}

// In tells whether the header has the keyslot.
func (s Keyslot) In(header *luks2.Header) bool {
	found, there := header.Metadata.Keyslots[s.Slot]
	return there && len(s.Salt) > 0 && bytes.Equal(found.KDF.Salt, s.Salt)
}

// keyslot is the one of the header that luksmediad made.
func (r *Record) keyslot(header *luks2.Header, number int) (Keyslot, bool) {
	for _, made := range r.Keyslots {
		if made.Slot == number && made.In(header) {
			return made, true
		}
	}
	return Keyslot{}, false
}

// has tells whether the number is that of a keyslot that luksmediad made, whatever the header has there now.
func (r *Record) has(number int) bool {
	return slices.ContainsFunc(r.Keyslots, func(made Keyslot) bool { return made.Slot == number })
}

// addSalts takes the salts that a record of before does not have from what is known of the header.
func (v *Volume) addSalts(record *Record) {
	if !slices.ContainsFunc(record.Keyslots, func(made Keyslot) bool { return len(made.Salt) == 0 }) {
		return
	}
	known, err := v.loadKnown(record.Pin.UUID)
	if err != nil || known == nil {
		return // nothing is taken for ours then, and all the rest goes on
	}
	for i, made := range record.Keyslots {
		if len(made.Salt) == 0 {
			record.Keyslots[i].Salt = known.Salts[made.Slot]
		}
	}
}

// loadRecord fails with [ErrUnfinished], [ErrAdopting] or [ErrNotSetUp] if there is none.
func (v *Volume) loadRecord() (*Record, error) {
	record, err := v.readRecord()
	if err == nil {
		err = v.checkContainer(record)
	}
	if err != nil {
		return nil, err
	}
	return record, nil
}

// readRecord does not ask whether the configuration is about the same container.
func (v *Volume) readRecord() (*Record, error) {
	var record Record
	err := v.states.Load(v.recordName(), recordVersion, &record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, v.whyNoRecord()
	}
	if err != nil {
		return nil, err
	}
	v.addSalts(&record)
	return &record, nil
}

func (v *Volume) checkContainer(record *Record) error {
	if record.Container == v.config.Volume.Container {
		return nil
	}
	return wrongf(ErrSettings, "cannot use volume %s: it was created in %s, not %s", v.Name(), record.Container, v.config.Volume.Container)
}

func (v *Volume) whyNoRecord() error {
	if _, err := v.loadCreation(); err == nil {
		return wrongf(ErrUnfinished, "cannot use volume %s", v.Name())
	}
	var begun adoption
	if err := v.states.Load(v.adoptionName(), adoptionVersion, &begun); err == nil && begun.Container == v.config.Volume.Container {
		return wrongf(ErrAdopting, "cannot use volume %s", v.Name())
	}
	return wrongf(ErrNotSetUp, "cannot use volume %s", v.Name())
}

// isNotThere tells whether there is no record, for whatever reason.
func isNotThere(err error) bool {
	return errors.Is(err, ErrNotSetUp) || errors.Is(err, ErrUnfinished) || errors.Is(err, ErrAdopting)
}

func (v *Volume) saveRecord(record *Record) error {
	return v.after("record", v.states.Save(v.recordName(), recordVersion, record))
}

// forgetRecord removes a record whose writing failed after it had got its name: there was none before, and a record without its container
// and its guards would stand for a volume that lost everything.
func (v *Volume) forgetRecord() error {
	err := v.states.Load(v.recordName(), recordVersion, new(Record))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := v.fail("before the record's end"); err != nil {
		return err
	}
	return v.states.Remove(v.recordName())
}

func (v *Volume) recordName() string { return "volume-" + v.Name() }

// RecordGlob matches the records of all volumes in the folder of the state. The gate's unit has it, too.
const RecordGlob = "volume-*.json"

// Recorded tells whether any volume is set up on this machine, whatever the configuration says.
func Recorded(paths Paths) bool {
	found, _ := filepath.Glob(filepath.Join(paths.State, RecordGlob)) // the pattern is well-formed
	return len(found) > 0
}

// Record is what was written down when the volume was created. It fails with [ErrUnfinished], [ErrAdopting] or
// [ErrNotSetUp] if nothing was.
func (v *Volume) Record() (*Record, error) { return v.loadRecord() }

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/pkg/mount"
)

// movesVersion is raised when a field changes its meaning.
const movesVersion = 1

// moves is the journal of the stores that move, or have moved and can go back. It changes only under the volume's lock, and every
// change is on disk before what it announces.
type moves struct {
	Moves []*move `json:"moves"`
}

// movePhase says which copy of a store is the truth.
type movePhase string

const (
	// phaseCopying: the one outside. The copy in the volume is not complete.
	phaseCopying movePhase = "copying"
	// phaseVerified: both copies are complete and equal, and nothing writes. Which is the truth is seen at the path: whichever directory
	// the exchange has left there.
	phaseVerified movePhase = "verified"
	// phaseTrial: the one in the volume. The service has not been seen well on it yet.
	phaseTrial movePhase = "trial"
	// phaseMoved: the one in the volume. The old one can be brought up to date, until it is purged.
	phaseMoved movePhase = "moved"
	// phaseReturning: the one in the volume. The old one is being brought up to date.
	phaseReturning movePhase = "returning"
	// phaseReturned: both are equal again and nothing writes; otherwise as phaseVerified.
	phaseReturned movePhase = "returned"
	// phaseBack: the one outside. The service has to be started, and the copy in the volume removed.
	phaseBack movePhase = "back"
	// phasePurging: the one in the volume. The old one is no longer complete.
	phasePurging movePhase = "purging"
)

// move is one store.
type move struct {
	Store string    `json:"store"`
	Path  string    `json:"path"`
	ID    string    `json:"id"`
	Phase movePhase `json:"phase"`
	// Plain is the store's directory outside the volume, Bare the one that takes its place. Aside holds whichever is not at the path; it is
	// root's alone, so that nobody else can put anything back.
	Plain mount.DirectoryID `json:"plain"`
	Bare  mount.DirectoryID `json:"bare"`
	Aside mount.DirectoryID `json:"aside"`
	// Stopped: luksmediad has stopped the service, or was about to, and has to start it again.
	Stopped bool `json:"stopped"`
	// Began and Moved are when the move began, and when the store was seen well in the volume.
	Began   time.Time `json:"began"`
	Moved   time.Time `json:"moved,omitzero"`
	Entries int64     `json:"entries"`
	Bytes   int64     `json:"bytes"`
}

// inVolume: the truth is in the volume, as far as the journal alone tells.
func (m *move) inVolume() bool {
	switch m.Phase {
	case phaseTrial, phaseMoved, phaseReturning, phasePurging:
		return true
	}
	return false
}

// settled is the phase of a store that stays in the volume.
func (m *move) settled() movePhase {
	if m.Moved.IsZero() {
		return phaseTrial
	}
	return phaseMoved
}

// unresolved: only a look at the path tells which copy is the truth.
func (m *move) unresolved() bool { return m.Phase == phaseVerified || m.Phase == phaseReturned }

func (v *Volume) movesName() string { return "migrate-" + v.Name() }

func (v *Volume) loadMoves() (*moves, error) {
	var found moves
	if err := v.states.Load(v.movesName(), movesVersion, &found); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &found, nil
}

func (m *moves) of(store config.Store) *move {
	for _, move := range m.Moves {
		if move.Store == store.Name && move.Path == store.Path {
			return move
		}
	}
	return nil
}

// loadMove returns nil if the store has never moved, or is done with it.
func (v *Volume) loadMove(store config.Store) (*move, error) {
	all, err := v.loadMoves()
	if err != nil {
		return nil, err
	}
	return all.of(store), nil
}

// saveMove writes the move down among the others. The volume's lock is held.
func (v *Volume) saveMove(changed *move) error {
	if err := v.fail("before " + string(changed.Phase)); err != nil {
		return err
	}
	all, err := v.loadMoves()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all.Moves, func(m *move) bool { return m.Store == changed.Store })
	if at < 0 {
		all.Moves = append(all.Moves, changed)
	} else {
		all.Moves[at] = changed
	}
	if err := v.states.Save(v.movesName(), movesVersion, all); err != nil {
		return err
	}
	return v.fail("after " + string(changed.Phase))
}

// forgetMove ends the journal of a store.
func (v *Volume) forgetMove(ended *move) error {
	if err := v.fail("before the journal's end"); err != nil {
		return err
	}
	all, err := v.loadMoves()
	if err != nil {
		return err
	}
	all.Moves = slices.DeleteFunc(all.Moves, func(m *move) bool { return m.Store == ended.Store })
	if len(all.Moves) == 0 {
		return v.states.Remove(v.movesName())
	}
	return v.states.Save(v.movesName(), movesVersion, all)
}

// removeJournal ends a journal: all that it tells of is done, or undone.
func (v *Volume) removeJournal(name string) error {
	if err := v.fail("before the journal's end"); err != nil {
		return err
	}
	return v.states.Remove(name)
}

// movesPatience outlasts the look of a daemon at what was interrupted.
const movesPatience = 2 * time.Second

// lockMoves keeps every other process from moving a store, for as long as that takes; the volume can be used meanwhile.
func (v *Volume) lockMoves(ctx context.Context) (release func() error, err error) {
	waiting, cancel := context.WithTimeout(ctx, movesPatience)
	defer cancel()
	return state.LockWait(waiting, v.movesLock())
}

func (v *Volume) movesLock() string { return filepath.Join(v.paths.Runtime, v.Name()+".migrate.lock") }

// Moving is the process that works on the moves of the volume; 0 if there is none.
func (v *Volume) Moving() int { return state.Holder(v.movesLock()) }

// lockPatience is how long a move waits for another operation on the volume.
const lockPatience = 2 * time.Minute

func (v *Volume) lockPatiently(ctx context.Context) (release func() error, err error) {
	waiting, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	return v.Acquire(waiting)
}

// movesFolder is below the private folder of the volume: manifests name files, and nothing of that belongs outside.
const movesFolder = "moves"

// moveState is the folder of the copy's manifest, moveStateBack that of the way back.
func (v *Volume) moveState(m *move) string { return filepath.Join(v.PrivateDir(), movesFolder, m.ID) }

func (v *Volume) moveStateBack(m *move) string { return v.moveState(m) + ".back" }

func makePrivate(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("cannot make %s: %w", path, err)
	}
	return nil
}

// asidePath is the folder beside the store that holds its old directory: nobody else knows its name before it is there.
func asidePath(m *move) string {
	return filepath.Join(filepath.Dir(m.Path), "."+filepath.Base(m.Path)+".luksmediad-"+m.ID)
}

// inAside are the directories of a move in its folder aside: the one that changes places with the store, and the one with which that was tried.
func inAside(m *move, aside string) (place, trial string) {
	place = filepath.Join(aside, filepath.Base(m.Path))
	return place, place + ".trial"
}

// findAside returns where the other directory is. Whoever owns the folder above may have renamed what it is in; where the disk was copied file
// by file to another, it is not found at all.
func findAside(m *move) (string, error) {
	folder, err := mount.FindDirectory(filepath.Dir(m.Path), m.Aside)
	if errors.Is(err, fs.ErrNotExist) {
		return "", wrongf(ErrOldMissing, "cannot find the old directory of store %s, which was put into %s", m.Store, asidePath(m))
	}
	if err != nil {
		return "", fmt.Errorf("cannot find the old directory of store %s: %w", m.Store, err)
	}
	return filepath.Join(folder, filepath.Base(m.Path)), nil
}

// place says what one sees at the path of a store.
type place int

const (
	placeElse  place = iota // something that has no part in the move
	placePlain              // the store's old directory
	placeBare               // the directory that took its place, or the volume on it
)

func (m *move) look() (place, error) {
	seen, mounted, err := mount.IdentifyDirectory(m.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return placeElse, nil
	case err != nil:
		return placeElse, err
	case mounted, seen.Is(m.Bare):
		return placeBare, nil
	case seen.Is(m.Plain):
		return placePlain, nil
	}
	return placeElse, nil
}

// resolveMoves decides for every interrupted move which copy is the truth, and writes it down: by what is at the path and was recorded
// before, never by the path alone. A crash in the middle of the exchange leaves either order.
func (v *Volume) resolveMoves(record *Record) error {
	all, err := v.loadMoves()
	if err != nil {
		return err
	}
	var faults []error
	for _, m := range all.Moves {
		if m.unresolved() {
			faults = append(faults, v.resolve(m, record))
		}
	}
	return errors.Join(faults...)
}

func (v *Volume) resolve(m *move, record *Record) error {
	at, err := m.look()
	if err != nil {
		return err
	}
	moved := EncryptedStore{Name: m.Store, Path: m.Path}
	switch {
	case at == placePlain:
		return v.settlePlain(m, record)
	case at == placeBare && m.Phase == phaseVerified && !slices.Contains(record.Encrypted, moved):
		return v.undoExchange(m, record)
	case at == placeBare:
		return v.settleEncrypted(m, record)
	}
	return aboutStore(m.Store, wrongf(ErrMoveUnclear,
		"cannot tell where store %s is: neither its old directory nor the one that took its place is at %s", m.Store, m.Path))
}

// undoExchange is for a run that has not come to look whether somebody has written to the old directory meanwhile: the record is written after that,
// and before anything can be in the volume alone.
func (v *Volume) undoExchange(m *move, record *Record) error {
	aside, err := findAside(m)
	if err != nil {
		return err
	}
	if err := v.exchangeBack(m, aside); err != nil {
		return err
	}
	return v.settlePlain(m, record)
}

// exchangeBack undoes an exchange, durably: what is written down next takes it for never done.
func (v *Volume) exchangeBack(m *move, aside string) error {
	if err := mount.Exchange(m.Path, aside); err != nil {
		return err
	}
	return v.syncExchange(m)
}

// settleEncrypted makes the copy in the volume the truth for good.
func (v *Volume) settleEncrypted(m *move, record *Record) error {
	if err := v.syncExchange(m); err != nil {
		return err
	}
	before := record.Encrypted
	if moved := (EncryptedStore{Name: m.Store, Path: m.Path}); !slices.Contains(before, moved) {
		record.Encrypted = append(slices.Clone(before), moved)
	}
	if err := v.saveRecord(record); err != nil {
		record.Encrypted = v.encryptedOnDisk(before)
		return err
	}
	if m.Phase == phaseVerified {
		m.Phase = phaseTrial
	} else {
		m.Phase = m.settled()
	}
	return v.saveMove(m)
}

// encryptedOnDisk is what the record says after a failure to write it, which may have come behind the rename; or else what it has said before.
func (v *Volume) encryptedOnDisk(before []EncryptedStore) []EncryptedStore {
	written, err := v.readRecord()
	if err != nil {
		return before
	}
	return written.Encrypted
}

// settlePlain makes the copy outside the truth.
func (v *Volume) settlePlain(m *move, record *Record) error {
	if m.Phase == phaseVerified {
		m.Phase = phaseCopying
		return v.saveMove(m)
	}
	if err := v.syncExchange(m); err != nil {
		return err
	}
	record.Encrypted = slices.DeleteFunc(record.Encrypted, func(s EncryptedStore) bool { return s.Name == m.Store })
	if err := v.saveRecord(record); err != nil {
		return err
	}
	m.Phase = phaseBack
	return v.saveMove(m)
}

// syncExchange makes durable what is seen at the path, before anything else says the same.
func (v *Volume) syncExchange(m *move) error {
	aside, err := findAside(m)
	if err != nil {
		return err
	}
	return errors.Join(mount.SyncDirectory(filepath.Dir(m.Path)), mount.SyncDirectory(filepath.Dir(aside)))
}

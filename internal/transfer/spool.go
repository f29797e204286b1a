package transfer

import (
	"bufio"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
)

const (
	// spoolEntries is how many entries stay in memory; more go to disk, sorted. Of what is kept in another way it is twice as many.
	spoolEntries = 48 << 10
	// pieceEntries are sorted by whoever adds the last of them, while others go on.
	pieceEntries = 4 << 10
)

// run begins to read sorted entries anew.
type run func() stream

// errNoState would be a mistake of the caller.
var errNoState = errors.New("no folder is given for what has to be sorted")

// spool sorts entries on disk.
type spool struct {
	dir     string
	compare func(a, b *Entry) int
	// keep, if it is there, stores a sorted run in a way of its own.
	keep func(entries stream) (run, error)

	mu      sync.Mutex
	entries []Entry    // the last, in no order
	pieces  [][]*Entry // sorted, each
	held    int        // how many there are in the pieces
	runs    []run
	files   []*os.File
	storing sync.Mutex
}

func newSpool(dir string, compare func(a, b *Entry) int) *spool {
	return &spool{dir: dir, compare: compare}
}

// add takes a copy of e.
func (s *spool) add(e *Entry) error {
	s.mu.Lock()
	s.entries = append(s.entries, *e)
	var full []Entry
	if len(s.entries) == pieceEntries {
		full, s.entries = s.entries, make([]Entry, 0, pieceEntries)
	}
	s.mu.Unlock()
	if full == nil {
		return nil
	}
	return s.hold(s.sort(full))
}

// hold keeps a piece in memory, or stores it with the others.
func (s *spool) hold(piece []*Entry) error {
	s.mu.Lock()
	s.pieces = append(s.pieces, piece)
	s.held += len(piece)
	var full [][]*Entry
	if s.held >= s.limit() {
		full, s.pieces, s.held = s.pieces, nil, 0
	}
	s.mu.Unlock()
	if full == nil {
		return nil
	}
	return s.store(full)
}

func (s *spool) limit() int {
	if s.keep != nil {
		return 2 * spoolEntries
	}
	return spoolEntries
}

// flush stores what is in memory.
func (s *spool) flush() error {
	s.mu.Lock()
	pieces := append(s.pieces, s.sort(s.entries))
	s.entries, s.pieces, s.held = nil, nil, 0
	s.mu.Unlock()
	return s.store(pieces)
}

// store is for one at a time, so that memory holds no more than two runs.
func (s *spool) store(pieces [][]*Entry) error {
	s.storing.Lock()
	defer s.storing.Unlock()
	entries, err := s.merged(pieces)
	if err != nil || len(entries.heads) == 0 {
		return err
	}
	run, err := s.storeRun(entries)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = append(s.runs, run)
	return nil
}

// sort leaves the entries where they are: they are large.
func (s *spool) sort(entries []Entry) []*Entry {
	sorted := make([]*Entry, len(entries))
	for i := range entries {
		sorted[i] = &entries[i]
	}
	slices.SortFunc(sorted, s.compare)
	return sorted
}

func (s *spool) merged(pieces [][]*Entry, runs ...stream) (*merged, error) {
	streams := runs
	for _, p := range pieces {
		streams = append(streams, &sliceStream{entries: p})
	}
	return merge(s.compare, streams...)
}

func (s *spool) storeRun(entries stream) (run, error) {
	if s.keep != nil {
		return s.keep(entries)
	}
	if s.dir == "" { // os.CreateTemp would take the folder of temporary files, which names of files of a store are nothing for
		return nil, errNoState
	}
	file, err := os.CreateTemp(s.dir, ".spool")
	if err != nil {
		return nil, stateError(err)
	}
	s.mu.Lock()
	s.files = append(s.files, file)
	s.mu.Unlock()
	if err := os.Remove(file.Name()); err != nil {
		return nil, err
	}
	r := recorder{w: bufio.NewWriterSize(file, 256<<10)}
	if err := eachEntry(entries, r.write); err != nil {
		return nil, err
	}
	if err := r.flush(); err != nil {
		return nil, err
	}
	size, err := file.Seek(0, io.SeekCurrent)
	return func() stream {
		return &fileStream{player: newPlayer(io.NewSectionReader(file, 0, size))}
	}, err
}

// sorted gives all entries. Nothing may be added any more, and the streams of several calls are independent.
func (s *spool) sorted() (stream, error) {
	runs := make([]stream, 0, len(s.runs)+len(s.pieces)+1)
	for _, r := range s.runs {
		runs = append(runs, r())
	}
	return s.merged(append(slices.Clip(s.pieces), s.sort(s.entries)), runs...)
}

func (s *spool) close() error {
	var faults []error
	for _, file := range s.files {
		faults = append(faults, file.Close())
	}
	return errors.Join(faults...)
}

// fileStream reads a run.
type fileStream struct {
	player player
	entry  Entry
}

func (f *fileStream) next() (*Entry, error) {
	flags, err := f.player.r.ReadByte()
	if err != nil {
		return nil, err
	}
	return &f.entry, f.player.next(flags, &f.entry)
}

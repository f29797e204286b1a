package transfer

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Unchanged requires that the source is still as the manifest has it. Between Delta and the moment from which on the target counts,
// nothing else can tell that somebody has written to it. A folder is not listed again: whatever comes into it or leaves it changes its
// time of change (POSIX, file times update). That of the root may be another, which a rename sets, and its time of modification tells as much.
// Error: ErrChanging.
func Unchanged(ctx context.Context, from string, m *Manifest, o Options) error {
	t, err := openTree(from)
	if err != nil {
		return err
	}
	defer closeFD(t.fd)
	l := &look{tree: t, meter: newMeter(o.Progress)}
	defer l.meter.end()
	l.meter.begin(PhaseScan, m.Totals.Entries, 0)
	if err := l.all(ctx, m.stream(), cmp.Or(o.Workers, DefaultWorkers)); err != nil {
		return fmt.Errorf("cannot compare %s with its manifest: %w", from, err)
	}
	return nil
}

// look compares what stat(2) shows of entries with what is known of them.
type look struct {
	tree  *tree
	meter *meter
}

func (l *look) all(ctx context.Context, known stream, workers int) error {
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan []Entry, workers)
	group.Go(func() error {
		defer close(batches)
		b := &batcher{to: batches}
		if err := eachEntry(known, func(e *Entry) error { return b.add(ctx, e) }); err != nil {
			return err
		}
		return b.send(ctx)
	})
	for range workers {
		group.Go(func() error { return l.work(batches) })
	}
	return group.Wait()
}

func (l *look) work(batches <-chan []Entry) error {
	t := &trail{tree: l.tree}
	defer t.leave(0)
	for batch := range batches {
		for i := range batch {
			if err := t.requireUntouched(&batch[i]); err != nil {
				return err
			}
			l.meter.count(0)
		}
	}
	return nil
}

// requireUntouched needs neither target nor other links of an inode whose time of change is the same.
func (t *trail) requireUntouched(known *Entry) error {
	stat, err := t.status(known.Path)
	if err != nil {
		return readError(known.Path, err)
	}
	have := entryOf(known.Path, &stat)
	have.Target, have.First = known.Target, known.First
	if !have.untouched(known) && !(known.Path == "" && have.sameLook(known)) {
		return &PathError{"read", known.Path, ErrChanging, nil}
	}
	return nil
}

// trail is the way to the folder that was used last: entries in the order of a manifest need each folder opened once. It is for looking only:
// unlike a place it follows a folder that is moved meanwhile.
type trail struct {
	tree *tree
	open []opened
}

type opened struct {
	path string
	fd   int
}

// maxTrail bounds the open folders. One that lies deeper is opened in one go.
const maxTrail = 32

func (t *trail) status(path string) (unix.Statx_t, error) {
	if path == "" {
		return status(t.tree.fd, "")
	}
	folder, err := t.enter(parent(path))
	if err != nil {
		return unix.Statx_t{}, err
	}
	return status(folder, base(path))
}

func (t *trail) enter(path string) (int, error) {
	for len(t.open) > 0 && !leadsTo(t.open[len(t.open)-1].path, path) {
		t.leave(len(t.open) - 1)
	}
	for {
		last := opened{fd: t.tree.fd}
		if len(t.open) > 0 {
			last = t.open[len(t.open)-1]
		}
		if last.path == path {
			return last.fd, nil
		}
		rest := strings.TrimPrefix(path[len(last.path):], "/")
		if len(t.open) < maxTrail-1 {
			rest, _, _ = strings.Cut(rest, "/")
		}
		fd, err := openBelow(last.fd, rest, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, err
		}
		t.open = append(t.open, opened{join(last.path, rest), fd})
	}
}

// leadsTo says whether a folder is another one, or above it.
func leadsTo(folder, path string) bool {
	return strings.HasPrefix(path, folder) && (len(path) == len(folder) || path[len(folder)] == '/')
}

// leave closes all but the first few folders.
func (t *trail) leave(but int) {
	for _, o := range t.open[but:] {
		closeFD(o.fd)
	}
	t.open = t.open[:but]
}

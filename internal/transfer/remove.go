package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"luksmediad/internal/state"
)

// Left is an entry that Remove has not removed.
type Left struct {
	Path string
	Why  string // for people
}

// Removal is what Remove has done.
type Removal struct {
	Removed Totals
	// Left are the first maxObstacles entries that are still there, and Count how many there are; of what lies in a folder of which
	// nothing was known, only the folder counts.
	Left  []Left
	Count int
}

// RemoveOptions say what else than what a manifest lists may be removed.
type RemoveOptions struct {
	Options
	// Back is the folder State of CarryBack into the old copy, if there was one: what that has put there goes too.
	Back string
}

// Remove removes from an old copy what its manifest lists, as far as it is still the same: inode, size and time of change of content.
// Anything else is left, with the folders it is in, and so is the root then. It may be interrupted and called again. It follows no
// link, and does not claim that nothing of the content is left on the disk.
//
// Errors: ErrForeign, if root is another folder; ErrWrite; ErrSync; fs.ErrNotExist, if root is not there, as after an earlier call.
func Remove(ctx context.Context, root string, m *Manifest, o RemoveOptions) (*Removal, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer closeFD(t.fd)
	if identityOf(&t.root) != m.From {
		return nil, fmt.Errorf("cannot remove %s: %w: it is not the folder that was copied", root, ErrForeign)
	}
	r := &remover{tree: t, o: o, meter: newMeter(o.Progress)}
	defer r.meter.end()
	if err := r.remove(ctx, m); err != nil {
		return nil, fmt.Errorf("cannot remove %s: %w", root, err)
	}
	slices.SortFunc(r.done.Left, func(a, b Left) int { return comparePaths(a.Path, b.Path) })
	return &r.done, nil
}

type remover struct {
	tree  *tree
	o     RemoveOptions
	meter *meter

	mu   sync.Mutex
	done Removal
}

func (r *remover) remove(ctx context.Context, m *Manifest) error {
	if err := r.removeCarried(ctx, m); err != nil {
		return err
	}
	r.meter.begin(PhaseRemove, m.Totals.Entries, m.Totals.Bytes)
	if err := r.removeAll(ctx, m.stream()); err != nil {
		return err
	}
	if err := r.tree.sync(); err != nil {
		return err
	}
	if r.done.Count > 0 {
		return nil
	}
	return r.removeRoot()
}

// removeCarried removes what a way back that was given up has put there. It comes first: what it replaced is listed, too.
func (r *remover) removeCarried(ctx context.Context, m *Manifest) error {
	var back claim
	err := state.Store{Dir: r.o.Back}.Load(claimName, stateVersion, &back)
	if r.o.Back == "" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r.meter.begin(PhaseScan, m.Totals.Entries, 0)
	found := &scan{live: true, any: true, meter: r.meter} // what is left is told by and by
	if err := scanTree(ctx, r.tree, r.o.Options, found); err != nil {
		return err
	}
	defer found.close()
	carried := newSpool(r.o.State, byPath)
	defer carried.close()
	err = zipSpools(func(found []*Entry) error { return r.selectCarried(&back, found[0], found[1], carried) }, found.entries, nil, m.stream())
	if err != nil {
		return err
	}
	entries, err := carried.sorted()
	if err != nil {
		return err
	}
	return r.removeAll(ctx, entries)
}

// selectCarried takes what is not as it is listed and was born since the claim, or is another name of something that is judged by itself.
func (r *remover) selectCarried(back *claim, have, known *Entry, into *spool) error {
	if have == nil || known != nil && differs(have, known) == "" {
		return nil
	}
	stat, err := r.tree.status(have.Path)
	if hasGone(err) {
		return nil
	}
	if err != nil {
		return writeError(have.Path, err)
	}
	if now := entryOf(have.Path, &stat); differs(&now, have) != "" || have.First == "" && !back.owns(&stat) {
		return nil
	}
	return into.add(have)
}

// removeAll removes entries that are sorted by path.
func (r *remover) removeAll(ctx context.Context, entries stream) error {
	folders := newSpool(r.o.State, byPathDescending)
	defer folders.close()
	if err := r.removeFiles(ctx, entries, folders); err != nil {
		return err
	}
	return r.removeFolders(ctx, folders)
}

// removeFiles removes everything but folders, which it only collects.
func (r *remover) removeFiles(ctx context.Context, entries stream, folders *spool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []Entry)
	var workers sync.WaitGroup
	for range cmp.Or(r.o.Workers, DefaultWorkers) {
		workers.Go(func() {
			if err := r.work(ctx, batches); err != nil {
				cancel(err)
			}
		})
	}
	err := r.dispatch(ctx, entries, folders, batches)
	close(batches)
	workers.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

func (r *remover) dispatch(ctx context.Context, entries stream, folders *spool, batches chan<- []Entry) error {
	b := &batcher{to: batches}
	err := eachEntry(entries, func(e *Entry) error {
		if e.Kind == Folder {
			return folders.add(e)
		}
		return b.add(ctx, e)
	})
	if err != nil {
		return err
	}
	return b.send(ctx)
}

func (r *remover) work(ctx context.Context, batches <-chan []Entry) error {
	at := &place{tree: r.tree}
	defer at.leave()
	for batch := range batches {
		for i := range batch {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := r.removeOne(at, &batch[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeOne removes one entry, unless it is another by now. The folder it is in cannot be swapped for another meanwhile.
func (r *remover) removeOne(at *place, e *Entry) error {
	folder, err := at.enter(parent(e.Path))
	var stat unix.Statx_t
	if err == nil {
		stat, err = status(folder, base(e.Path))
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil // an earlier call was here
	case hasGone(err), errors.Is(err, unix.EXDEV):
		r.left(e.Path, "its folder is another by now")
		return nil
	case err != nil:
		return writeError(e.Path, err)
	}
	have := entryOf(e.Path, &stat)
	if why := differs(&have, e); why != "" {
		r.left(e.Path, why)
		return nil
	}
	return r.unlink(folder, e)
}

func differs(have, e *Entry) string {
	switch {
	case have.Inode != e.Inode || have.Kind != e.Kind:
		return errReplaced.Error()
	case have.Kind != Folder && (have.Modified != e.Modified || have.Size != e.Size):
		return "it was changed"
	}
	return ""
}

func (r *remover) unlink(folder int, e *Entry) error {
	flags := 0
	if e.Kind == Folder {
		flags = unix.AT_REMOVEDIR
	}
	err := unix.Unlinkat(folder, base(e.Path), flags)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		r.left(e.Path, "there are other things in it")
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR): // since the look at it
		r.left(e.Path, errReplaced.Error())
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY): // immutable, or a mount
		r.left(e.Path, err.Error())
		return nil
	case err != nil:
		return writeError(e.Path, err)
	}
	r.meter.count(e.Size)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done.Removed.add(e)
	return nil
}

func (r *remover) left(path, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done.Count++; r.done.Count <= maxObstacles {
		r.done.Left = append(r.done.Left, Left{path, why})
	}
}

// removeFolders removes the deepest first.
func (r *remover) removeFolders(ctx context.Context, collected *spool) error {
	folders, err := collected.sorted()
	if err != nil {
		return err
	}
	at := &place{tree: r.tree}
	defer at.leave()
	return eachEntry(folders, func(e *Entry) error {
		if err := ctx.Err(); err != nil || e.Path == "" {
			return err
		}
		return r.removeOne(at, e)
	})
}

// removeRoot removes the folder itself, if its name still leads to it.
func (r *remover) removeRoot() error {
	above, err := openTree(filepath.Dir(r.tree.path))
	if err != nil {
		return err
	}
	defer closeFD(above.fd)
	stat, err := status(above.fd, filepath.Base(r.tree.path))
	if err != nil || identityOf(&stat) != identityOf(&r.tree.root) {
		r.left("", "it was renamed meanwhile")
		return nil
	}
	e := entryOf(filepath.Base(r.tree.path), &stat)
	if err := r.unlink(above.fd, &e); err != nil {
		return err
	}
	return above.sync()
}

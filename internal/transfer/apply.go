package transfer

import (
	"cmp"
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// plan is what has to happen to a target.
type plan struct {
	kept    *spool     // entries that are right, unless unchanged has another way to tell
	todo    *spool     // entries to make, as the source has them
	gone    *spool     // entries to remove, a folder after what is in it
	folders *spool     // folders to dress at the end, because something in them is made or removed
	links   *spool     // hard links, once the first of them is there
	dropped *spool     // entries of the manifest that are in the source no more
	mu      sync.Mutex // the first pass plans with many workers
	changes Totals
	// unchanged gives the entries that are right. Among them may be some that are made all the same: what is noted of those comes first.
	unchanged func() (stream, error)
}

func newPlan(dir string) *plan {
	p := &plan{
		kept: newSpool(dir, byPath), todo: newSpool(dir, byPath), gone: newSpool(dir, byPathDescending), folders: newSpool(dir, byPath),
		links: newSpool(dir, byPath), dropped: newSpool(dir, byPath),
	}
	p.unchanged = p.kept.sorted
	return p
}

func (p *plan) close() {
	for _, s := range []*spool{p.kept, p.todo, p.gone, p.folders, p.links, p.dropped} {
		_ = s.close() // unlinked temporary files
	}
}

func (p *plan) make(e *Entry) error {
	p.mu.Lock()
	p.changes.add(e)
	p.mu.Unlock()
	if e.Kind == Folder {
		return errors.Join(p.todo.add(e), p.folders.add(&Entry{Path: e.Path, Kind: Folder}))
	}
	return errors.Join(p.todo.add(e), p.folders.add(&Entry{Path: parent(e.Path), Kind: Folder}))
}

func (p *plan) remove(e *Entry) error {
	p.changes.Entries++
	return errors.Join(p.gone.add(e), p.folders.add(&Entry{Path: parent(e.Path), Kind: Folder}))
}

// foreign refuses what is in the target and was never put there.
func foreign(path string) error { return &PathError{"replace", path, ErrForeign, nil} }

// apply does what was planned, in an order in which every folder is there before what is in it.
func (c *copier) apply(ctx context.Context, p *plan) error {
	if err := c.removeGone(ctx, p.gone); err != nil {
		return err
	}
	if err := c.makeTodo(ctx, p); err != nil {
		return err
	}
	c.meter.begin(PhaseLinks, 0, 0)
	if err := c.linkAll(ctx, p); err != nil {
		return err
	}
	return c.dressFolders(p)
}

func (c *copier) removeGone(ctx context.Context, gone *spool) error {
	entries, err := gone.sorted()
	if err != nil {
		return err
	}
	f := &place{tree: c.to}
	defer f.leave()
	return eachEntry(entries, func(e *Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return f.removeEntry(e)
	})
}

func (f *place) removeEntry(e *Entry) error {
	folder, err := f.enter(parent(e.Path))
	if hasGone(err) {
		return nil
	}
	flags := 0
	if e.Kind == Folder {
		flags = unix.AT_REMOVEDIR
	}
	if err == nil {
		err = unix.Unlinkat(folder, base(e.Path), flags)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		return foreign(e.Path)
	}
	return writeError(e.Path, err)
}

// place is the folder of a tree that was used last.
type place struct {
	tree *tree
	path string
	fd   int
	open bool
}

func (f *place) enter(path string) (int, error) {
	if f.open && f.path == path {
		return f.fd, nil
	}
	f.leave()
	fd, err := f.tree.folder(path)
	if err != nil {
		return -1, err
	}
	f.path, f.fd, f.open = path, fd, true
	return fd, nil
}

func (f *place) leave() {
	if f.open {
		closeFD(f.fd)
	}
	f.open = false
}

// makeTodo makes folders itself, before it hands what may be in them to the workers.
func (c *copier) makeTodo(ctx context.Context, p *plan) error {
	entries, err := p.todo.sorted()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []Entry)
	var workers sync.WaitGroup
	for range cmp.Or(c.o.Workers, DefaultWorkers) {
		workers.Go(func() { c.work(ctx, cancel, batches) })
	}
	err = c.dispatch(ctx, p, entries, batches)
	close(batches)
	workers.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

func (c *copier) work(ctx context.Context, cancel context.CancelCauseFunc, batches <-chan []Entry) {
	from, to := &place{tree: c.from}, &place{tree: c.to}
	defer from.leave()
	defer to.leave()
	for batch := range batches {
		for i := range batch {
			if ctx.Err() != nil {
				break
			}
			err := c.put(&batch[i], from, to)
			if err != nil && c.vanished(err) == nil {
				err = to.removeEntry(&batch[i]) // an older copy of it, which the manifest will not know
			}
			if err != nil {
				cancel(err)
			}
		}
	}
}

func (c *copier) dispatch(ctx context.Context, p *plan, entries stream, batches chan<- []Entry) error {
	to := &place{tree: c.to}
	defer to.leave()
	b := &batcher{to: batches}
	err := eachEntry(entries, func(e *Entry) error {
		switch {
		case e.Kind == Folder:
			return makeFolder(to, e)
		case e.First != "":
			return p.links.add(e)
		}
		return b.add(ctx, e)
	})
	if err != nil {
		return err
	}
	return b.send(ctx)
}

// batcher hands copies of entries to workers, some at a time: of a stream each is only good until the next.
type batcher struct {
	to    chan<- []Entry
	batch []Entry
}

func (b *batcher) add(ctx context.Context, e *Entry) error {
	if b.batch = append(b.batch, *e); len(b.batch) < batchNames {
		return nil
	}
	return b.send(ctx)
}

func (b *batcher) send(ctx context.Context) error {
	select {
	case b.to <- b.batch:
		b.batch = nil
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// makeFolder makes one that only root may enter until it is dressed.
func makeFolder(to *place, e *Entry) error {
	if e.Path == "" {
		return nil
	}
	folder, err := to.enter(parent(e.Path))
	if err == nil {
		err = unix.Mkdirat(folder, base(e.Path), 0o700)
	}
	if errors.Is(err, unix.EEXIST) {
		err = nil
	}
	return writeError(e.Path, err)
}

// put makes a file or a symbolic link of the source.
func (c *copier) put(e *Entry, from, to *place) error {
	source, err := from.enter(parent(e.Path))
	if err != nil {
		return readError(e.Path, err)
	}
	target, err := to.enter(parent(e.Path))
	if err != nil {
		return writeError(e.Path, err)
	}
	made, err := c.putOne(e, source, target)
	if err != nil {
		return err
	}
	return c.note(made)
}

func (c *copier) putOne(e *Entry, source, target int) (*Entry, error) {
	name := base(e.Path)
	if e.Kind == Symlink {
		return c.symlink(source, name, e.Path, target)
	}
	s, err := openSource(source, name, e.Path)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.want = e.SHA256
	if c.strict && (s.entry.Inode != e.Inode || s.entry.Changed != e.Changed) {
		return nil, &PathError{"read", e.Path, ErrChanging, nil}
	}
	return c.file(s, target, name)
}

// linkAll makes hard links where there are none yet, one after the other: stores have few.
func (c *copier) linkAll(ctx context.Context, p *plan) error {
	entries, err := p.links.sorted()
	if err != nil {
		return err
	}
	first, folder := &place{tree: c.to}, &place{tree: c.to}
	defer first.leave()
	defer folder.leave()
	return eachEntry(entries, func(e *Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return c.linkOne(e, p, first, folder)
	})
}

// linkOne notes a link with the look that the first got when it was copied: the walk's may be an older one.
func (c *copier) linkOne(e *Entry, p *plan, first, folder *place) error {
	look, made, err := link(e, first, folder)
	if hasGone(err) { // the first has vanished from the source
		err = &PathError{"read", e.Path, ErrChanging, err}
	}
	if made || err != nil {
		err = errors.Join(err, p.folders.add(&Entry{Path: parent(e.Path), Kind: Folder}))
	}
	if err != nil {
		if err := c.vanished(writeError(e.Path, err)); err != nil {
			return err
		}
		return folder.removeEntry(e) // an older copy of it, which the manifest will not know
	}
	seen := entryOf(e.Path, &look)
	e.Mode, e.UID, e.GID, e.Size, e.Modified = seen.Mode, seen.UID, seen.GID, seen.Size, seen.Modified
	e.Unsettled, e.Xattrs = c.unsettled(e.Changed), Digest{}
	return c.note(e)
}

// link gives the look of the first, and says whether it had to make the link.
func link(e *Entry, first, folder *place) (look unix.Statx_t, made bool, err error) {
	from, err := first.enter(parent(e.First))
	if err != nil {
		return look, false, err
	}
	to, err := folder.enter(parent(e.Path))
	if err != nil {
		return look, false, err
	}
	if look, err = status(from, base(e.First)); err != nil {
		return look, false, err
	}
	have, err := status(to, base(e.Path))
	if err == nil && have.Ino == look.Ino {
		return look, false, nil
	}
	if err == nil {
		err = unix.Unlinkat(to, base(e.Path), 0)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return look, false, err
	}
	return look, true, unix.Linkat(from, base(e.First), to, base(e.Path), 0)
}

// dressFolders dresses and notes every folder in which something was made or removed.
func (c *copier) dressFolders(p *plan) error {
	folders, err := p.folders.sorted()
	if err != nil {
		return err
	}
	kept, err := p.unchanged()
	if err != nil {
		return err
	}
	todo, err := p.todo.sorted()
	if err != nil {
		return err
	}
	return zip(func(found []*Entry) error {
		e := cmp.Or(found[2], found[1])
		if found[0] == nil || e == nil || e.Kind != Folder {
			return nil
		}
		return c.dressAgain(e)
	}, &unique{stream: folders}, kept, todo)
}

// dressAgain takes the attributes from the source, as they are by now, and the rest from the entry. A folder is noted even if it has
// vanished from the source meanwhile: what is in it has been noted too.
func (c *copier) dressAgain(e *Entry) error {
	x, err := c.folderXattrs(e.Path)
	gone := err != nil
	if gone && c.vanished(err) != nil {
		return err
	}
	target, err := c.to.folder(e.Path)
	if err != nil {
		return writeError(e.Path, err)
	}
	defer closeFD(target)
	if err := c.dressFolder(target, e, x); err != nil {
		return writeError(e.Path, err)
	}
	e.Xattrs, e.Unsettled = x.digest(), gone || c.unsettled(e.Changed)
	c.meter.count(0)
	return c.note(e)
}

func (c *copier) folderXattrs(path string) (xattrs, error) {
	source, err := c.from.folder(path)
	if err != nil {
		return nil, readError(path, err)
	}
	defer closeFD(source)
	x, err := holder{fd: source}.read()
	return x, readError(path, err)
}

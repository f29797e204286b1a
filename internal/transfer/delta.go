package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// resume takes a target that an earlier copy has filled, as far as it came, to what the source is now.
func (c *copier) resume(ctx context.Context) (*Manifest, error) {
	streams := make([]stream, len(c.opened))
	for i, m := range c.opened {
		streams[i] = m.stream()
	}
	before, err := merge(byPath, streams...)
	if err != nil {
		return nil, err
	}
	c.meter.begin(PhaseScan, 2*c.o.Total.Entries, 0)
	return c.compare(ctx, &scan{live: true}, &scan{}, &unique{stream: before}, c.planResume)
}

// compare scans both sides, plans from what they and the manifest have of each path, and carries that out.
func (c *copier) compare(ctx context.Context, source, target *scan, known stream, decide func(p *plan, source, target, known *Entry) error,
) (*Manifest, error) {
	source.meter, target.meter = c.meter, c.meter
	if err := scanTree(ctx, c.from, c.o, source); err != nil {
		return nil, err
	}
	defer source.close()
	if err := scanTree(ctx, c.to, c.o, target); err != nil {
		return nil, err
	}
	defer target.close()
	return c.carryOut(ctx, func(p *plan) error {
		return zipSpools(func(found []*Entry) error { return decide(p, found[0], found[1], found[2]) }, source.entries, target.entries, known)
	})
}

// zipSpools is zip of what is where: in the source, in the target, in the manifest.
func zipSpools(f func(found []*Entry) error, source, target *spool, known stream) error {
	s, err := source.sorted()
	if err != nil {
		return err
	}
	if target == nil {
		return zip(f, s, known)
	}
	t, err := target.sorted()
	if err != nil {
		return err
	}
	return zip(f, s, t, known)
}

// planResume decides about one path: what the source has, what the target has, and what was known of it.
func (c *copier) planResume(p *plan, source, target, known *Entry) error {
	if target != nil && known == nil {
		if err := c.requireOurs(target); err != nil {
			return err
		}
	}
	if source != nil && target != nil && known != nil && !known.Unsettled && source.untouched(known) && target.sameLook(known) {
		return p.keep(known)
	}
	return p.replace(target, source)
}

// replace plans what makes of an entry of the target that of the source; either may be nil.
func (p *plan) replace(target, source *Entry) error {
	switch {
	case source == nil && target == nil:
		return nil
	case source == nil:
		return p.remove(target)
	case target != nil && target.Kind != source.Kind && (target.Kind == Folder || source.Kind == Folder):
		return errors.Join(p.remove(target), p.make(source))
	}
	return p.make(source)
}

// requireOurs refuses what is older than the copy: it was moved here. Nobody but root can have made it since. Before anything was copied nothing is
// ours, whatever the clock was then.
func (c *copier) requireOurs(e *Entry) error {
	stat, err := c.to.status(e.Path)
	if err != nil {
		return writeError(e.Path, err)
	}
	if e.Path != "" && (c.unclaimed || !c.claim.owns(&stat)) {
		return foreign(e.Path)
	}
	return nil
}

// keep leaves an entry as it is. Hard links are looked at all the same: the first of them may be made anew, or have gone.
func (p *plan) keep(e *Entry) error {
	if e.First != "" {
		return p.links.add(e)
	}
	return p.kept.add(e)
}

// carryOut makes a plan and does it.
func (c *copier) carryOut(ctx context.Context, decide func(p *plan) error) (*Manifest, error) {
	p := newPlan(c.o.State)
	defer p.close()
	if err := decide(p); err != nil {
		return nil, err
	}
	if c.unclaimed {
		if err := c.saveClaim(); err != nil {
			return nil, err
		}
	}
	c.meter.begin(PhaseCopy, p.changes.Entries, p.changes.Bytes)
	if err := c.apply(ctx, p); err != nil {
		return nil, err
	}
	unchanged, err := p.unchanged()
	if err != nil {
		return nil, err
	}
	m, err := c.finish(unchanged)
	if m != nil {
		m.Changed = p.changes
	}
	return m, err
}

// Delta takes the target of a copy to what the source is now that its service has stopped, and gives the new manifest, which stays the
// same file if nothing has changed. It compares the source with the manifest, and trusts that the target is as Copy has left it: after
// an interruption, begin at Copy. With the manifest, everything it lists is durable on both sides.
//
// Errors: those of Copy, and ErrChanging when the source changes all the same.
func Delta(ctx context.Context, from, to string, known *Manifest, o Options) (*Manifest, error) {
	return follow(ctx, from, to, o, func(c *copier) (*Manifest, error) { return c.update(ctx, known) })
}

// CarryBack takes the old copy, which a manifest describes, to what its successor is now: the way back of Delta. What has vanished
// from the successor is removed. The manifest that it gives describes the successor. State is another folder than that of the move: with
// the same one, a later call goes on from what an interrupted one has left. Nobody else may write to the old copy from the first call on.
//
// The manifest knows no inodes of the successor, so that a file counts as unchanged whose size, mode, owner, attributes and time of
// modification are the same, as with rsync.
//
// Errors: those of Delta, and ErrMismatch when the successor of a damaged file is damaged too.
func CarryBack(ctx context.Context, from, to string, known *Manifest, o BackOptions) (*Manifest, error) {
	return follow(ctx, from, to, o.Options, func(c *copier) (*Manifest, error) { return c.carryBack(ctx, known, o.Damaged) })
}

// BackOptions say what else than what has changed is carried back.
type BackOptions struct {
	Options
	// Damaged are files of the old copy that look as they should but for their contents: they are made anew if the successor's are right.
	Damaged []string
}

// follow takes a target to what the source is, whose service has stopped.
func follow(ctx context.Context, from, to string, o Options, do func(c *copier) (*Manifest, error)) (*Manifest, error) {
	c, err := newCopier(from, to, o)
	if err != nil {
		return nil, err
	}
	defer c.close()
	c.strict, c.settled = true, never()
	awaitClock(c.began) // so that what changes from here on is younger than what was found
	var m *Manifest
	again, err := c.loadClaim()
	if c.unclaimed = !again; err == nil {
		synced := make(chan error, 1)
		go func() { synced <- c.syncSource() }() // the service stands still, and a sync leaves the processor to the comparison
		m, err = do(c)
		err = errors.Join(err, <-synced)
	}
	if err != nil {
		if m != nil {
			_ = m.Close() // only read
		}
		return nil, fmt.Errorf("cannot copy what has changed in %s: %w", from, err)
	}
	return m, nil
}

// awaitClock waits until the clock that changes are dated by has passed a moment.
func awaitClock(moment Time) {
	for began := time.Now(); time.Since(began) < clockTick; time.Sleep(time.Millisecond / 2) {
		var t unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &t); err == nil && (Time{t.Sec, uint32(t.Nsec)}).after(moment) {
			return
		}
	}
}

func (c *copier) carryBack(ctx context.Context, known *Manifest, damaged []string) (*Manifest, error) {
	c.original = known.From == identityOf(&c.to.root)
	c.damaged = map[string]bool{}
	for _, path := range damaged {
		c.damaged[path] = true
	}
	c.meter.begin(PhaseScan, 2*known.Totals.Entries, 0)
	return c.compare(ctx, &scan{xattrs: true}, &scan{xattrs: true}, known.stream(), c.planBack)
}

// planBack decides about one path: what the source has, what the target has, perhaps from an interrupted run, and what it had before.
func (c *copier) planBack(p *plan, source, target, known *Entry) error {
	if err := c.requireStill(source); err != nil {
		return err
	}
	// Another name of something in the target has the birth of that.
	if target != nil && target.First == "" && !c.isListed(target, known) {
		if err := c.requireOurs(target); err != nil {
			return err
		}
	}
	if source != nil && target != nil && known != nil && alike(source, known) && alike(target, known) {
		source.SHA256 = known.SHA256
		if c.damaged[source.Path] {
			return p.make(source)
		}
		return p.keep(source)
	}
	return p.replace(target, source)
}

// isListed: it is what the manifest has, also where a power failure has taken of the file what was never synced.
func (c *copier) isListed(target, known *Entry) bool {
	return known != nil && (resembles(target, known) || c.original && target.Kind == known.Kind && target.Inode == known.Inode)
}

// alike compares with a manifest of the other side, which knows nothing of this side's inodes.
func alike(e, known *Entry) bool {
	return e.sameLook(known) && e.First == known.First && (e.First != "" || e.Xattrs == known.Xattrs)
}

// requireStill refuses what has changed since the copier began.
func (c *copier) requireStill(source *Entry) error {
	if source != nil && source.Changed.after(c.began) && !source.Changed.after(now()) {
		return &PathError{"read", source.Path, ErrChanging, nil}
	}
	return nil
}

func (c *copier) update(ctx context.Context, known *Manifest) (*Manifest, error) {
	if known.From != identityOf(&c.from.root) {
		return nil, fmt.Errorf("%w: the manifest is of another folder", ErrForeign)
	}
	if err := c.requireDurable(); err != nil {
		return nil, err
	}
	source := &scan{meter: c.meter}
	c.meter.begin(PhaseScan, known.Totals.Entries, 0)
	if err := scanTree(ctx, c.from, c.o, source); err != nil {
		return nil, err
	}
	defer source.close()
	m, err := c.carryOut(ctx, func(p *plan) error {
		p.unchanged = func() (stream, error) { // nearly all, of which no copy is needed
			dropped, err := p.dropped.sorted()
			return &without{stream: known.stream(), left: dropped}, err
		}
		err := zipSpools(func(found []*Entry) error { return c.planUpdate(p, found[0], found[1]) }, source.entries, nil, known.stream())
		if err == nil && p.changes.Entries == 0 && known.Path() == c.o.ManifestPath() {
			err = errNothing
		}
		return err
	})
	if errors.Is(err, errNothing) {
		return Open(known.Path())
	}
	return m, err
}

// errNothing ends an update that has nothing to do.
var errNothing = errors.New("nothing has changed")

// planUpdate decides about one path: what the source has, and what the target is known to have.
func (c *copier) planUpdate(p *plan, source, known *Entry) error {
	if err := c.requireStill(source); err != nil {
		return err
	}
	switch {
	case source == nil:
		if err := p.dropped.add(known); err != nil {
			return err
		}
	case known != nil && !known.Unsettled && source.untouched(known):
		if known.First != "" {
			return p.links.add(known)
		}
		return nil
	}
	target, err := c.requireKnown(pathOf([]*Entry{source, known}), known, source)
	if err != nil {
		return err
	}
	return p.replace(target, source)
}

// requireKnown refuses to replace what is neither as the manifest says nor as an interrupted run would have left it. It gives what is
// there, nil for nothing.
func (c *copier) requireKnown(path string, ours ...*Entry) (*Entry, error) {
	stat, err := c.to.status(path)
	if hasGone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, writeError(path, err)
	}
	have := entryOf(path, &stat)
	if !slices.ContainsFunc(ours, func(e *Entry) bool { return e != nil && resembles(&have, e) }) {
		return nil, foreign(path)
	}
	return &have, nil
}

// resembles leaves out what a target that is not linked or dressed yet may lack.
func resembles(have, e *Entry) bool {
	return have.Kind == e.Kind && (e.Kind == Folder || have.Size == e.Size && have.Modified == e.Modified)
}

func pathOf(found []*Entry) string { return leastPath(found).Path }

package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/state"
)

// Options are the same for all operations.
type Options struct {
	// State is a folder of root's own, one for each move: the manifest, and while it is made, what is needed to go on after a crash.
	// It needs up to 500 bytes an entry, most when a copy goes on: for the manifest, its parts, what was found on both sides, what stays, and
	// the new manifest.
	State string
	// Workers is how many entries are copied at a time; 0 is DefaultWorkers.
	Workers int
	// Progress, if it is there, is called every quarter of a second.
	Progress func(Progress)
	// Total is what a survey has found, for the time left.
	Total Totals
}

const (
	manifestName = "manifest"
	claimName    = "claim"
	partPattern  = "part-%06d"
	stateVersion = 1
)

// ManifestPath is where the manifest lies once a copy has ended.
func (o Options) ManifestPath() string { return filepath.Join(o.State, manifestName) }

// claim says that a copy has begun: what is born in the target since then is ours, since nobody else may write there.
type claim struct {
	From  Identity `json:"from"`
	To    Identity `json:"to"`
	Began Time     `json:"began"`
	// Lost: a sync has failed, and nothing in the target can be relied on.
	Lost bool `json:"lost"`
}

// copier takes a target to the state of a source.
type copier struct {
	from, to *tree
	o        Options
	*putter

	results *spool // entries that were made
	began   Time
	claim   claim
	// vanished is told of entries that are not there any more; Copy forgives it, the others do not.
	vanished func(err error) error
	// unclaimed: no earlier run has put anything into the target. A claim is saved before this one does.
	unclaimed bool
	// original: the manifest is of the target itself, whose inodes it has. damaged are files of it to make anew.
	original bool
	damaged  map[string]bool

	mu     sync.Mutex
	opened []*Manifest // of earlier copies, and parts of this one
	parts  int
	saved  time.Time

	saveEvery time.Duration
}

// Copy copies a tree whose service may be running into a folder that is empty, or that an earlier Copy has filled: then what is right
// is adopted. What vanishes or changes meanwhile is no error, and Delta's to put right. With the manifest, everything it lists is
// durable in the target; in the source, what was written before the call.
//
// Errors: ErrRefused, ErrForeign, ErrRead, ErrWrite, ErrNoSpace, ErrUnsupported, and ErrSync, after which the target has to be made
// anew and State removed.
func Copy(ctx context.Context, from, to string, o Options) (*Manifest, error) {
	c, err := newLiveCopier(from, to, o)
	if err != nil {
		return nil, err
	}
	defer c.close()
	m, err := c.copy(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot copy %s: %w", from, err)
	}
	return m, nil
}

// forgive is for a source whose service runs.
func forgive(err error) error {
	if errors.Is(err, ErrChanging) {
		return nil
	}
	return err
}

func newCopier(from, to string, o Options) (*copier, error) {
	source, err := openTree(from)
	if err != nil {
		return nil, err
	}
	target, err := openTree(to)
	if err != nil {
		return nil, errors.Join(err, source.close())
	}
	c := &copier{from: source, to: target, o: o, began: now(), saved: time.Now(), saveEvery: defaultSaveEvery}
	c.putter = newPutter(newMeter(o.Progress), c.began)
	c.vanished = func(err error) error { return err }
	c.results = newSpool(o.State, byPath)
	return c, nil
}

// newLiveCopier makes one for a source whose service runs.
func newLiveCopier(from, to string, o Options) (*copier, error) {
	c, err := newCopier(from, to, o)
	if err != nil {
		return nil, err
	}
	c.settled.Seconds, c.vanished, c.results.keep = c.began.Seconds-racySeconds, forgive, c.savePart
	return c, nil
}

func now() Time {
	t := time.Now()
	return Time{t.Unix(), uint32(t.Nanosecond())}
}

// never is later than every time.
func never() Time { return Time{Seconds: math.MaxInt64} }

func (c *copier) close() {
	c.meter.end()
	closeFD(c.from.fd)
	closeFD(c.to.fd)
	_ = c.results.close() // unlinked temporary files
	for _, m := range c.opened {
		_ = m.Close() // only read
	}
}

func (c *copier) copy(ctx context.Context) (*Manifest, error) {
	again, err := c.begin()
	if err != nil {
		return nil, err
	}
	c.meter.begin(PhaseSync, 0, 0)
	if err := c.syncSource(); err != nil {
		return nil, err
	}
	c.meter.begin(PhaseCopy, c.o.Total.Entries, c.o.Total.Bytes)
	var m *Manifest
	if again {
		m, err = c.resume(ctx)
	} else {
		m, err = c.copyAll(ctx)
	}
	if err != nil && !c.claim.Lost {
		err = errors.Join(err, c.results.flush()) // for the next Copy
	}
	return m, err
}

// begin claims an empty target, or opens what is known of one that was claimed before.
func (c *copier) begin() (again bool, err error) {
	again, err = c.claimTarget(c.requireEmpty)
	if err != nil || !again {
		return again, err
	}
	if err := c.requireDurable(); err != nil {
		return again, err
	}
	return again, c.openKnown()
}

func (c *copier) requireDurable() error {
	if c.claim.Lost {
		return fmt.Errorf("cannot go on with %s: %w before", c.to.path, ErrSync)
	}
	return nil
}

// claimTarget says whether an earlier run has claimed the target, with the same source. Only then it may be as check would not have it.
func (c *copier) claimTarget(check func() error) (again bool, err error) {
	again, err = c.loadClaim()
	if err != nil || again {
		return again, err
	}
	if err := check(); err != nil {
		return false, err
	}
	return false, c.saveClaim()
}

// loadClaim takes a claim that is later than now for as early as now: the clock was set back, and what is made from here on is ours.
func (c *copier) loadClaim() (again bool, err error) {
	err = state.Store{Dir: c.o.State}.Load(claimName, stateVersion, &c.claim)
	ours := claim{From: identityOf(&c.from.root), To: identityOf(&c.to.root), Began: c.began}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.claim = ours
		return false, nil
	case err != nil:
		return false, err
	case c.claim.From != ours.From || c.claim.To != ours.To:
		return false, fmt.Errorf("cannot go on with %s: an earlier copy was of another folder, or to another: %w", c.to.path, ErrForeign)
	case c.claim.Began.after(c.began):
		c.claim.Began = c.began
		return true, c.saveClaim()
	}
	return true, nil
}

// Claimed tells whether a copy with these options has claimed a folder: what is in that was put there by it.
func (o Options) Claimed(to string) (bool, error) {
	var known claim
	err := state.Store{Dir: o.State}.Load(claimName, stateVersion, &known)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, state.ErrCorrupt) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	t, err := openTree(to)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return known.To == identityOf(&t.root), t.close()
}

func (c *copier) saveClaim() error {
	return stateError(state.Store{Dir: c.o.State}.Save(claimName, stateVersion, c.claim))
}

// requireEmpty also takes away what new entries would inherit.
func (c *copier) requireEmpty() error {
	fd, err := c.to.folder("")
	if err != nil {
		return writeError("", err)
	}
	folder := os.NewFile(uintptr(fd), c.to.path)
	defer folder.Close()
	names, err := folder.Readdirnames(10)
	if len(names) > 0 {
		return fmt.Errorf("%w: %s holds %q", ErrForeign, c.to.path, names)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return writeError("", err)
	}
	return writeError("", holder{fd: fd}.write(nil, false))
}

// openKnown opens the manifest and the parts of earlier copies, the latest last; a copy that was killed early has left none.
func (c *copier) openKnown() error {
	m, err := openManifest(c.o.ManifestPath(), wholeTree)
	if err == nil {
		c.opened = append(c.opened, m)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for {
		m, err := openManifest(c.partPath(c.parts), partOf)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		c.parts++
		c.opened = append(c.opened, m)
	}
}

func (c *copier) partPath(n int) string { return filepath.Join(c.o.State, fmt.Sprintf(partPattern, n)) }

// savePart makes what a part lists durable before the part.
func (c *copier) savePart(entries stream) (run, error) {
	if err := c.requireDurable(); err != nil { // of the part before, which a worker may have waited for
		return nil, err
	}
	m, err := writeManifest(c.partPath(c.parts), partOf, c.claim.From, entries, c.sync)
	if err != nil {
		return nil, err
	}
	c.parts++
	c.opened = append(c.opened, m)
	return m.stream, nil
}

// owns says that something in the target was put there since it was claimed, and not moved there. Where a filesystem keeps no time of
// birth, that of the last change has to do.
func (c claim) owns(stat *unix.Statx_t) bool {
	born := stat.Btime
	if stat.Mask&unix.STATX_BTIME == 0 {
		born = stat.Ctime
	}
	return timeOf(born).after(Time{Seconds: c.Began.Seconds - racySeconds})
}

// sync remembers a failure, which the kernel reports only once.
func (c *copier) sync() error {
	err := c.to.sync()
	if err == nil {
		return nil
	}
	c.claim.Lost = true
	return errors.Join(err, state.Store{Dir: c.o.State}.Save(claimName, stateVersion, c.claim))
}

// syncSource makes durable what is copied. A service that never syncs has its last files in memory only, from where they would be
// copied: after a power failure the source would lack them, and take the place of the copy that has them. The kernel tells a failure once,
// so that it ends the run.
func (c *copier) syncSource() error {
	if err := unix.Syncfs(c.from.fd); err != nil {
		return fmt.Errorf("cannot rely on %s, whose filesystem has lost writes: %w: %w", c.from.path, ErrRead, err)
	}
	return nil
}

// defaultSaveEvery bounds how much an interruption costs.
const defaultSaveEvery = time.Minute

// note notes an entry of the target.
func (c *copier) note(e *Entry) error {
	if err := c.results.add(e); err != nil {
		return err
	}
	c.mu.Lock()
	due := c.results.keep != nil && time.Since(c.saved) > c.saveEvery
	if due {
		c.saved = time.Now()
	}
	c.mu.Unlock()
	if !due {
		return nil
	}
	return c.results.flush()
}

// finish makes everything durable, then the manifest, and removes the parts.
func (c *copier) finish(unchanged stream) (*Manifest, error) {
	c.meter.begin(PhaseSync, 0, 0)
	results, err := c.results.sorted()
	if err != nil {
		return nil, err
	}
	all, err := merge(byPath, unchanged, results)
	if err != nil {
		return nil, err
	}
	m, err := writeManifest(c.o.ManifestPath(), wholeTree, identityOf(&c.from.root), all, c.sync)
	if err != nil {
		return nil, err
	}
	return m, c.removeParts()
}

// removeParts removes the last first: those that are left by a crash are found again.
func (c *copier) removeParts() error {
	for ; c.parts > 0; c.parts-- {
		err := os.Remove(c.partPath(c.parts - 1))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// copyAll copies while it walks: there is nothing to compare with.
func (c *copier) copyAll(ctx context.Context) (*Manifest, error) {
	first := &firstPass{copier: c, links: newSpool(c.o.State, byInode), plan: newPlan(c.o.State)}
	defer first.plan.close()
	defer first.links.close()
	c.made = true
	err := walkTree(ctx, c.from, c.o.Workers, first)
	c.made = false
	if err == nil {
		err = first.planLinks()
	}
	if err == nil {
		err = c.apply(ctx, first.plan)
	}
	if err != nil {
		return nil, err
	}
	return c.finish(none{})
}

// firstPass fills new folders, which it reaches by their paths: it has made each of them itself, and nobody but root comes to the target, which lies
// below a folder of mode 0700. Hard links are for later, when it is known which is the first.
type firstPass struct {
	*copier
	links *spool
	plan  *plan
}

func (p *firstPass) planLinks() error {
	sorted, err := p.links.sorted()
	if err != nil {
		return err
	}
	return eachLink(sorted, p.plan.make)
}

func (p *firstPass) failed(path string, err error) error { return p.vanished(readError(path, err)) }

func (p *firstPass) enter(f *folder) (err error) {
	if f.xattrs, err = (holder{fd: f.fd}).read(); err != nil {
		return readError(f.path, err)
	}
	if f.in == nil {
		return nil
	}
	if err = unix.Mkdirat(p.to.fd, f.path, 0o700); errors.Is(err, unix.EEXIST) {
		return p.requireFolder(f.path)
	}
	return writeError(f.path, err)
}

// requireFolder is for a source that has changed while it was listed, and has named it twice: the first time it may have been a symbolic link,
// through which no path may lead. That ends the first pass; the next one compares.
func (p *firstPass) requireFolder(path string) error {
	fd, err := p.to.folder(path)
	if hasGone(err) {
		return &PathError{"read", path, ErrChanging, errReplaced}
	}
	if err == nil {
		closeFD(fd)
	}
	return writeError(path, err)
}

func (p *firstPass) visit(f *folder, names []name) error {
	for _, n := range names {
		err := p.put(f, n)
		if errors.Is(err, unix.EISDIR) { // named twice, too, the first time as a folder
			err = &PathError{"read", join(f.path, n.name), ErrChanging, errReplaced}
		}
		if err := p.vanished(err); err != nil {
			return err
		}
	}
	return nil
}

func (p *firstPass) put(f *folder, n name) error {
	path := join(f.path, n.name)
	switch n.kind {
	case unix.DT_REG:
		return p.putFile(f, n.name, path)
	case unix.DT_LNK:
		return p.putSymlink(f, n.name, path)
	}
	return refuse(path, uint16(n.kind)<<12) // DTTOIF, dirent.h
}

func (p *firstPass) putSymlink(f *folder, name, path string) error {
	target, err := p.to.folder(f.path)
	if err != nil {
		return writeError(path, err)
	}
	defer closeFD(target)
	e, err := p.symlink(f.fd, name, path, target)
	if err != nil {
		return err
	}
	return p.note(e)
}

func (p *firstPass) putFile(f *folder, name, path string) error {
	if len(path) > maxPath {
		return &PathError{"keep", path, ErrRefused, unix.ENAMETOOLONG}
	}
	s, err := openSource(f.fd, name, path)
	if err != nil {
		return err
	}
	defer s.close()
	if s.stat.Nlink > 1 {
		f.linked.Store(true)
		return p.links.add(&s.entry)
	}
	e, err := p.file(s, p.to.fd, path)
	if err != nil {
		return err
	}
	return p.note(e)
}

func (p *firstPass) leave(f *folder) error {
	e := entryOf(f.path, &f.stat)
	if f.linked.Load() {
		return p.plan.make(&e)
	}
	e.Xattrs, e.Unsettled = f.xattrs.digest(), p.unsettled(e.Changed)
	if err := p.dress(&e, f.xattrs); err != nil {
		return writeError(f.path, err)
	}
	p.meter.count(0)
	return p.note(&e)
}

// dress spares most folders a descriptor.
func (p *firstPass) dress(e *Entry, x xattrs) error {
	if e.Path == "" || len(x) > 0 {
		target, err := p.to.folder(e.Path)
		if err != nil {
			return err
		}
		defer closeFD(target)
		return p.dressFolder(target, e, x)
	}
	if err := unix.Fchownat(p.to.fd, e.Path, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fchmodat(p.to.fd, e.Path, e.Mode, 0); err != nil {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, e.Modified.timespec()}
	return unix.UtimesNanoAt(p.to.fd, e.Path, times, unix.AT_SYMLINK_NOFOLLOW)
}

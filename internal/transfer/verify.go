package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// VerifyOptions say what Verify may use.
type VerifyOptions struct {
	Options
	// Device is the block device that the target's filesystem is on, such as /dev/mapper/name: small files are read from it in the
	// order of the disk. Without one, or if it is another, each file is read by itself.
	Device string
	// Verified is a manifest of the same tree that this process has verified before: of files that have not changed since, by their time of
	// change, neither contents nor attributes are read again.
	Verified *Manifest
	// Unreadable files count as files with another content: FaultContent.
	Unreadable bool
}

// Fault is what is wrong with an entry.
type Fault string

// The ways in which an entry may differ from the manifest.
const (
	FaultMissing  Fault = "missing"
	FaultExtra    Fault = "extra"
	FaultKind     Fault = "kind"
	FaultMode     Fault = "mode"
	FaultOwner    Fault = "owner"
	FaultSize     Fault = "size"
	FaultModified Fault = "modified"
	FaultXattrs   Fault = "xattrs"
	FaultTarget   Fault = "target" // of a symbolic link
	FaultLinks    Fault = "links"  // other hard links
	FaultContent  Fault = "content"
)

// Difference is one entry that is not as the manifest has it.
type Difference struct {
	Path  string
	Fault Fault
}

// Mismatch is the error of a target that differs from its manifest: an ErrMismatch.
type Mismatch struct {
	Differences []Difference // the first maxDifferences
	Count       int
}

const maxDifferences = 100

func (m *Mismatch) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v in %d entries:", ErrMismatch, m.Count)
	for _, d := range m.Differences[:min(len(m.Differences), 3)] {
		fmt.Fprintf(&b, " %s of %q", d.Fault, d.Path)
	}
	if m.Count > 3 {
		b.WriteString(" …")
	}
	return b.String()
}

// Is makes it an ErrMismatch.
func (m *Mismatch) Is(target error) bool { return target == ErrMismatch }

// Contents are the files of which nothing else is wrong than the content, as far as they are named.
func (m *Mismatch) Contents() []string {
	var paths []string
	for _, d := range m.Differences {
		if d.Fault == FaultContent {
			paths = append(paths, d.Path)
		}
	}
	return paths
}

// Means is a way past the page cache.
type Means string

// The ways to read, best first.
const (
	MeansDevice Means = "device" // the device's blocks, in their order, with O_DIRECT
	MeansDirect Means = "direct" // file by file, with O_DIRECT
	MeansCache  Means = "cache"  // file by file, after the kernel was asked to drop its pages; it may not have
)

// Proof says what a verification has done.
type Proof struct {
	Totals Totals // of all entries, each compared
	// Read counts the files whose content was read, by means, and Bytes their bytes. The rest had no content or was verified before.
	Read  map[Means]int64
	Bytes map[Means]int64
	// DeviceRefused is why the device could not be used; nil if it was, or none was given.
	DeviceRefused error
}

// Verify compares every entry of a tree with a manifest: all that is kept, what is missing, what is too much, and the content, read
// from the disk and not from memory. Access times aside, the tree is not changed.
//
// Errors: *Mismatch; ErrSync, if what was written has been lost; ErrRead.
func Verify(ctx context.Context, root string, m *Manifest, o VerifyOptions) (*Proof, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer closeFD(t.fd)
	v := &verifier{tree: t, manifest: m, o: o, meter: newMeter(o.Progress)}
	v.proof = Proof{Totals: m.Totals, Read: map[Means]int64{}, Bytes: map[Means]int64{}}
	defer v.meter.end()
	began := before(time.Now())
	if err := v.verify(ctx); err != nil {
		return nil, fmt.Errorf("cannot verify %s: %w", root, err)
	}
	m.verified = began
	return &v.proof, nil
}

// before is a moment by which everything that happened before t is dated.
func before(t time.Time) Time {
	t = t.Add(-clockTick)
	return Time{t.Unix(), uint32(t.Nanosecond())}
}

type verifier struct {
	tree     *tree
	manifest *Manifest
	o        VerifyOptions
	meter    *meter
	contents *spool // files to read, in the order in which they lie on the device
	reading  Totals
	device   *device

	mu    sync.Mutex
	wrong Mismatch
	proof Proof
}

func (v *verifier) verify(ctx context.Context) error {
	v.meter.begin(PhaseSync, 0, 0)
	if err := v.tree.sync(); err != nil {
		return err
	}
	if v.o.Device != "" {
		v.device, v.proof.DeviceRefused = openDevice(v.o.Device, v.tree)
		defer v.device.close()
	}
	v.contents = newSpool(v.o.State, byBlock)
	defer v.contents.close()
	if err := v.compare(ctx); err != nil {
		return err
	}
	if err := v.readAll(ctx); err != nil {
		return err
	}
	if v.wrong.Count > 0 {
		return &v.wrong
	}
	return nil
}

// compare compares all but the contents.
func (v *verifier) compare(ctx context.Context) error {
	v.meter.begin(PhaseScan, v.manifest.Totals.Entries, 0)
	s := &scan{xattrs: true, blocks: v.device != nil, meter: v.meter}
	verified := stream(none{})
	if v.o.Verified != nil {
		verified, s.aged = v.o.Verified.stream(), v.o.Verified.verified
	}
	if err := scanTree(ctx, v.tree, v.o.Options, s); err != nil {
		if errors.Is(err, ErrRefused) {
			return fmt.Errorf("%w: %w", ErrMismatch, err)
		}
		return err
	}
	defer s.close()
	have, err := s.entries.sorted()
	if err != nil {
		return err
	}
	return zip(func(found []*Entry) error { return v.compareEntry(found[0], found[1], found[2]) }, have, v.manifest.stream(), verified)
}

func (v *verifier) compareEntry(have, want, verified *Entry) error {
	switch {
	case want == nil && have == nil: // verified before, and removed since
		return nil
	case want == nil:
		v.differ(have.Path, FaultExtra)
		return nil
	case have == nil:
		v.differ(want.Path, FaultMissing)
		return nil
	}
	// What was unsettled has been made anew since: its time of change says so only as long as nobody sets the clock back.
	same := verified != nil && !verified.Unsettled && verified.untouched(want) && verified.SHA256 == want.SHA256 && verified.Xattrs == want.Xattrs
	if have.Kind == File && have.scanned.aged {
		if err := v.complete(have, want, same); err != nil {
			return err
		}
	}
	if fault := faultOf(have, want); fault != "" {
		v.differ(want.Path, fault)
	}
	if have.Kind != File || want.Kind != File || have.Size != want.Size || want.First != "" || same && have.scanned.aged {
		return nil
	}
	if have.Size == 0 {
		if want.SHA256 != sha256.Sum256(nil) {
			v.differ(want.Path, FaultContent)
		}
		return nil
	}
	have.SHA256 = want.SHA256
	v.reading.add(have)
	return v.contents.add(have)
}

// complete gives an entry that has not changed the attributes that were verified before, or else looks at it after all.
func (v *verifier) complete(have, want *Entry, same bool) error {
	if same {
		have.Xattrs = want.Xattrs
		return nil
	}
	folder, err := v.tree.folder(parent(have.Path))
	if err != nil {
		return readError(have.Path, err)
	}
	defer closeFD(folder)
	e, err := (&scan{}).lookInside(folder, base(have.Path), have.Path)
	have.Xattrs = e.Xattrs
	return readError(have.Path, err)
}

func faultOf(have, want *Entry) Fault {
	switch {
	case have.Kind != want.Kind:
		return FaultKind
	case have.Size != want.Size:
		return FaultSize
	case have.Mode != want.Mode:
		return FaultMode
	case have.UID != want.UID || have.GID != want.GID:
		return FaultOwner
	case have.Modified != want.Modified:
		return FaultModified
	case have.Target != want.Target:
		return FaultTarget
	case have.First != want.First:
		return FaultLinks
	case have.Xattrs != want.Xattrs && want.First == "":
		return FaultXattrs
	}
	return ""
}

func (v *verifier) differ(path string, fault Fault) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.wrong.Count++; v.wrong.Count <= maxDifferences {
		v.wrong.Differences = append(v.wrong.Differences, Difference{path, fault})
	}
}

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/uuid"

	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// PinReport is what was recorded about the container beside what is found.
type PinReport struct {
	Record *Record
	// Found is what the header and the size of the container say.
	Found luks2.Pin
	// Looked: the volume is mounted, so that filesystem and marker were compared too.
	Looked bool
	// Differences lists every field that differs, those of [luks2.Pin] and "filesystem", "filesystem_uuid", "marker".
	Differences []luks2.Difference
}

// ComparePin looks at the container and, as far as it is open, into it. It needs no key and changes nothing.
func (v *Volume) ComparePin() (*PinReport, error) {
	record, err := v.loadRecord()
	if err != nil {
		return nil, err
	}
	container, err := openContainer(v.config.Volume.Container, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer container.Close()
	header, err := inspectValid(container)
	if err != nil {
		return nil, err
	}
	report := comparePin(record, container, header)
	mapping, err := unlock.FindMapping(v.MappingName())
	if err != nil || mapping == nil {
		return report, ignoreNoMapper(err)
	}
	mounted, err := mount.At(v.Root())
	if err != nil || mounted == nil || deviceOf(mounted) != mapping.Device {
		return report, err
	}
	identity, err := mount.Identify(mapping.Path)
	if err != nil {
		return nil, err
	}
	return report, v.compareFilesystem(report, identity)
}

// ignoreNoMapper: where there are no mappings ours is closed.
func ignoreNoMapper(err error) error {
	if errors.Is(err, unlock.ErrNoDeviceMapper) {
		return nil
	}
	return err
}

func comparePin(record *Record, container *container, header *luks2.Header) *PinReport {
	report := &PinReport{Record: record, Found: header.Pin(container.bytes)}
	if mismatch, ok := errors.AsType[*luks2.MismatchError](record.Pin.Check(header, container.bytes)); ok {
		report.Differences = mismatch.Differences
	}
	return report
}

// compareFilesystem adds what is seen of the mounted filesystem.
func (v *Volume) compareFilesystem(report *PinReport, identity mount.Identity) error {
	report.Looked = true
	marker, err := v.readMarker()
	if err != nil {
		return err
	}
	record := report.Record
	for _, field := range []luks2.Difference{
		{Field: "filesystem", Pinned: string(record.Filesystem), Found: string(identity.Kind)},
		{Field: "filesystem_uuid", Pinned: record.FilesystemUUID, Found: identity.UUID},
		{Field: "marker", Pinned: record.Marker, Found: marker},
	} {
		if field.Pinned != field.Found {
			report.Differences = append(report.Differences, field)
		}
	}
	return nil
}

// AcceptOptions say how a container is accepted as it is.
type AcceptOptions struct {
	// Sources offer the keys of which one must open the container.
	Sources []unlock.Source
	// Confirm is shown the differences, and stops everything by an error. It is asked before a container is opened that is not the
	// recorded one, and again, with [PinReport].Looked, before it is recorded. It is not asked where nothing differs.
	Confirm func(*PinReport) error
	// DryRun opens the container and looks, and changes and records nothing.
	DryRun bool
}

// AcceptPin records the container as it is, once a key has opened it, its filesystem was looked into, and Confirm agrees. What was open
// stays open, what was closed is closed again. It fails with a [StepError].
func (v *Volume) AcceptPin(ctx context.Context, options AcceptOptions, observer Observer) (*PinReport, error) {
	a := &accepting{visit: visit{Volume: v, observer: observer, look: options.DryRun}, options: options}
	defer a.release()
	enter := a.enter(options.Sources)
	err := runSteps(ctx, observer, slices.Concat(
		[]step{{StepRecord, a.loadRecord}, enter[0], {StepCompare, a.compareHeader}}, enter[1:],
		[]step{{StepCompare, a.compare}, {StepRecord, a.accept}}))
	return a.report, errors.Join(err, a.leave(context.WithoutCancel(ctx)))
}

// accepting is what the steps of one AcceptPin have found out so far.
type accepting struct {
	visit
	options AcceptOptions
	record  *Record
	report  *PinReport
}

func (a *accepting) loadRecord(context.Context) (err error) {
	a.record, err = a.Volume.loadRecord()
	return err
}

// compareHeader asks before anything of another container is decrypted, checked or mounted: the kernel would read what somebody else
// has written.
func (a *accepting) compareHeader(context.Context) error {
	a.report = comparePin(a.record, a.container, a.header)
	if len(a.report.Differences) == 0 {
		return nil
	}
	return a.options.Confirm(a.report)
}

// compare refuses a filesystem without the folders of the stores that have moved in: opening would fail, or bind empty ones.
func (a *accepting) compare(context.Context) error {
	for _, store := range a.record.Encrypted {
		folder, err := mount.OpenDirectory(a.Store(store.Name))
		if err != nil {
			return fmt.Errorf("cannot accept %s: folder of store %s: %w", a.container.Name(), store.Name, asForeign(err))
		}
		folder.Close()
	}
	return a.compareFilesystem(a.report, a.identity)
}

// accept writes the record last. A volume without marker gets one.
func (a *accepting) accept(ctx context.Context) error {
	if len(a.report.Differences) == 0 {
		return nil
	}
	if err := a.options.Confirm(a.report); err != nil || a.options.DryRun {
		return err
	}
	record := *a.record
	marker, err := a.readMarker()
	if err == nil && marker == "" {
		marker = uuid.NewString()
		err = a.populate(marker)
	}
	if err != nil {
		return err
	}
	record.Keyslots = a.keptKeyslots()
	record.Pin, record.Marker = a.report.Found, marker
	record.Filesystem, record.FilesystemUUID = a.identity.Kind, a.identity.UUID
	if err := a.backUpHeader(ctx, a.backing.path, a.header.UUID); err != nil {
		return err
	}
	if err := errors.Join(a.rememberHeader(a.header), a.saveRecord(&record)); err != nil {
		return err
	}
	var fields []string
	for _, difference := range a.report.Differences {
		fields = append(fields, difference.Field)
	}
	a.observer.Event(journal.PinAccepted, journal.F("CONTAINER", a.container.Name()), journal.F("DIFFERENCES", strings.Join(fields, " ")))
	return nil
}

// keptKeyslots are the recorded ones that are still there; none of another container.
func (a *accepting) keptKeyslots() []Keyslot {
	if a.record.Pin.UUID != a.report.Found.UUID || a.record.Pin.VolumeKeyDigest != a.report.Found.VolumeKeyDigest {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(a.record.Keyslots), func(made Keyslot) bool { return !made.In(a.header) })
}

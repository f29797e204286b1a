//go:build kernel

package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// recordedCreate is what a volume is created beside, and the recovery keys that were handed out, by the salts of their keyslots.
type recordedCreate struct {
	*site
	plain string
	keys  map[string]string
	// last is the recovery key of the volume in the end.
	last string
	// versions are those of the programs, of which each is asked once.
	versions map[string][]byte
}

// newRecordedCreate lays out a store in clear text.
func (s *site) newRecordedCreate() *recordedCreate {
	s.t.Helper()
	c := &recordedCreate{site: s, plain: filepath.Join(s.config.Stores[1].Path, "picture"),
		keys: map[string]string{}, versions: map[string][]byte{}}
	s.mkdir(filepath.Dir(c.plain))
	s.write(c.plain, clearText)
	return c
}

// record records a create that nobody takes the recovery key of, so that all is taken back, one that is killed when nearly all is there, and
// the one after that.
func (c *recordedCreate) record() *recording {
	c.t.Helper()
	r := c.power.record()
	refusal := errors.New("refused")
	if err := c.recorded(r, "refused", refusal); !errors.Is(err, refusal) {
		c.t.Fatal(err)
	}
	r.mark(mark{what: "killed", name: "begun", rest: true}) // at what moments it could be is seen already
	c.mustCrash(string(StepLock))
	c.must(c.recorded(r, "created", nil))
	return r
}

// recorded marks what it does.
func (c *recordedCreate) recorded(r *recording, what string, taken error) error {
	c.t.Helper()
	w := c.marking(r, what)
	defer func() { c.failpoint = nil }()
	_, err := c.Create(c.t.Context(), CreateOptions{Accept: accept, Deliver: func(key *secret.Key) error {
		c.last = string(key.Bytes())
		c.keys[c.salt(c.header())] = c.last
		return taken
	}}, w)
	r.mark(mark{what: what, name: "ended", ended: taken == nil})
	return err
}

// header is that of the container, nil if there is none.
func (c *recordedCreate) header() *luks2.Header {
	c.t.Helper()
	container, err := openContainer(c.container, os.O_RDONLY)
	if errors.Is(err, ErrContainerMissing) {
		return nil
	}
	c.must(err)
	defer container.Close()
	header, err := readValid(container)
	if err != nil {
		return nil
	}
	return header
}

func (c *recordedCreate) salt(header *luks2.Header) string {
	return string(header.Metadata.Keyslots[recoveryKeyslot].KDF.Salt)
}

// requireCreated does what somebody does whose machine comes up after a power failure: creates the volume, if there is none.
func (c *recordedCreate) requireCreated(m moment) {
	c.t.Helper()
	c.recovery = c.last
	if _, err := c.loadRecord(); err == nil {
		c.requireError(c.tryCreate(c.t.Context(), &watcher{}), StepPreflight, ErrAlreadySetUp)
	} else {
		if m.ended {
			c.t.Errorf("there is no volume: %v", err)
		}
		c.requireUnusable()
		c.requireRecoveryProven(m.name)
		c.breakDown(&breaker{versions: c.versions}, func(observer Observer) error { return c.tryCreate(c.t.Context(), observer) })
	}
	c.requireContent(c.plain, clearText)
	c.requireComplete()
	c.requireNothingUnder()
	c.requireRecovery()
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// requireRecoveryProven wants the key of a machine to open nothing that the recovery key does not.
func (c *recordedCreate) requireRecoveryProven(where string) {
	c.t.Helper()
	c.requireRecoveryFirst(where)
	header := c.header()
	if header == nil {
		return
	}
	for keyslot := range header.Metadata.Keyslots {
		if key, known := c.keys[c.salt(header)]; known && keyslot != recoveryKeyslot && keyslot != formatKeyslot {
			c.requireOpens(header, key)
		}
	}
}

func (c *recordedCreate) requireOpens(header *luks2.Header, text string) {
	c.t.Helper()
	key, err := secret.From([]byte(text))
	c.must(err)
	defer key.Wipe()
	if err := c.cryptsetup.Prove(c.t.Context(), c.container, header, key, recoveryKeyslot); err != nil {
		c.t.Errorf("the recovery key: %v", err)
	}
}

// requireRecovery wants the recovery key that was handed out last to open the container, and the copy of the header to be of this one.
func (c *recordedCreate) requireRecovery() {
	c.t.Helper()
	header := c.header()
	if header == nil || len(header.Metadata.Keyslots) != 2 {
		c.t.Fatalf("the header is %+v", header)
	}
	c.requireOpens(header, c.recovery)
	backup := c.backupPath(header.UUID)
	info, err := os.Stat(backup)
	c.must(err)
	c.run("cmp", "--bytes", strconv.FormatInt(info.Size(), 10), backup, c.container)
}

// faults 1 to 5: whatever had become durable when the power failed while a volume was created, in the order in which the disk had said so, it
// is no volume as long as it is not whole, and the next create makes one. All is on one disk.
func TestPowerCutOfCreate(t *testing.T) {
	s := newSite(t, withSecondStore)
	s.onDisks(&powered{name: filesDisk, folder: s.dir, filesystem: mount.Ext4, mebibytes: 256, points: true})
	c := s.newRecordedCreate()
	s.testReplayed(c.record(), 3, c.requireCreated)
}

// The same for an xfs on a block device. The files outside, on xfs too, and what luksmediad remembers have disks of their own.
func TestPowerCutOfCreateOnDevice(t *testing.T) {
	s := newSite(t)
	s.onDisks(&powered{name: filesDisk, folder: s.dir, filesystem: mount.XFS, mebibytes: 320, points: true},
		&powered{name: stateDisk, folder: s.paths.State, filesystem: mount.Ext4, mebibytes: 64},
		&powered{name: deviceName, mebibytes: 320}) // xfs takes no less than 300
	s = s.again(withXFS, onDevice, withSecondStore)
	c := s.newRecordedCreate()
	s.testReplayed(c.record(), 2, c.requireCreated)
}

// faults 1 and 8: the same for a container of somebody else that is adopted, whose files all become the store's.
func TestPowerCutOfAdopt(t *testing.T) {
	s := newSite(t)
	s.onDisks(&powered{name: filesDisk, folder: s.dir, filesystem: mount.Ext4, mebibytes: 256, points: true})
	s.makeFilled()
	whole := map[string]string{"media": "."}
	r := s.power.record()
	s.must(readopt(s, whole, s.marking(r, "adopt")))
	s.failpoint = nil
	r.mark(mark{what: "adopt", name: "ended", ended: true})
	s.testReplayed(r, 4, func(m moment) { s.requireAdoptable(m, whole) })
}

// requireAdoptable adopts the container, if it is not yet.
func (s *site) requireAdoptable(m moment, stores map[string]string) {
	s.t.Helper()
	if _, err := s.loadRecord(); err == nil {
		s.requireError(s.adopt(stores), StepPreflight, ErrAlreadySetUp)
	} else {
		_, err := s.Open(s.t.Context(), s.passphrase(foreignPassphrase), &watcher{})
		if m.ended || !errors.Is(err, ErrAdopting) && !errors.Is(err, ErrNotSetUp) {
			s.t.Errorf("not adopted: %v", err)
		}
		s.must(s.adopt(stores))
	}
	s.requireAdopted(map[string]string{"local_content/picture": "moved", "other": "moved too"})
	s.requireNothingUnder()
	if s.t.Failed() {
		s.t.FailNow()
	}
}

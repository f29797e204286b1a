package health

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// homeserver behaves like Synapse's media repository: it keeps originals and thumbnails in the
// layout of synapse/media/filepath.py, knows only thumbnails that it could make at the upload, and
// makes one again whose file is gone.
type homeserver struct {
	store      string // its media_store_path
	size       int    // of its one thumbnail
	down       error  // every request fails with it
	full       bool   // it takes no uploads
	answer     []byte // in place of a thumbnail
	memory     bool   // thumbnails are made, but not written
	shortfall  int    // how much longer thumbnails are now than the database says
	uploads    int
	thumbnails map[string]bool // by URI: its database
	deletion   error           // every deletion fails with it
	kept       string          // the URI of the one upload that it cannot delete
	deletions  int
	alias      string // the URI that it answers an upload with, in place of the true one
	hangs      error  // it does everything, but when nobody waits for the answer any more
}

func (h *homeserver) Upload(_ context.Context, picture []byte) (string, error) {
	if h.down != nil {
		return "", h.down
	}
	if h.full {
		return "", refusal("500 M_UNKNOWN")
	}
	h.uploads++
	uri := fmt.Sprintf("mxc://hs.test/abcdEFGHijklMNOPqrst%04d", h.uploads)
	if err := h.write("local_content", uri, "", picture); err != nil {
		return "", refusal("500 M_UNKNOWN")
	}
	_, err := h.generate(uri)
	h.thumbnails[uri] = err == nil // errors are swallowed at upload, matrix-org/synapse#16211
	return cmp.Or(h.alias, uri), h.hangs
}

func (h *homeserver) Thumbnail(_ context.Context, uri string) ([]byte, error) {
	if h.down != nil || h.hangs != nil || h.answer != nil {
		return h.answer, cmp.Or(h.down, h.hangs)
	}
	if !h.thumbnails[uri] {
		return nil, refusal("400 M_UNKNOWN Cannot find any thumbnails")
	}
	if contents, err := os.ReadFile(h.file("local_thumbnails", uri, h.name())); err == nil {
		return contents, nil
	}
	contents, err := h.generate(uri)
	if err != nil {
		return nil, refusal("404 M_NOT_FOUND")
	}
	whole := len(contents) - h.shortfall
	h.shortfall = 0 // stored with the new thumbnail
	return contents[:whole], nil
}

func (h *homeserver) Delete(_ context.Context, uri string) error {
	h.deletions++
	if h.down != nil || h.deletion != nil {
		return errors.Join(h.down, h.deletion)
	}
	if uri == h.kept {
		return refusal("0 pictures are deleted")
	}
	delete(h.thumbnails, uri)
	return nil
}

func refusal(text string) error { return &Failure{ReasonRefused, errors.New(text)} }

func (h *homeserver) name() string { return fmt.Sprintf("%d-%d-image-png-crop", h.size, h.size) }

func (h *homeserver) file(kind, uri, name string) string {
	media, err := mediaPath(uri)
	if err != nil {
		panic(err)
	}
	return filepath.Join(h.store, kind, media, name)
}

func (h *homeserver) write(kind, uri, name string, contents []byte) error {
	file := h.file(kind, uri, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, contents, 0o644)
}

func (h *homeserver) generate(uri string) ([]byte, error) {
	contents, err := os.ReadFile(h.file("local_content", uri, ""))
	if err != nil {
		return nil, err
	}
	original, err := png.Decode(bytes.NewReader(contents))
	if err != nil {
		return nil, err
	}
	cropped := original.(interface {
		SubImage(image.Rectangle) image.Image
	}).SubImage(image.Rect(0, 0, h.size, h.size))
	var out bytes.Buffer
	if err := png.Encode(&out, cropped); err != nil || h.memory {
		return out.Bytes(), err
	}
	return out.Bytes(), h.write("local_thumbnails", uri, h.name(), out.Bytes())
}

// scene is a volume with a store, a homeserver on it and the probe.
type scene struct {
	store, dir string
	server     *homeserver
	clock      *clock
	probe      *ThumbnailProbe
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{store: t.TempDir(), dir: t.TempDir(), clock: newClock()}
	s.server = &homeserver{store: s.store, size: 32, thumbnails: map[string]bool{}}
	s.probe = &ThumbnailProbe{
		Store: s.store, Dir: s.dir, Device: constant(deviceOf(t, s.store)), Server: s.server, Now: s.clock.Now,
	}
	return s
}

func (s *scene) mustRun(t *testing.T) {
	t.Helper()
	if _, err := s.probe.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *scene) mustFail(t *testing.T, want Reason) {
	t.Helper()
	_, err := s.probe.Run(t.Context())
	requireReason(t, err, want)
}

func (s *scene) requireUploads(t *testing.T, want int) {
	t.Helper()
	if s.server.uploads != want {
		t.Errorf("%d uploads, want %d", s.server.uploads, want)
	}
}

// One upload a day, each in place of the one before: the store does not grow, and with the right to delete, Synapse's database neither.
func TestThumbnailUploadsDaily(t *testing.T) {
	tests := map[string]struct {
		deletion error
		rounds   int
		rows     int
	}{
		"with the right to delete": {nil, 1000, 1},
		"without":                  {errors.ErrUnsupported, 300, 1 + 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.server.deletion = test.deletion
			s.mustRun(t)
			first := s.files(t)
			for range test.rounds {
				s.clock.advance(10 * time.Minute)
				s.mustRun(t)
			}
			s.requireUploads(t, 1+test.rounds/(24*6))
			if now := s.files(t); len(now) != len(first) || slices.Equal(now, first) {
				t.Errorf("at first %v, now %v", first, now)
			}
			if len(s.server.thumbnails) != test.rows {
				t.Errorf("%d rows in the database", len(s.server.thumbnails))
			}
		})
	}
}

// fault 73: what a Synapse that hangs is sent, it may take when nobody waits for the answer, and nothing would remember that.
func TestThumbnailUploadsNothingToASynapseThatHangs(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.clock.advance(renewAfter)
	s.server.hangs = &Failure{ReasonSynapseUnreachable, context.DeadlineExceeded}
	for range 5 {
		s.mustFail(t, ReasonSynapseUnreachable)
		s.clock.advance(time.Minute)
	}
	s.server.hangs = nil
	s.mustRun(t)
	s.requireUploads(t, 2)
}

// A restarted daemon goes on with the canary of the day, however often it restarts.
func TestThumbnailUploadsNotAtRestart(t *testing.T) {
	s := newScene(t)
	for range 20 {
		s.mustRun(t)
		s.clock.advance(time.Hour)
		s.restart()
	}
	s.requireUploads(t, 1)
	s.clock.now = s.clock.now.Add(-48 * time.Hour) // fault 71: the clock jumps
	s.restart()
	s.mustRun(t)
	s.requireUploads(t, 2)
}

// A restarted machine has Synapse prove anew that it takes uploads, but one that restarts in a loop no more than six times an hour.
func TestThumbnailUploadsAtBoot(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	for range 20 {
		s.clock.advance(time.Minute)
		s.restart()
		s.probe.Since = s.clock.now
		s.mustRun(t)
	}
	s.requireUploads(t, 1+2)
	s.clock.now = s.clock.now.Add(-48 * time.Hour) // fault 71
	for range 20 {
		s.mustRun(t)
		s.clock.advance(time.Hour)
	}
	s.requireUploads(t, 1+2+1)
}

// The trial of a move has Synapse take an upload, also soon after another, and no more than one.
func TestThumbnailUploadsInATrial(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.restart()
	s.probe.Renew = true
	s.mustRun(t)
	s.mustRun(t)
	s.requireUploads(t, 2)
	s.restart()
	s.probe.Renew, s.server.full = true, true
	s.mustFail(t, ReasonRefused)
	s.mustFail(t, ReasonRefused)
}

func (s *scene) restart() {
	s.probe = &ThumbnailProbe{Store: s.store, Dir: s.dir, Device: s.probe.Device, Server: s.server, Now: s.clock.Now}
}

// files are those below the store.
func (s *scene) files(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(s.store, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return names
}

// The size that comes back is homeserver.yaml's choice.
func TestThumbnailOfAnotherSize(t *testing.T) {
	s := newScene(t)
	s.server.size = 48
	s.mustRun(t)
	s.mustRun(t)
}

func TestThumbnailIsMadeAgain(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	uri := "mxc://hs.test/abcdEFGHijklMNOPqrst0001"
	file := s.server.file("local_thumbnails", uri, s.server.name())
	if err := os.WriteFile(file, []byte("torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.mustRun(t)
}

func TestThumbnailAfterUpgrade(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.server.shortfall = 20
	s.mustRun(t)
}

func TestThumbnailFailures(t *testing.T) {
	tests := map[string]struct {
		spoil func(*testing.T, *scene)
		want  Reason
	}{
		"Synapse down": {func(_ *testing.T, s *scene) {
			s.server.down = &Failure{ReasonSynapseUnreachable, errors.New("connection refused")}
		}, ReasonSynapseUnreachable}, // fault 73
		"token taken away": {func(_ *testing.T, s *scene) {
			s.server.down = &Failure{ReasonUnauthorized, errors.New("401 M_UNKNOWN_TOKEN")}
		}, ReasonUnauthorized},
		"no image":         {func(_ *testing.T, s *scene) { s.server.answer = []byte("<html>") }, ReasonNotImage},
		"truncated image":  {truncatedAnswer, ReasonNotImage},
		"image bomb":       {hugeAnswer, ReasonNotImage},
		"not written":      {func(_ *testing.T, s *scene) { s.server.memory = true }, ReasonNotOnVolume},
		"original damaged": {damageOriginal, ReasonIO},
		"not mounted": {func(t *testing.T, s *scene) {
			s.probe.Device = constant(deviceOf(t, s.store) + 1)
		}, ReasonNotMounted},
		"not moved in": {func(_ *testing.T, s *scene) {
			s.probe.Device = func() (uint64, error) { return 0, &Failure{ReasonNotMovedIn, errors.New("x")} }
		}, ReasonNotMovedIn},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.mustRun(t)
			test.spoil(t, s)
			s.mustFail(t, test.want)
			s.requireUploads(t, 1)
		})
	}
}

func truncatedAnswer(t *testing.T, s *scene) {
	picture, err := newPicture()
	if err != nil {
		t.Fatal(err)
	}
	s.server.answer = picture[:len(picture)/2]
}

func hugeAnswer(t *testing.T, s *scene) {
	var out bytes.Buffer
	if err := png.Encode(&out, image.NewGray(image.Rect(0, 0, 20_000, 10))); err != nil {
		t.Fatal(err)
	}
	s.server.answer = out.Bytes()
}

func damageOriginal(t *testing.T, s *scene) {
	name, err := s.probe.Original()
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, name, "damage")
}

// Synapse with the mount of before, or with another media_store_path, answers 200 and writes
// elsewhere; it must not be sent a new picture at every interval.
func TestThumbnailUploadGoesElsewhere(t *testing.T) {
	s := newScene(t)
	s.server.store = t.TempDir()
	for range 5 {
		s.mustFail(t, ReasonNotOnVolume)
		s.clock.advance(time.Minute)
	}
	s.requireUploads(t, 1)
	s.clock.advance(replaceAfter)
	s.mustFail(t, ReasonNotOnVolume)
	s.requireUploads(t, 2)
	s.server.store = s.store
	s.clock.advance(replaceAfter)
	s.mustRun(t)
}

// Each upload that Synapse refuses for want of space leaves an empty file in the store.
func TestThumbnailUploadRefused(t *testing.T) {
	s := newScene(t)
	if err := os.WriteFile(filepath.Join(s.store, "local_content"), nil, 0o600); err != nil { // in the way
		t.Fatal(err)
	}
	for range 3 {
		s.mustFail(t, ReasonRefused)
	}
	s.requireUploads(t, 1)
}

// A Synapse that takes no uploads does so as long as it is not proven to take them again, whatever thumbnails it makes.
func TestThumbnailOfASynapseWithoutUploads(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.clock.advance(renewAfter)
	s.server.full = true
	for range 5 {
		s.mustFail(t, ReasonRefused)
		s.clock.advance(time.Minute)
	}
	s.server.full = false
	s.clock.advance(replaceAfter)
	s.mustRun(t)
}

// Once reachable, Synapse is asked at the next interval, not ten minutes later.
func TestThumbnailAfterSynapseStarts(t *testing.T) {
	s := newScene(t)
	s.server.down = &Failure{ReasonSynapseUnreachable, errors.New("connection refused")}
	s.mustFail(t, ReasonSynapseUnreachable)
	s.server.down = nil
	s.mustRun(t)
}

// What Synapse has deleted, as media_retention does, is replaced.
func TestThumbnailOriginalDeleted(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	for _, name := range s.files(t) {
		remove(t, name)
	}
	clear(s.server.thumbnails)
	if _, err := s.probe.Original(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Original returned %v", err)
	}
	s.mustRun(t)
	s.requireUploads(t, 2)
}

// What Synapse still knows is lost: that is said for a day, also after a boot, unless it comes back. A move is tried with another.
func TestThumbnailOriginalLost(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	name, err := s.probe.Original()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name, name+".away"); err != nil {
		t.Fatal(err)
	}
	s.clock.advance(time.Hour)
	s.restart()
	s.probe.Since = s.clock.now
	s.mustFail(t, ReasonOriginalGone)
	s.requireUploads(t, 1)
	if err := os.Rename(name+".away", name); err != nil {
		t.Fatal(err)
	}
	s.mustRun(t)
	s.requireUploads(t, 2)
	if name, err = s.probe.Original(); err != nil {
		t.Fatal(err)
	}
	remove(t, name)
	for range 24 {
		s.mustFail(t, ReasonOriginalGone)
		s.clock.advance(time.Hour)
	}
	s.mustRun(t)
	s.requireUploads(t, 3)
	if name, err = s.probe.Original(); err != nil {
		t.Fatal(err)
	}
	remove(t, name)
	s.restart()
	s.probe.Renew = true
	s.mustRun(t)
	if len(s.files(t)) != 2 {
		t.Errorf("files %v", s.files(t))
	}
}

// A canary uploaded while the disk was full has no thumbnail in the database, for ever.
func TestThumbnailReplacesRefusedCanary(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	clear(s.server.thumbnails)
	s.clock.advance(replaceAfter / 2)
	s.mustFail(t, ReasonRefused)
	s.mustFail(t, ReasonRefused)
	s.requireUploads(t, 1)
	s.clock.advance(replaceAfter / 2)
	s.mustRun(t)
	s.requireUploads(t, 2)
}

// A Synapse with another media_store_path does not find the canary, and takes uploads elsewhere: the reason says so within the run, and no longer than
// it is so.
func TestThumbnailTellsWhereUploadsGo(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.clock.advance(time.Hour)
	s.server.store = t.TempDir()
	for range 5 {
		s.mustFail(t, ReasonNotOnVolume)
		s.clock.advance(time.Minute)
	}
	s.requireUploads(t, 2)
	s.server.store = s.store
	s.mustRun(t)
	s.requireUploads(t, 2)
	s.server.store = t.TempDir()
	s.clock.advance(renewAfter)
	s.mustFail(t, ReasonNotOnVolume)
	s.mustFail(t, ReasonNotOnVolume)
	s.server.store = s.store
	s.mustRun(t)
	s.requireUploads(t, 3)
}

// What Synapse took and put elsewhere, and what it refuses, is deleted as well, and leaves no file on the volume.
func TestThumbnailDeletesWhatCameToNothing(t *testing.T) {
	s := newScene(t)
	s.server.store = t.TempDir()
	s.mustFail(t, ReasonNotOnVolume)
	if s.server.deletions != 1 || len(s.server.thumbnails) != 0 {
		t.Errorf("%d deletions, %d rows in the database", s.server.deletions, len(s.server.thumbnails))
	}
	s.server.store = s.store
	s.clock.advance(replaceAfter)
	s.mustRun(t)
	clear(s.server.thumbnails)
	s.clock.advance(replaceAfter)
	s.mustRun(t)
	if s.server.deletions != 2 || len(s.files(t)) != 2 {
		t.Errorf("%d deletions, files %v", s.server.deletions, s.files(t))
	}
}

// What cannot be deleted is a warning, is remembered by the next daemon, and goes one by one when it can; no more than a month's is remembered.
func TestThumbnailRemembersWhatItCannotDelete(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.server.deletion = &Failure{ReasonUnauthorized, errors.New("403 M_FORBIDDEN")}
	const days = maxReplaced + 8
	for range days {
		s.clock.advance(renewAfter)
		s.mustFail(t, ReasonCanaryKept)
		s.restart()
	}
	if !OnlyDegrades(Thumbnail, ReasonCanaryKept) {
		t.Error("the volume is well")
	}
	s.requireUploads(t, 1+days)
	s.server.deletion, s.server.deletions = nil, 0
	for range days {
		s.clock.advance(time.Minute)
		s.mustRun(t)
	}
	if s.server.deletions != maxReplaced || len(s.server.thumbnails) != 1+days-maxReplaced {
		t.Errorf("%d deletions, %d rows in the database", s.server.deletions, len(s.server.thumbnails))
	}
}

// One that Synapse cannot delete does not keep it from deleting the others.
func TestThumbnailDeletesBesideOneItCannot(t *testing.T) {
	s := newScene(t)
	s.server.deletion = errors.ErrUnsupported
	const days = 5
	for range 1 + days {
		s.mustRun(t)
		s.clock.advance(renewAfter)
	}
	s.server.deletion = nil
	s.server.kept = s.mustLoad(t).Replaced[0]
	s.mustFail(t, ReasonCanaryKept)
	for range days {
		s.mustRun(t)
	}
	s.mustFail(t, ReasonCanaryKept)
	if len(s.server.thumbnails) != 2 {
		t.Errorf("%d rows in the database", len(s.server.thumbnails))
	}
}

// A Synapse that stops before it is asked to delete keeps nothing.
func TestThumbnailDeletionUnreachable(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.server.deletion = &Failure{ReasonSynapseUnreachable, errors.New("connection refused")}
	s.clock.advance(renewAfter)
	s.mustFail(t, ReasonSynapseUnreachable)
	s.server.deletion = nil
	s.mustRun(t)
	if len(s.server.thumbnails) != 1 {
		t.Errorf("%d rows in the database", len(s.server.thumbnails))
	}
}

// An answer that names a picture with other bytes, of a proxy that caches or re-encodes, takes no file away and is not asked for at each interval.
func TestThumbnailUploadNamesAnotherPicture(t *testing.T) {
	const theirs = "mxc://hs.test/abcdEFGHijklMNOPqrstUVWX"
	tests := map[string]func(*testing.T, *scene) (uri string){
		"a user's": func(t *testing.T, s *scene) string {
			if err := s.server.write("local_content", theirs, "", []byte("dear")); err != nil {
				t.Fatal(err)
			}
			return theirs
		},
		"the last canary": func(t *testing.T, s *scene) string {
			s.mustRun(t)
			s.clock.advance(renewAfter)
			return s.mustLoad(t).URI
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.server.alias = prepare(t, s)
			uploads := s.server.uploads
			before, err := os.ReadFile(s.server.file("local_content", s.server.alias, ""))
			if err != nil {
				t.Fatal(err)
			}
			for range 5 {
				s.mustFail(t, ReasonIO)
				s.clock.advance(time.Minute)
			}
			s.requireUploads(t, uploads+1)
			after, err := os.ReadFile(s.server.file("local_content", s.server.alias, ""))
			if err != nil || !bytes.Equal(before, after) || s.server.deletions != 0 {
				t.Errorf("%v, %d deletions", err, s.server.deletions)
			}
			s.clock.advance(replaceAfter)
			s.server.alias = ""
			s.mustRun(t)
		})
	}
}

// What cannot be put on record changes nothing: the canary on record stays, and the new one leaves no file.
func TestThumbnailRecordCannotBeWritten(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.clock.advance(renewAfter)
	before, record := s.files(t), s.mustLoad(t)
	inTheWay := filepath.Join(s.dir, recordName+".new")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		s.mustFail(t, ReasonError)
		s.clock.advance(time.Minute)
	}
	if !slices.Equal(before, s.files(t)) || !reflect.DeepEqual(record, s.mustLoad(t)) || s.server.deletions != 0 {
		t.Errorf("%v has become %v, %d deletions", before, s.files(t), s.server.deletions)
	}
	s.requireUploads(t, 2)
	remove(t, inTheWay)
	s.clock.advance(replaceAfter)
	s.mustRun(t)
	s.requireUploads(t, 3)
	if len(s.files(t)) != len(before) {
		t.Errorf("files %v", s.files(t))
	}
}

// A crash before the files of a discarded canary are removed, or an error, leaves them to the next run, with or without the right to delete. A
// file with other bytes is nobody's to remove.
func TestThumbnailSweepsWhatIsDiscarded(t *testing.T) {
	s := newScene(t)
	s.server.deletion = errors.ErrUnsupported
	for range 2 { // as after a crash
		s.mustRun(t)
		s.change(t, func(next *record) {
			next.discard(next.canary)
			next.canary = canary{}
		})
	}
	damaged := s.server.file("local_content", s.mustLoad(t).Discarded[0].URI, "")
	overwrite(t, damaged, "damage")
	s.mustFail(t, ReasonIO)
	if r := s.mustLoad(t); len(r.Discarded) != 1 || len(r.Replaced) != 1 {
		t.Errorf("on record is %+v", r)
	}
	remove(t, damaged)
	s.mustRun(t)
	if r := s.mustLoad(t); len(r.Discarded) != 0 || len(r.Replaced) != 2 || len(s.files(t)) != 2 {
		t.Errorf("on record is %+v, files %v", r, s.files(t))
	}
}

// The daemon and the trial of a move probe one after the other.
func TestThumbnailWaitsForAnotherProcess(t *testing.T) {
	s := newScene(t)
	other := s.openDir(t)
	if err := other.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*lockPause)
	defer cancel()
	_, err := s.probe.Run(ctx)
	requireReason(t, err, ReasonTimeout)
	s.requireUploads(t, 0)
	time.AfterFunc(2*lockPause, func() { other.Close() })
	s.mustRun(t)
}

func (s *scene) mustLoad(t *testing.T) *record {
	t.Helper()
	r, err := loadRecord(s.openDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (s *scene) change(t *testing.T, change func(*record)) {
	t.Helper()
	if err := s.mustLoad(t).update(s.openDir(t), change); err != nil {
		t.Fatal(err)
	}
}

func (s *scene) openDir(t *testing.T) *directory {
	t.Helper()
	dir, err := openDirectory(s.dir, s.probe.Device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// A Synapse that stands still is not asked to delete either.
func TestThumbnailDeletesNothingWhileSynapseIsDown(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	s.server.deletion = errors.ErrUnsupported
	s.clock.advance(renewAfter)
	s.mustRun(t)
	s.server.deletion, s.server.deletions = nil, 0
	s.server.down = &Failure{ReasonSynapseUnreachable, errors.New("connection refused")}
	s.mustFail(t, ReasonSynapseUnreachable)
	if s.server.deletions != 0 {
		t.Errorf("%d deletions", s.server.deletions)
	}
}

func TestOriginalWithoutCanary(t *testing.T) {
	s := newScene(t)
	if _, err := s.probe.Original(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Original returned %v", err)
	}
}

func TestPicturesDiffer(t *testing.T) {
	a, errA := newPicture()
	b, errB := newPicture()
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	size, err := decode(a)
	if err != nil || size != image.Pt(canarySide, canarySide) {
		t.Errorf("the picture is %v, %v", size, err)
	}
	if bytes.Equal(a, b) || len(a) < 2*minRandomBytes {
		t.Errorf("%d bytes, equal %t", len(a), bytes.Equal(a, b))
	}
}

func FuzzMediaPath(f *testing.F) {
	for _, seed := range []string{
		"mxc://hs.test/abcdEFGHijklMNOPqrst0001", "mxc://hs.test/../../etc/passwd", "mxc://hs.test/ab", "mxc:///abcdef", "abcdef",
		"mxc://hs.test:8448/....abc", "mxc://[::1]/ab/cd/ef",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		media, err := mediaPath(uri)
		if err == nil && (!fs.ValidPath(media) || len(filepath.SplitList(media)) != 1 || filepath.Clean(media) != media) {
			t.Errorf("%q becomes %q", uri, media)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"uri":"mxc://hs.test/abcdEFGHijklMNOPqrst0001","sha256":"00","uploaded":"2026-03-01T12:00:00Z"}`))
	f.Add([]byte(`{"version":1,"uri":"","replaced":["mxc://hs.test/abcdEFGHijklMNOPqrst0001"]}`))
	f.Add([]byte(`{"version":1,"uri":"mxc://hs.test/abcdEFGH","discarded":[{"uri":"mxc://hs.test/../.."},{"uri":"mxc://hs.test/abcdEFGH"}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"uri":"mxc://hs.test/../../x"}`))
	f.Fuzz(func(t *testing.T, contents []byte) {
		r := parseRecord(contents)
		if r.URI != "" && !fs.ValidPath(r.original()) {
			t.Errorf("the original is %q", r.original())
		}
		for _, c := range r.Discarded {
			if !fs.ValidPath(c.original()) || !fs.ValidPath(c.thumbnails()) {
				t.Errorf("the original is %q", c.original())
			}
		}
	})
}

// As many long names as are remembered fit into the record.
func TestRecordFits(t *testing.T) {
	s := newScene(t)
	long := canary{URI: "mxc://" + strings.Repeat("h", 255) + "/" + strings.Repeat("m", 24), SHA256: digest(nil), Uploaded: s.clock.now}
	s.change(t, func(next *record) {
		next.canary = long
		for range 2 * maxReplaced {
			next.swept(long.URI)
		}
		for range 2 * maxReplaced {
			next.discard(long)
		}
	})
	if r := s.mustLoad(t); len(r.Discarded) != maxReplaced || len(r.Replaced) != maxReplaced || r.Replaced[0] != long.URI {
		t.Errorf("on record is %+v", r)
	}
}

// A store whose Synapse stands still does not change: a way back out of the volume would take that for a write and be given up.
func TestThumbnailStaysWhileSynapseIsDown(t *testing.T) {
	s := newScene(t)
	s.mustRun(t)
	before := s.files(t)
	for _, down := range []error{&Failure{ReasonSynapseUnreachable, errors.New("connection refused")}, refusal("502 Bad Gateway")} {
		s.server.down = down
		s.mustFail(t, ReasonOf(down))
	}
	if after := s.files(t); !slices.Equal(before, after) {
		t.Errorf("%v has become %v", before, after)
	}
}

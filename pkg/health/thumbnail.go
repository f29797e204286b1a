package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A MediaServer is the part of Synapse that the thumbnail probe talks to. Its errors name their
// reason with a method Reason() string, one of those of the Thumbnail condition.
type MediaServer interface {
	// Upload stores a PNG and returns its content URI, mxc://server/media-id.
	Upload(ctx context.Context, png []byte) (uri string, err error)
	// Thumbnail returns a thumbnail of 32×32 pixels, made by cropping, or of the nearest size
	// the server has.
	Thumbnail(ctx context.Context, uri string) ([]byte, error)
	// Delete has the server forget an upload, which it may have forgotten already. Its error is errors.ErrUnsupported where that takes a
	// right that it was not given.
	Delete(ctx context.Context, uri string) error
}

const (
	maxPicture       = 1 << 20          // bytes of the canary or a thumbnail
	maxThumbnailSide = 1024             // pixels; Synapse's largest default is 800×600
	replaceAfter     = 10 * time.Minute // least time between two uploads, whatever happens
	renewAfter       = 24 * time.Hour   // most time between two uploads
)

// thumbnailName is what Synapse calls the thumbnails of a PNG: width, height, type and method.
var thumbnailName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(\d{1,4})-(\d{1,4})-image-png-(?:crop|scale)$`) })

// ThumbnailProbe proves that Synapse reads from and writes to the volume and can make thumbnails.
// It uploads a canary daily, which takes the place of the one before. Each run in which Synapse answers removes the
// canary's thumbnails below the volume's mount and asks Synapse for one: Synapse has to read the original and write the thumbnail again
// (synapse/media/thumbnailer.py), which must then appear on the volume's device. Of what was replaced it has Synapse forget one at each run.
type ThumbnailProbe struct {
	Store  string           // Synapse's media_store_path, as mounted
	Dir    string           // a directory of the volume that belongs to root, <volume>/.luksmediad
	Device Device           // of the volume
	Server MediaServer      // Synapse
	Since  time.Time        // a canary from before proves too little; zero: any will do that is not a day old
	Renew  bool             // none will do that this probe has not uploaded, however young
	Now    func() time.Time // time.Now if nil

	// The last upload that Synapse took or refused in vain: even a refused one may leave a file behind.
	attempted time.Time
	failure   error
	missed    time.Time // when the original of the canary on record was first found lost; zero: it is there
	fresh     bool      // this probe has uploaded one: whatever the clock says, it is not from before Since
}

// Name returns Thumbnail.
func (p *ThumbnailProbe) Name() Code { return Thumbnail }

// Run does the check. Its errors have the reasons of the table of conditions.
func (p *ThumbnailProbe) Run(ctx context.Context) (string, error) {
	store, err := openDirectory(p.Store, p.Device)
	if err != nil {
		return "", err
	}
	defer store.Close()
	dir, err := openDirectory(p.Dir, p.Device)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if err := dir.lock(ctx); err != nil { // the trial of a move probes while the daemon may, and both change the record
		return "", err
	}
	r, err := loadRecord(dir)
	if err != nil {
		return "", err
	}
	proof, err := p.prove(ctx, store, dir, r)
	if ReasonOf(err) == ReasonSynapseUnreachable {
		return "", err
	}
	if kept := p.forget(ctx, dir, r); err == nil { // else something graver is wrong
		err = kept
	}
	return proof, err
}

// prove uploads another canary if Synapse refuses the one on record, which tells whether that is to blame: one that was uploaded while the disk was
// full never gets a thumbnail, one that was quarantined neither, and a Synapse that looks elsewhere does not find it.
func (p *ThumbnailProbe) prove(ctx context.Context, store, dir *directory, r *record) (string, error) {
	if err := p.provide(ctx, store, dir, r); err != nil {
		return "", err
	}
	name, err := p.thumbnail(ctx, store, &r.canary)
	if ReasonOf(err) == ReasonRefused && p.now().Sub(r.Uploaded) >= replaceAfter {
		if err := p.upload(ctx, store, dir, r); err != nil {
			return "", err
		}
		name, err = p.thumbnail(ctx, store, &r.canary)
	}
	if err == nil {
		err = sweep(store, dir, r)
	}
	if err != nil {
		return "", err
	}
	return "thumbnail " + name + " made again on the volume", nil
}

// sweep removes the files of what is discarded. It comes after an answer of Synapse only, which may have been stopped so that the store
// stays as it is.
func sweep(store, dir *directory, r *record) error {
	var faults []error
	for _, c := range r.Discarded {
		err := c.remove(store)
		if err == nil {
			err = r.update(dir, func(next *record) { next.swept(c.URI) })
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// forget has Synapse forget one of the replaced canaries. One that it keeps is the last to be tried again.
func (p *ThumbnailProbe) forget(ctx context.Context, dir *directory, r *record) error {
	if len(r.Replaced) == 0 {
		return nil
	}
	uri := r.Replaced[0]
	kept := p.Server.Delete(ctx, uri)
	switch reason := ReasonOf(kept); {
	case errors.Is(kept, errors.ErrUnsupported):
		return nil
	case reason == ReasonSynapseUnreachable, reason == ReasonTimeout:
		return kept
	case kept != nil:
		kept = &Failure{ReasonCanaryKept, kept}
	}
	return errors.Join(kept, r.update(dir, func(next *record) {
		next.Replaced = next.Replaced[1:]
		if kept != nil {
			next.Replaced = append(next.Replaced, uri)
		}
	}))
}

// Original returns the path of the canary's original in the store, for the ciphertext probe. Its
// error is fs.ErrNotExist if there is no canary.
func (p *ThumbnailProbe) Original() (string, error) {
	store, err := openDirectory(p.Store, p.Device)
	if err != nil {
		return "", err
	}
	defer store.Close()
	dir, err := openDirectory(p.Dir, p.Device)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	r, err := loadRecord(dir)
	if err != nil {
		return "", err
	}
	if r.URI == "" {
		return "", fmt.Errorf("cannot name Synapse's canary: %w", fs.ErrNotExist)
	}
	file, err := store.open(r.original(), unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	return file.Name(), file.Close()
}

func (p *ThumbnailProbe) now() time.Time {
	if p.Now == nil {
		return time.Now()
	}
	return p.Now()
}

// provide sees to a canary on record whose original is proven: it uploads another if that is gone for good or its time has come.
func (p *ThumbnailProbe) provide(ctx context.Context, store, dir *directory, r *record) error {
	if r.URI == "" {
		return p.upload(ctx, store, dir, r)
	}
	err := r.check(store)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = p.miss(ctx, store, r)
	case err == nil:
		p.missed = time.Time{}
		if !p.isDue(r.Uploaded) {
			return nil
		}
		// A Synapse that hangs may take later what is sent to it now, when nobody waits for the answer any more.
		if _, _, err := p.ask(ctx, &r.canary); ReasonOf(err) == ReasonSynapseUnreachable {
			return err
		}
	}
	if err != nil {
		return err
	}
	return p.upload(ctx, store, dir, r)
}

// miss fails if the original is lost. Synapse deletes it, by media_retention or an administrator, together with the thumbnails and what the
// database knows (synapse/media/media_repository.py); as long as it answers with a thumbnail, it has deleted nothing. That is said for a day,
// also if another upload is due.
func (p *ThumbnailProbe) miss(ctx context.Context, store *directory, r *record) error {
	if p.renews() {
		return nil
	}
	_, _, err := p.ask(ctx, &r.canary)
	if ReasonOf(err) == ReasonRefused {
		return nil
	}
	if err != nil {
		return err
	}
	if p.missed.IsZero() {
		p.missed = p.now()
	}
	if p.now().Sub(p.missed) >= renewAfter {
		return nil
	}
	return &Failure{ReasonOriginalGone, fmt.Errorf("cannot find %s, of which Synapse still has a thumbnail", filepath.Join(store.path, r.original()))}
}

// isDue: it is time to upload another canary. A clock that was set back does not put it off for ever. While it is too early to see whether
// uploads still go elsewhere, the one on record tells that: Synapse does not find it then.
func (p *ThumbnailProbe) isDue(uploaded time.Time) bool {
	if p.renews() {
		return true
	}
	if p.tooEarly() && ReasonOf(p.failure) == ReasonNotOnVolume {
		return false
	}
	age := p.now().Sub(uploaded)
	return age < 0 || age >= renewAfter || age >= replaceAfter && !p.fresh && uploaded.Before(p.Since)
}

// renews: the canary on record is of no account.
func (p *ThumbnailProbe) renews() bool { return p.Renew && !p.fresh }

// upload repeats the last failure instead of uploading once more too early.
func (p *ThumbnailProbe) upload(ctx context.Context, store, dir *directory, r *record) error {
	if p.tooEarly() {
		return p.failure
	}
	c, err := p.send(ctx)
	if err != nil {
		if ReasonOf(err) == ReasonRefused {
			p.attempted, p.failure = p.now(), err
		}
		return err
	}
	err = adopt(store, dir, r, c)
	p.attempted, p.failure, p.fresh = p.now(), err, p.fresh || err == nil
	return errors.Join(err, sweep(store, dir, r))
}

func (p *ThumbnailProbe) tooEarly() bool {
	return p.failure != nil && p.now().Sub(p.attempted) < replaceAfter
}

// send uploads a picture.
func (p *ThumbnailProbe) send(ctx context.Context) (canary, error) {
	picture, err := newPicture()
	if err != nil {
		return canary{}, err
	}
	uri, err := p.Server.Upload(ctx, picture)
	if err != nil {
		return canary{}, err
	}
	if _, err := mediaPath(uri); err != nil {
		return canary{}, &Failure{ReasonRefused, err}
	}
	return canary{URI: uri, SHA256: digest(picture), Uploaded: p.now()}, nil
}

// adopt puts on record what Synapse took. What has other bytes, or cannot be read, is not even discarded: a proxy may have answered with the
// name of somebody's picture. What cannot be put on record goes at once, since nothing would remember it.
func adopt(store, dir *directory, r *record, c canary) error {
	err := c.check(store)
	if errors.Is(err, fs.ErrNotExist) {
		err = &Failure{ReasonNotOnVolume, fmt.Errorf("cannot find an upload below %s that Synapse took", store.path)}
		return errors.Join(err, r.update(dir, func(next *record) { next.discard(c) }))
	}
	if err != nil {
		return err
	}
	if err := r.update(dir, func(next *record) { next.succeed(c) }); err != nil {
		return errors.Join(err, c.remove(store))
	}
	return nil
}

// evict drops a file from the page cache. Synapse never syncs what it writes.
func (d *directory) evict(name string) error {
	file, err := d.open(name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return err
	}
	return dropCache(file, 0, 0)
}

// thumbnail removes the canary's thumbnails, asks for one and returns the name of the file that
// came back. All are removed, since homeserver.yaml decides which of them Synapse picks. Nothing is
// while Synapse does not answer: it may have been stopped so that the store stays as it is.
func (p *ThumbnailProbe) thumbnail(ctx context.Context, store *directory, c *canary) (string, error) {
	if _, _, err := p.ask(ctx, c); err != nil && ReasonOf(err) != ReasonNotImage {
		return "", err
	}
	dir := c.thumbnails()
	if err := removeThumbnails(store, dir); err != nil {
		return "", err
	}
	answer, size, err := p.ask(ctx, c)
	if ReasonOf(err) == ReasonNotImage {
		// Synapse announces the length that its database has. After an upgrade of its image library
		// the thumbnail made again has another, and only the second answer is whole.
		answer, size, err = p.ask(ctx, c)
	}
	if err != nil {
		return "", err
	}
	return findThumbnail(store, dir, answer, size)
}

func (p *ThumbnailProbe) ask(ctx context.Context, c *canary) ([]byte, image.Point, error) {
	answer, err := p.Server.Thumbnail(ctx, c.URI)
	if err != nil {
		return nil, image.Point{}, err
	}
	size, err := decode(answer)
	if err != nil {
		return nil, size, &Failure{ReasonNotImage, err}
	}
	return answer, size, nil
}

func removeThumbnails(store *directory, dir string) error {
	names, err := store.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !thumbnailName().MatchString(name) {
			continue
		}
		if err := store.remove(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// decode returns the size of a PNG after decoding all of it.
func decode(answer []byte) (image.Point, error) {
	config, err := png.DecodeConfig(bytes.NewReader(answer))
	if err != nil {
		return image.Point{}, fmt.Errorf("cannot decode Synapse's thumbnail: %w", err)
	}
	size := image.Pt(config.Width, config.Height)
	if max(size.X, size.Y) > maxThumbnailSide {
		return size, fmt.Errorf("cannot decode Synapse's thumbnail: %d×%d pixels are too many", size.X, size.Y)
	}
	if _, err := png.Decode(bytes.NewReader(answer)); err != nil {
		return size, fmt.Errorf("cannot decode Synapse's thumbnail: %w", err)
	}
	return size, nil
}

// findThumbnail returns the file below the store that holds the answer and whose name tells its size.
func findThumbnail(store *directory, dir string, answer []byte, size image.Point) (string, error) {
	names, err := store.names(dir)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if sizeOf(name) != size {
			continue
		}
		contents, err := store.read(path.Join(dir, name), maxPicture)
		if err != nil {
			return "", err
		}
		if bytes.Equal(contents, answer) {
			return name, nil
		}
	}
	return "", &Failure{ReasonNotOnVolume, fmt.Errorf("cannot find the %d×%d thumbnail in %s that Synapse answered with",
		size.X, size.Y, filepath.Join(store.path, dir))}
}

// sizeOf returns the size in a thumbnail's name, zero if it is none.
func sizeOf(name string) image.Point {
	match := thumbnailName().FindStringSubmatch(name)
	if match == nil {
		return image.Point{}
	}
	// The pattern allows nothing that Atoi does not.
	width, _ := strconv.Atoi(match[1])
	height, _ := strconv.Atoi(match[2])
	return image.Pt(width, height)
}

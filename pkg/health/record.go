package health

import (
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
)

// recordName is the file that remembers which of Synapse's media is the canary, and which were. It lies in the
// volume, so it lives and dies with the store.
const recordName = "canary.json"

// recordVersion is the version of the record's format.
const recordVersion = 1

// maxRecord bounds the record, in bytes: what is discarded and replaced takes most of it.
const maxRecord = 32 << 10

// maxReplaced is how many canaries that were replaced are remembered, those of a month; the oldest are forgotten.
const maxReplaced = 32

// record is what the volume remembers of the canaries: one that is discarded becomes a replaced one when its files are gone, and is
// forgotten when Synapse has forgotten it.
type record struct {
	Version int `json:"version"`
	canary
	// Discarded are those before and uploads that came to nothing. Their files may still be in the store.
	Discarded []canary `json:"discarded,omitempty"`
	// Replaced are the content URIs of which Synapse's database may still have a row.
	Replaced []string `json:"replaced,omitempty"`
}

// loadRecord returns one without a canary if there is none, or none that can be used: another upload replaces it.
func loadRecord(dir *directory) (*record, error) {
	contents, err := dir.read(recordName, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return &record{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parseRecord(contents), nil
}

func parseRecord(contents []byte) *record {
	var r record
	if err := json.Unmarshal(contents, &r); err != nil || r.Version != recordVersion {
		return &record{}
	}
	if !r.isUsable() {
		r.canary = canary{}
	}
	r.Discarded = slices.DeleteFunc(r.Discarded, func(c canary) bool { return !c.isUsable() })
	return &r
}

// update is the one way to change a record: on the disk first, so that what is on record and what is done by it never differ.
func (r *record) update(dir *directory, change func(next *record)) error {
	next := *r
	next.Discarded, next.Replaced = slices.Clone(r.Discarded), slices.Clone(r.Replaced)
	change(&next)
	next.Version = recordVersion
	contents, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := dir.replace(recordName, append(contents, '\n')); err != nil {
		return err
	}
	*r = next
	return nil
}

// succeed makes another canary the one on record.
func (r *record) succeed(c canary) {
	if r.URI != "" {
		r.discard(r.canary)
	}
	r.canary = c
}

// discard remembers what nobody needs any more.
func (r *record) discard(c canary) { r.Discarded = latest(append(r.Discarded, c)) }

// swept remembers that the files of what was discarded are gone.
func (r *record) swept(uri string) {
	r.Discarded = slices.DeleteFunc(r.Discarded, func(c canary) bool { return c.URI == uri })
	r.Replaced = latest(append(r.Replaced, uri))
}

func latest[T any](list []T) []T { return list[max(0, len(list)-maxReplaced):] }

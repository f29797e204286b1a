package transfer

import (
	"errors"
	"io"
	"slices"
)

// stream gives entries in an order, each good until the next call, then io.EOF.
type stream interface {
	next() (*Entry, error)
}

// none is a stream of nothing.
type none struct{}

func (none) next() (*Entry, error) { return nil, io.EOF }

// sliceStream gives the entries of a slice.
type sliceStream struct {
	entries []*Entry
	at      int
}

func (s *sliceStream) next() (*Entry, error) {
	if s.at == len(s.entries) {
		return nil, io.EOF
	}
	s.at++
	return s.entries[s.at-1], nil
}

// merged gives the entries of several sorted streams in their order; of equal ones, that of the later stream first.
type merged struct {
	compare func(a, b *Entry) int
	heads   []head // sorted
	given   bool   // the first head has been handed out
}

type head struct {
	entry  *Entry
	source int
	stream stream
}

func merge(compare func(a, b *Entry) int, streams ...stream) (*merged, error) {
	m := &merged{compare: compare}
	for i, s := range streams {
		e, err := s.next()
		if errors.Is(err, io.EOF) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m.insert(head{e, i, s})
	}
	return m, nil
}

func (m *merged) insert(h head) {
	at, _ := slices.BinarySearchFunc(m.heads, h, func(a, b head) int {
		if order := m.compare(a.entry, b.entry); order != 0 {
			return order
		}
		return b.source - a.source
	})
	m.heads = slices.Insert(m.heads, at, h)
}

func (m *merged) next() (*Entry, error) {
	if m.given {
		m.given = false
		h := m.heads[0]
		m.heads = slices.Delete(m.heads, 0, 1)
		e, err := h.stream.next()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if err == nil {
			h.entry = e
			m.insert(h)
		}
	}
	if len(m.heads) == 0 {
		return nil, io.EOF
	}
	m.given = true
	return m.heads[0].entry, nil
}

// zip calls f for every path of several streams sorted by path, with the entry of each, nil where it has none.
func zip(f func(found []*Entry) error, streams ...stream) error {
	heads, found := make([]*Entry, len(streams)), make([]*Entry, len(streams))
	for i := range streams {
		if err := pull(streams[i], &heads[i]); err != nil {
			return err
		}
	}
	for {
		least := leastPath(heads)
		if least == nil {
			return nil
		}
		for i, h := range heads {
			if found[i] = nil; h != nil && h.Path == least.Path {
				found[i] = h
			}
		}
		if err := f(found); err != nil {
			return err
		}
		path := least.Path
		for i, h := range heads {
			if h == nil || h.Path != path {
				continue
			}
			if err := pull(streams[i], &heads[i]); err != nil {
				return err
			}
		}
	}
}

func leastPath(heads []*Entry) *Entry {
	var least *Entry
	for _, h := range heads {
		if h != nil && (least == nil || comparePaths(h.Path, least.Path) < 0) {
			least = h
		}
	}
	return least
}

func pull(s stream, into **Entry) error {
	e, err := s.next()
	if errors.Is(err, io.EOF) {
		e, err = nil, nil
	}
	*into = e
	return err
}

// eachEntry calls f for every entry of a stream.
func eachEntry(s stream, f func(e *Entry) error) error {
	for {
		e, err := s.next()
		if err != nil {
			return endOfStream(err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

// endOfStream is no error.
func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// unique leaves out all entries of a path but the first.
type unique struct {
	stream stream
	last   string
	begun  bool
}

func (u *unique) next() (*Entry, error) {
	for {
		e, err := u.stream.next()
		if err != nil || !u.begun || e.Path != u.last {
			if err == nil {
				u.last, u.begun = e.Path, true
			}
			return e, err
		}
	}
}

// without leaves out the entries whose paths another stream gives, too.
type without struct {
	stream stream
	left   stream
	head   *Entry
	begun  bool
}

func (w *without) next() (*Entry, error) {
	for {
		e, err := w.stream.next()
		if err != nil {
			return nil, err
		}
		for !w.begun || w.head != nil && comparePaths(w.head.Path, e.Path) < 0 {
			w.begun = true
			if err := pull(w.left, &w.head); err != nil {
				return nil, err
			}
		}
		if w.head == nil || w.head.Path != e.Path {
			return e, nil
		}
	}
}

// Package journal reports what happens as events with fields, each kind with its own MESSAGE_ID, so that logs can be
// searched by what happened and not by how a sentence is worded.
package journal

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// queueLength is how many events wait for a slow sink before the next ones are dropped.
const queueLength = 512

// Logger hands events to a sink. Reporting never blocks, whatever the sink does.
type Logger struct {
	sink    Sink
	mapping string
	dropped atomic.Uint64
	done    chan struct{} // closed when the queue is closed and empty

	mu     sync.RWMutex // guards closed, and queue against being closed while an event is put into it
	closed bool
	queue  chan Entry
}

// New starts a Logger. mapping names the mapping to which cryptsetup's events belong unless they say so themselves; it
// may be empty.
func New(sink Sink, mapping string) *Logger {
	l := &Logger{sink: sink, mapping: mapping, queue: make(chan Entry, queueLength), done: make(chan struct{})}
	go l.run()
	return l
}

// Emit reports an event with its own priority.
func (l *Logger) Emit(event Event, fields ...Field) {
	l.EmitAt(event.Priority(), event, fields...)
}

// EmitAt reports an event with another priority.
func (l *Logger) EmitAt(priority Priority, event Event, fields ...Field) {
	entry := Entry{Time: time.Now(), Event: event, Priority: priority, Fields: l.complete(event, fields)}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		l.dropped.Add(1)
		return
	}
	select {
	case l.queue <- entry:
	default:
		l.dropped.Add(1)
	}
}

// complete adds the mapping to an event of cryptsetup that lacks it.
func (l *Logger) complete(event Event, fields []Field) []Field {
	named := func(f Field) bool { return f.key == mapping }
	if event.definition().object != cryptsetup || l.mapping == "" || slices.ContainsFunc(fields, named) {
		return slices.Clone(fields)
	}
	return append(slices.Clone(fields), Field{mapping, l.mapping})
}

// Dropped counts the events that did not reach the sink.
func (l *Logger) Dropped() uint64 { return l.dropped.Load() }

// Close hands over what is queued. Events that come later are dropped. When ctx ends first, the sink hangs and is left
// to itself.
func (l *Logger) Close(ctx context.Context) error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	l.mu.Unlock()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot hand over the last events: %w", ctx.Err())
	}
}

func (l *Logger) run() {
	defer close(l.done)
	var reported uint64
	for entry := range l.queue {
		if missing := l.dropped.Load() - reported; missing > 0 && l.send(l.droppedEntry(missing)) {
			reported += missing
		}
		l.send(entry)
	}
}

func (l *Logger) droppedEntry(count uint64) Entry {
	return Entry{Time: time.Now(), Event: EventsDropped, Priority: Warning, Fields: []Field{F("COUNT", count)}}
}

func (l *Logger) send(entry Entry) bool {
	if err := l.sink.Send(entry); err == nil {
		return true
	}
	if entry.Event != EventsDropped { // not an event of its own
		l.dropped.Add(1)
	}
	return false
}

package main

import (
	"context"
	"log/slog"

	"luksmediad/internal/journal"
)

// journalHandler makes events of what the API server logs: requests that act, and what net/http complains about.
type journalHandler struct {
	log *journal.Logger
}

// Enabled leaves out what is for debugging.
func (h journalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

// Handle reports one event. A complaint of net/http has no attributes: it is text.
func (h journalHandler) Handle(_ context.Context, record slog.Record) error {
	if record.NumAttrs() == 0 {
		h.log.EmitAt(journal.Warning, journal.Failed, journal.F("ERROR", record.Message))
		return nil
	}
	priority, fields := journal.Info, []journal.Field{}
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "operation":
			fields = append(fields, journal.F("OPERATION", a.Value))
		case "peer_pid":
			fields = append(fields, journal.F("PEER_PID", a.Value))
		case "peer_uid":
			fields = append(fields, journal.F("PEER_UID", a.Value))
		case "error":
			priority = journal.Warning
			fields = append(fields, journal.F("ERROR", a.Value))
		}
		return true
	})
	h.log.EmitAt(priority, journal.ControlRequest, fields...)
	return nil
}

// WithAttrs and WithGroup change nothing: the server gives every record all its attributes.
func (h journalHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup: see WithAttrs.
func (h journalHandler) WithGroup(string) slog.Handler { return h }

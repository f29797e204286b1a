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

// Handle reports one event. What has no operation is a complaint of net/http or of the web configuration, or no news.
func (h journalHandler) Handle(_ context.Context, record slog.Record) error {
	priority, fields, acted := journal.Info, []journal.Field{}, false
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "operation":
			acted = true
			fields = append(fields, journal.F("OPERATION", a.Value))
		case "peer_pid":
			fields = append(fields, journal.F("PEER_PID", a.Value))
		case "peer_uid":
			fields = append(fields, journal.F("PEER_UID", a.Value))
		case "peer_gid":
			fields = append(fields, journal.F("PEER_GID", a.Value))
		case "error":
			priority = journal.Warning
			fields = append(fields, journal.F("ERROR", a.Value))
		}
		return true
	})
	switch {
	case acted:
		h.log.EmitAt(priority, journal.ControlRequest, fields...)
	case record.Level >= slog.LevelWarn:
		h.log.EmitAt(journal.Warning, journal.Failed, journal.F("ERROR", complaint(record)))
	}
	return nil
}

// complaint is the message with the error that the toolkit gives beside it.
func complaint(record slog.Record) string {
	text := record.Message
	record.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			text += ": " + a.Value.String()
		}
		return true
	})
	return text
}

// WithAttrs and WithGroup change nothing: the server gives every record all its attributes.
func (h journalHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup: see WithAttrs.
func (h journalHandler) WithGroup(string) slog.Handler { return h }

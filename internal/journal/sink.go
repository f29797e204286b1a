package journal

import (
	"fmt"
	"io"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/journal"
)

// Sink takes entries, one at a time. It may block: a Logger waits for it, whoever reports an event does not.
type Sink interface {
	Send(Entry) error
}

// Detect returns the journal if standard error is connected to it, or if systemd started this process as a service and
// its journal is there; otherwise standard error.
func Detect() Sink {
	connected, err := systemd.StderrIsJournalStream()
	service := os.Getenv("INVOCATION_ID") != "" // systemd.exec(5)
	if err == nil && connected || service && systemd.Enabled() {
		return Native{}
	}
	return Text{os.Stderr}
}

// Native sends entries to journald by its native protocol, the only one that carries fields.
type Native struct{}

// Send sends one datagram.
func (Native) Send(e Entry) error {
	return systemd.Send(e.message(), e.Priority, e.variables())
}

// Text writes entries as lines: time, level, message and fields.
type Text struct {
	Writer io.Writer
}

// Send writes one line.
func (t Text) Send(e Entry) error {
	_, err := fmt.Fprintf(t.Writer, "%s %-6s %s\n", e.Time.UTC().Format(time.RFC3339), level(e.Priority), e.message())
	return err
}

func level(p Priority) string {
	switch {
	case p <= Critical:
		return "CRIT"
	case p == Error:
		return "ERROR"
	case p == Warning:
		return "WARN"
	case p == Notice:
		return "NOTICE"
	default:
		return "INFO"
	}
}

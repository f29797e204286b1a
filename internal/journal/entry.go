package journal

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/unit"
)

const (
	identifier = "luksmediad"
	prefix     = "LUKSMEDIAD_"
	mapping    = "MAPPING" // the field that names the mapping, without its prefix
	unitField  = "SERVICE" // the same for a unit

	maxValue = 4096 // bytes of a field's value
)

// Field is a value that belongs to an event.
type Field struct {
	key   string
	value string
}

// F makes a field. The key is given without prefix, like SOURCE for LUKSMEDIAD_SOURCE, and consists of upper-case
// letters, digits and underscores (systemd.journal-fields(7)).
func F(key string, value any) Field {
	text := strings.ToValidUTF8(fmt.Sprint(value), "\uFFFD")
	if len(text) > maxValue {
		text = strings.ToValidUTF8(text[:maxValue], "") + "…"
	}
	return Field{key, text}
}

// Entry is an event as it goes to a sink.
type Entry struct {
	Time     time.Time
	Event    Event
	Priority Priority
	Fields   []Field // in the order in which they were given
}

// message is the event's constant message with the fields behind it, because a plain journalctl shows nothing else.
// Who wants to select events uses MESSAGE_ID or the fields.
func (e Entry) message() string {
	text := e.Event.String()
	for _, f := range e.Fields {
		text += " " + strings.ToLower(f.key) + "=" + plain(f.value)
	}
	return text
}

// plain quotes a value that would not read as one word.
func plain(value string) string {
	awkward := func(r rune) bool { return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	if value == "" || strings.ContainsFunc(value, awkward) {
		return strconv.Quote(value)
	}
	return value
}

// variables are the entry's journal fields except MESSAGE and PRIORITY.
func (e Entry) variables() map[string]string {
	variables := map[string]string{}
	for _, f := range e.Fields {
		variables[prefix+f.key] = f.value
	}
	maps.Copy(variables, map[string]string{
		"SYSLOG_IDENTIFIER": identifier,
		"MESSAGE_ID":        e.Event.MessageID(),
		prefix + "EVENT":    e.Event.Name(),
	})
	if name := e.objectUnit(); name != "" {
		variables["OBJECT_SYSTEMD_UNIT"] = name
	}
	return variables
}

// objectUnit is the other unit under which journalctl -u shows the entry; journald takes it from root only
// (systemd.journal-fields(7), and add_matches_for_unit in systemd's logs-show.c).
func (e Entry) objectUnit() string {
	switch e.Event.definition().object {
	case docker:
		return "docker.service"
	case service:
		return e.field(unitField)
	case cryptsetup:
		if name := e.field(mapping); name != "" {
			return "systemd-cryptsetup@" + unit.UnitNameEscape(name) + ".service"
		}
	}
	return ""
}

func (e Entry) field(key string) string {
	at := slices.IndexFunc(e.Fields, func(f Field) bool { return f.key == key })
	if at < 0 {
		return ""
	}
	return e.Fields[at].value
}

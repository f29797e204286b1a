package journal

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Catalog is the message catalog that journalctl -x shows the explanations from, in the format of systemd's
// MESSAGE_CATALOG specification.
func Catalog() string {
	var b strings.Builder
	for event := range eventCount {
		d := event.definition()
		fmt.Fprintf(&b, "-- %s\nSubject: %s\nDefined-By: %s\n\n%s\n\n", d.id, title(d.message), identifier, wrap(d.text))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func title(message string) string {
	if strings.HasPrefix(message, identifier) {
		return message
	}
	first, size := utf8.DecodeRuneInString(message)
	return strings.ToUpper(string(first)) + message[size:]
}

// wrap breaks a text into lines of at most 79 characters, since journalctl prints it as it is.
func wrap(text string) string {
	const width = 79
	var b strings.Builder
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
		case column+1+len(word) > width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

package tpm2

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/go-eventlog/tcg"
)

// maxText bounds the description of an event, in characters: a kernel's command line may have thousands.
const maxText = 80

// describe says what an event is about, as far as its data tells (TCG PC Client Platform Firmware Profile, "Event
// Types").
func describe(event tcg.Event) string {
	switch event.Type {
	case tcg.EFIVariableDriverConfig, tcg.EFIVariableBoot, tcg.EFIVariableBoot2, tcg.EFIVariableAuthority:
		variable, err := tcg.ParseUEFIVariableData(bytes.NewReader(event.Data))
		if err != nil {
			return ""
		}
		return shorten(variable.VarName())
	case tcg.EFIBootServicesApplication, tcg.EFIBootServicesDriver, tcg.EFIRuntimeServicesDriver:
		return shorten(imagePath(event.Data))
	case tcg.EFIPlatformFirmwareBlob2, tcg.EFIHandoffTables2:
		return counted(event.Data)
	case tcg.EventTag:
		tagged, err := tcg.ParseTaggedEventData(event.Data)
		if err != nil {
			return ""
		}
		return text(tagged.Data)
	}
	return text(event.Data)
}

// imagePath is the path of the file that a program was started from.
func imagePath(data []byte) string {
	image, err := tcg.ParseEFIImageLoad(bytes.NewReader(data))
	if err != nil {
		return ""
	}
	elements, err := image.DevicePath()
	if err != nil {
		return ""
	}
	var path strings.Builder
	for _, element := range elements {
		const filePath = 4 // UEFI Specification, "File Path Media Device Path"
		if element.Type == tcg.MediaDevice && element.Subtype == filePath {
			path.WriteString(wideText(element.Data))
		}
	}
	return path.String()
}

// counted reads a text behind a byte with its length.
func counted(data []byte) string {
	if len(data) == 0 || len(data) <= int(data[0]) {
		return ""
	}
	return text(data[1:][:data[0]])
}

// text is data that consists of readable characters, of 8 or 16 bits each, and nothing if it does not.
func text(data []byte) string {
	found := strings.TrimRight(string(data), "\x00")
	if len(data)%2 == 0 && len(data) > 2 && data[1] == 0 {
		found = wideText(data)
	}
	if !utf8.ValidString(found) || strings.ContainsFunc(found, unreadable) {
		return ""
	}
	return shorten(found)
}

func unreadable(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' }

// wideText decodes UTF-16 up to its end, which EFI marks by a zero.
func wideText(data []byte) string {
	var units []uint16
	for ; len(data) >= 2; data = data[2:] {
		unit := binary.LittleEndian.Uint16(data)
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	return string(utf16.Decode(units))
}

// shorten makes text fit for one line of a few words: a log says what its writer likes.
func shorten(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	runes := []rune(strings.TrimSpace(text))
	if len(runes) > maxText {
		return string(runes[:maxText-1]) + "…"
	}
	return string(runes)
}

package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The depth at which json-c, which cryptsetup uses, gives up.
const maxDepth = 32

// parseDocument reads the JSON area: an object, followed by nothing but zeros
// (section 3.1 of the specification).
func parseDocument(area []byte) (map[string]any, []byte, error) {
	document, rest, ended := bytes.Cut(area, []byte{0})
	switch {
	case !ended:
		return nil, nil, errors.New("no zero byte after the JSON")
	case len(bytes.Trim(rest, "\x00")) > 0:
		return nil, nil, errors.New("bytes after the end of the JSON")
	}
	object, err := ParseObject(document)
	return object, document, err
}

// ParseObject reads one JSON object. It accepts only what every JSON reader
// reads alike, since whoever is handed the same text must not see another value
// than was checked: no member twice, no NUL in a string (json-c would cut a
// member's name there). Numbers become json.Number.
func ParseObject(document []byte) (map[string]any, error) {
	switch {
	case !bytes.HasPrefix(document, []byte("{")) || !bytes.HasSuffix(document, []byte("}")):
		return nil, errors.New("the JSON is not one object")
	case !utf8.Valid(document):
		return nil, errors.New("the JSON is not UTF-8")
	case !json.Valid(document):
		return nil, errors.New("the JSON has a syntax error")
	}
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	value, err := readValue(decoder, 0)
	if err != nil {
		return nil, err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("the JSON is not one object")
	}
	return object, nil
}

func readValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("the JSON is nested more than %d deep", maxDepth)
	}
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Delim:
		if token == '{' {
			return readObject(d, depth)
		}
		return readArray(d, depth)
	case string:
		return token, checkString(token)
	}
	return token, nil
}

func readObject(d *json.Decoder, depth int) (map[string]any, error) {
	object := map[string]any{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string)
		if err := checkString(name); err != nil {
			return nil, err
		}
		if _, twice := object[name]; twice {
			return nil, fmt.Errorf("member %q occurs twice", name)
		}
		if object[name], err = readValue(d, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return object, err
}

func readArray(d *json.Decoder, depth int) ([]any, error) {
	array := []any{}
	for d.More() {
		value, err := readValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
	}
	_, err := d.Token()
	return array, err
}

func checkString(s string) error {
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("NUL in the string %q", s)
	}
	return nil
}

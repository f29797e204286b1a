package luks2

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// node is an object of the metadata. Its getters take the first failure down
// in a place that all nodes of a document share, and go on with zero values:
// the caller asks once at the end.
type node struct {
	path    string // "keyslots.0.area"
	members map[string]any
	failure *error
}

var errMissing = errors.New("missing")

func (n node) fail(name string, err error) {
	if *n.failure == nil {
		*n.failure = fmt.Errorf("%s: %w", n.at(name), err)
	}
}

func (n node) at(name string) string {
	if n.path == "" {
		return name
	}
	return n.path + "." + name
}

func (n node) has(name string) bool { _, ok := n.members[name]; return ok }

// member returns a mandatory member of type T.
func member[T any](n node, name, kind string) (value T) {
	raw, ok := n.members[name]
	if !ok {
		n.fail(name, errMissing)
		return value
	}
	value, ok = raw.(T)
	if !ok {
		n.fail(name, fmt.Errorf("not %s", kind))
	}
	return value
}

func (n node) object(name string) node {
	return node{path: n.at(name), members: member[map[string]any](n, name, "an object"), failure: n.failure}
}

func (n node) text(name string) string { return member[string](n, name, "a string") }

// integer reads a JSON number of at most 32 bits, which must be written as
// digits only.
func (n node) integer(name string) int {
	number := member[json.Number](n, name, "a number")
	value, err := strconv.ParseUint(string(number), 10, 32)
	if err != nil {
		n.fail(name, fmt.Errorf("not an unsigned 32-bit number: %q", number))
	}
	return int(value)
}

// bytes reads a 64-bit number, which LUKS2 writes as a string.
func (n node) bytes(name string) int64 {
	s := n.text(name)
	value, err := strconv.ParseUint(s, 10, 63)
	if err != nil || strconv.FormatUint(value, 10) != s {
		n.fail(name, fmt.Errorf("not a number of bytes: %q", s))
	}
	return int64(value)
}

func (n node) base64(name string) []byte {
	decoded, err := base64.StdEncoding.Strict().DecodeString(n.text(name))
	if err != nil {
		n.fail(name, errors.New("not base64"))
	}
	return decoded
}

// texts reads an array of strings.
func (n node) texts(name string) []string {
	array := member[[]any](n, name, "an array")
	list := make([]string, 0, len(array))
	for _, value := range array {
		s, ok := value.(string)
		if !ok {
			n.fail(name, errors.New("not an array of strings"))
		}
		list = append(list, s)
	}
	return list
}

// references reads an array of the numbers of existing objects, each once.
func (n node) references(name string, to map[string]any) []int {
	list := []int{}
	for _, s := range n.texts(name) {
		if _, ok := to[s]; !ok {
			n.fail(name, fmt.Errorf("%q does not exist", s))
			continue
		}
		id, _ := strconv.Atoi(s)
		if slices.Contains(list, id) {
			n.fail(name, fmt.Errorf("%q occurs twice", s))
		}
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

// numbered reads an object whose members are objects named by a number below
// limit.
func numbered[T any](n node, name string, limit int, read func(node) T) map[int]T {
	list := n.object(name)
	result := make(map[int]T, len(list.members))
	for _, key := range slices.Sorted(maps.Keys(list.members)) {
		id, err := strconv.Atoi(key)
		if err != nil || id < 0 || id >= limit || strconv.Itoa(id) != key {
			list.fail(key, fmt.Errorf("not a number below %d", limit))
			continue
		}
		result[id] = read(list.object(key))
	}
	return result
}

func sortedKeys[T any](m map[int]T) []int { return slices.Sorted(maps.Keys(m)) }

package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// document collects, while the tree is read, every problem and the place of every key.
type document struct {
	file     string
	problems []Problem
	places   map[string]*token.Position
}

// value is a node of the tree: what stands at a key.
type value struct {
	*document
	key  string
	node ast.Node
}

// fields are the known keys of a mapping and what reads each.
type fields map[string]func(value)

// report adds a problem with the value at key.
func (d *document) report(key, example, format string, args ...any) {
	p := Problem{File: d.file, Key: key, Example: example, Reason: fmt.Sprintf(format, args...)}
	if place := d.place(key); place != nil {
		p.Line, p.Column = place.Line, place.Column
	}
	d.problems = append(d.problems, p)
}

// place is where key stands or, if it is not in the file, what it would be part of; nil for the whole file.
func (d *document) place(key string) *token.Position {
	for ; key != ""; key = key[:max(0, strings.LastIndexAny(key, ".["))] {
		if place := d.places[key]; place != nil {
			return place
		}
	}
	return nil
}

func (d *document) reported(key string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool { return p.Key == key })
}

// mapping reads a mapping's keys. No value at all is an empty mapping: all its keys may be commented out.
func (v value) mapping(known fields) {
	lines := map[string]int{}
	for _, entry := range v.entries(known) {
		name, place := entry.Key.GetToken().Value, entry.Key.GetToken().Position
		child := value{v.document, join(v.key, name), entry.Value}
		read, ok := known[name]
		if first := lines[name]; first != 0 {
			v.reportAt(place, child.key, "a second value; the first is in line %d", first)
			continue
		}
		lines[name] = place.Line
		if !ok {
			v.reportAt(place, child.key, "unknown key; %s", suggest(name, slices.Sorted(maps.Keys(known))))
			continue
		}
		v.places[child.key] = place
		read(child)
	}
}

func (v value) entries(known fields) []*ast.MappingValueNode {
	switch node := v.node.(type) {
	case nil, *ast.NullNode:
		return nil
	case *ast.MappingNode:
		return node.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{node}
	}
	v.report(v.key, "", "%s stands where a mapping is expected; its keys are: %s", v.kind(), strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	return nil
}

// list reads a sequence's items.
func (v value) list(example string, read func(value)) {
	switch node := v.node.(type) {
	case *ast.NullNode:
	case *ast.SequenceNode:
		for i, item := range node.Values {
			child := value{v.document, fmt.Sprintf("%s[%d]", v.key, i), item}
			v.places[child.key] = start(item)
			read(child)
		}
	default:
		v.report(v.key, example, "%s stands where a list is expected", v.kind())
	}
}

// parsed returns a reader of a single value.
func parsed[T any](into *T, example string, parse func(string) (T, error)) func(value) {
	return func(v value) {
		text, ok := v.scalar(example)
		if !ok {
			return
		}
		result, err := parse(text)
		if err != nil {
			v.report(v.key, example, "%v", err)
			return
		}
		*into = result
	}
}

// scalar is the text of a single value as it stands in the file, without quotes.
func (v value) scalar(example string) (string, bool) {
	switch node := v.node.(type) {
	case *ast.StringNode:
		v.places[v.key] = start(node)
		return node.Value, true
	case *ast.LiteralNode:
		return node.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		v.places[v.key] = start(node)
		return node.GetToken().Value, true
	case *ast.NullNode:
		v.report(v.key, example, "has no value")
	default:
		v.report(v.key, example, "%s stands where a single value is expected", v.kind())
	}
	return "", false
}

// kind names what stands there for an error.
func (v value) kind() string {
	switch node := v.node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AnchorNode, *ast.AliasNode:
		return "an anchor or alias, which is not supported,"
	case *ast.TagNode:
		return "a tag, which is not supported,"
	case *ast.LiteralNode:
		return "a text block"
	default:
		return quote(node.GetToken().Value)
	}
}

func (d *document) reportAt(place *token.Position, key, format string, args ...any) {
	p := Problem{File: d.file, Line: place.Line, Column: place.Column, Key: key, Reason: fmt.Sprintf(format, args...)}
	d.problems = append(d.problems, p)
}

// start is the first character of a node; the token of a mapping is its first colon.
func start(node ast.Node) *token.Position {
	if mapping, ok := node.(*ast.MappingNode); ok && len(mapping.Values) > 0 && !mapping.IsFlowStyle {
		return mapping.Values[0].Key.GetToken().Position
	}
	return node.GetToken().Position
}

// join extends a key by a name from the file; one that is not plain is quoted, so that an error stays on one line.
func join(parent, name string) string {
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, isSpecial) {
		name = quote(name)
	}
	if parent == "" {
		return name
	}
	return parent + "." + name
}

// isSpecial is true of what no key is made of.
func isSpecial(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
}

// quote makes any text fit for one line of an error.
func quote(text string) string {
	const longest = 100 // bytes
	if len(text) > longest {
		return fmt.Sprintf("%q…", text[:longest])
	}
	return fmt.Sprintf("%q", text)
}

package journal

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"luksmediad/test/golden"

	"github.com/google/go-cmp/cmp"
)

// Others search for names and identifiers: they are an interface.
func TestEvents(t *testing.T) {
	var table strings.Builder
	seen := map[string]Event{}
	for event := range eventCount {
		for _, unique := range []string{event.Name(), event.MessageID(), event.String()} {
			if other, ok := seen[unique]; ok || unique == "" {
				t.Errorf("%d and %d have the same %q", other, event, unique)
			}
			seen[unique] = event
		}
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(event.MessageID()) {
			t.Errorf("%s: message id %q", event.Name(), event.MessageID())
		}
		fmt.Fprintf(&table, "%s %-6s %s\n", event.MessageID(), level(event.Priority()), event.Name())
	}
	golden.Compare(t, "testdata/events.golden", table.String())
}

// Every field that the program reports has a name that journald takes (journal_field_valid in systemd's
// journal-file.c), and every field that the catalog names is reported somewhere.
func TestFieldNames(t *testing.T) {
	reported := map[string]bool{"COUNT": true, mapping: true} // by this package itself
	for _, key := range fieldKeys(t, filepath.Join("..", "..")) {
		reported[key] = true
		if !regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`).MatchString(key) || len(prefix+key) > 64 {
			t.Errorf("field %q", key)
		}
	}
	for _, d := range definitions {
		for _, name := range regexp.MustCompile(`@([^@]+)@`).FindAllStringSubmatch(d.text, -1) {
			if key, ok := strings.CutPrefix(name[1], prefix); !ok || !reported[key] {
				t.Errorf("%s: the catalog names %s", d.name, name[1])
			}
		}
	}
}

// fieldKeys finds the first argument of every call of journal.F below dir.
func fieldKeys(t *testing.T, dir string) []string {
	t.Helper()
	var keys []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if call, ok := node.(*ast.CallExpr); ok && isFieldCall(call) {
				keys = append(keys, literal(t, path, call.Args[0]))
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func isFieldCall(call *ast.CallExpr) bool {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || selector.Sel.Name != "F" || len(call.Args) != 2 {
		return false
	}
	pkg, ok := selector.X.(*ast.Ident)
	return ok && pkg.Name == "journal"
}

func literal(t *testing.T, path string, argument ast.Expr) string {
	t.Helper()
	basic, ok := argument.(*ast.BasicLit)
	if !ok {
		t.Errorf("%s: the key of a field is not a constant", path)
		return "X"
	}
	key, err := strconv.Unquote(basic.Value)
	if err != nil {
		t.Error(err)
	}
	return key
}

func TestObjectUnit(t *testing.T) {
	media := F("MAPPING", "luksmediad-synapse-media")
	tests := []struct {
		event  Event
		fields []Field
		want   string
	}{
		{Unlocked, []Field{F("SOURCE", "tpm2"), media}, `systemd-cryptsetup@luksmediad\x2dsynapse\x2dmedia.service`},
		{SourceFailed, []Field{media}, `systemd-cryptsetup@luksmediad\x2dsynapse\x2dmedia.service`},
		{Closed, []Field{media}, `systemd-cryptsetup@luksmediad\x2dsynapse\x2dmedia.service`},
		{Adopted, []Field{media}, `systemd-cryptsetup@luksmediad\x2dsynapse\x2dmedia.service`},
		{Adopted, nil, ""},
		{GateOpened, nil, "docker.service"},
		{GateClosed, []Field{media}, "docker.service"},
		{Mounted, []Field{media}, ""},
		{ServiceStopped, []Field{F("SERVICE", "docker.service")}, "docker.service"},
		{ServiceStarted, []Field{F("SERVICE", "matrix-synapse.service")}, "matrix-synapse.service"},
	}
	for _, test := range tests {
		if got := (Entry{Event: test.event, Fields: test.fields}).variables()["OBJECT_SYSTEMD_UNIT"]; got != test.want {
			t.Errorf("%s: got %q, want %q", test.event.Name(), got, test.want)
		}
	}
}

func TestFieldsCannotForgeOthers(t *testing.T) {
	entry := Entry{Event: Unlocked, Fields: []Field{F("EVENT", "closed"), F("SOURCE", "a\nMESSAGE_ID=b")}}
	variables := entry.variables()
	if variables["LUKSMEDIAD_EVENT"] != "unlocked" || variables["LUKSMEDIAD_SOURCE"] != "a\nMESSAGE_ID=b" || variables["MESSAGE_ID"] != Unlocked.MessageID() {
		t.Errorf("got %q", variables)
	}
}

func TestText(t *testing.T) {
	var out strings.Builder
	entry := Entry{Time: time.Date(2026, 11, 23, 11, 47, 0, 5, time.FixedZone("", 3600)), Event: SourceFailed, Priority: Warning, Fields: []Field{
		F("SOURCE", "tpm2"), F("ERROR", errors.New("cannot unseal: \x1b[2J\nlockout")), F("EMPTY", ""), F("PCRS", []int{7, 14}),
		F("PATH", "/srv/Mädia"), F("BYTES", "\xff"),
	}}
	if err := (Text{&out}).Send(entry); err != nil {
		t.Fatal(err)
	}
	want := `2026-11-23T10:47:00Z WARN   key source failed source=tpm2 error="cannot unseal: \x1b[2J\nlockout" empty="" ` +
		`pcrs="[7 14]" path=/srv/Mädia bytes=�` + "\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestLongValuesAreCut(t *testing.T) {
	if got := F("ERROR", strings.Repeat("ä", maxValue)); len(got.value) > maxValue+len("…") || !strings.HasSuffix(got.value, "ä…") {
		t.Errorf("%d bytes ending in %q", len(got.value), got.value[len(got.value)-8:])
	}
}

// A sink that can be held and made to fail, as journald's socket can.
type gate struct {
	open chan struct{}
	err  error
	got  []Entry
}

func (g *gate) Send(e Entry) error {
	<-g.open
	if g.err != nil {
		return g.err
	}
	g.got = append(g.got, e)
	return nil
}

// fault 72: a sink that hangs costs events, never time.
func TestReportingNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &gate{open: make(chan struct{})}
		logger := New(sink, "")
		logger.Emit(DaemonStarted) // the one that hangs in the sink
		synctest.Wait()
		before := time.Now()
		for range queueLength + 7 {
			logger.Emit(Mounted)
		}
		if time.Since(before) != 0 || logger.Dropped() != 7 {
			t.Errorf("%v, %d dropped", time.Since(before), logger.Dropped())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := logger.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close of a hanging sink: %v", err)
		}
		close(sink.open)
		if err := logger.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if len(sink.got) != 1+1+queueLength || sink.got[1].Event != EventsDropped || sink.got[1].Fields[0].value != "7" {
			t.Errorf("%d entries, second is %v", len(sink.got), sink.got[1])
		}
		logger.Emit(DaemonStopping) // after Close
		if logger.Dropped() != 8 {
			t.Errorf("%d dropped", logger.Dropped())
		}
	})
}

func TestFailingSinkIsCounted(t *testing.T) {
	sink := &gate{open: make(chan struct{}), err: errors.New("no journal")}
	close(sink.open)
	logger := New(sink, "")
	logger.Emit(DaemonStarted)
	logger.Emit(DaemonStopping)
	if err := logger.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if logger.Dropped() != 2 {
		t.Errorf("%d dropped", logger.Dropped())
	}
}

func TestMappingIsAddedToCryptsetupEvents(t *testing.T) {
	sink := &gate{open: make(chan struct{})}
	close(sink.open)
	logger := New(sink, "luksmediad-a")
	logger.Emit(NoKeyFits)
	logger.Emit(Closed, F("MAPPING", "luksmediad-b"))
	logger.EmitAt(Error, ConditionChanged)
	if err := logger.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := [][]Field{{{mapping, "luksmediad-a"}}, {{mapping, "luksmediad-b"}}, nil}
	for i, entry := range sink.got {
		if diff := cmp.Diff(want[i], entry.Fields, cmp.AllowUnexported(Field{})); diff != "" {
			t.Error(diff)
		}
	}
	if sink.got[0].Priority != Error || sink.got[1].Priority != Notice || sink.got[2].Priority != Error {
		t.Error("wrong priorities")
	}
}

// systemd's own compiler takes the catalog and has every event in it.
func TestCatalog(t *testing.T) {
	golden.Compare(t, "testdata/catalog.golden", Catalog())
	root := t.TempDir()
	for _, dir := range []string{"usr/lib/systemd/catalog", "var/lib/systemd/catalog"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd/catalog/luksmediad.catalog"), []byte(Catalog()), 0o644); err != nil {
		t.Fatal(err)
	}
	journalctl := func(args ...string) string {
		out, err := exec.Command("journalctl", append([]string{"--root", root}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := journalctl("--update-catalog"); out != "" {
		t.Errorf("journalctl complains: %s", out)
	}
	listed := journalctl("--list-catalog")
	for event := range eventCount {
		if want := event.MessageID() + " luksmediad: " + title(event.String()); !strings.Contains(listed, want) {
			t.Errorf("catalog lacks %s", want)
		}
	}
}

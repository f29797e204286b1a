package main

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// withoutAdvice are the classes that need none, with the reason.
func withoutAdvice() map[string]string {
	return map[string]string{
		"mount.ErrInvalid":         "the mistake of a caller, which no configuration leads to",
		"boot.ErrPerson":           "told as a state of its own, in which there is somebody to ask",
		"synapse.ErrDockerStopped": "an ErrNoDocker, of which only the daemon makes a difference",
	}
}

// A new class of errors without advice fails here.
func TestEveryClassHasAdvice(t *testing.T) {
	advised := selectors(t, "hints.go")
	exceptions := withoutAdvice()
	for _, dir := range []string{"pkg", "internal/volume", "internal/daemon", "internal/state", "internal/api", "internal/synapse", "internal/command", "internal/boot",
		"internal/transfer", "internal/config"} {
		for _, class := range classes(t, filepath.Join("../..", dir)) {
			if _, excepted := exceptions[class]; excepted == slices.Contains(advised, class) {
				t.Errorf("%s: advice %t, excepted %t", class, slices.Contains(advised, class), excepted)
			}
			delete(exceptions, class)
		}
	}
	for class := range exceptions {
		t.Errorf("%s is excepted and does not exist", class)
	}
}

// classes are the exported sentinels below a folder, as "package.ErrName".
func classes(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, declaration := range file.Decls {
			found = append(found, sentinels(file.Name.Name, declaration)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatalf("no classes in %s", dir)
	}
	return found
}

func sentinels(pkg string, declaration ast.Decl) []string {
	var found []string
	variables, ok := declaration.(*ast.GenDecl)
	if !ok || variables.Tok != token.VAR {
		return nil
	}
	for _, spec := range variables.Specs {
		for _, name := range spec.(*ast.ValueSpec).Names {
			if strings.HasPrefix(name.Name, "Err") {
				found = append(found, pkg+"."+name.Name)
			}
		}
	}
	return found
}

// selectors are all the names of other packages that a file uses, as "package.Name".
func selectors(t *testing.T, path string) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	ast.Inspect(file, func(node ast.Node) bool {
		if selector, ok := node.(*ast.SelectorExpr); ok {
			if pkg, ok := selector.X.(*ast.Ident); ok {
				found = append(found, pkg.Name+"."+selector.Sel.Name)
			}
		}
		return true
	})
	return found
}

// Words are labels of metrics and classes of the API; an error of a class is explained by its own row, not by one above.
func TestHints(t *testing.T) {
	codes := map[int]bool{}
	for _, e := range exitCodes() {
		codes[e.code] = true
	}
	for _, h := range hints() {
		if !regexp.MustCompile(`^[a-z][a-z0-9_]{0,47}$`).MatchString(h.word) {
			t.Errorf("word %q", h.word)
		}
		if !codes[h.exit] || h.exit == exitDone {
			t.Errorf("%s: exit code %d", h.word, h.exit)
		}
		want := api.Explanation{Class: h.word, Next: h.next, ExitCode: h.exit}
		if got := explain(fmt.Errorf("cannot do it: %w", h.class)); got != want {
			t.Errorf("%v: got %+v, want %+v", h.class, got, want)
		}
		if h.exit == exitNoKey && !slices.Contains(keyWords(), h.word) {
			t.Errorf("%s is not among the words of key sources", h.word)
		}
		silent := errors.Is(h.class, context.Canceled) || errors.Is(h.class, volume.ErrConfirmation)
		if (h.next == "") != silent {
			t.Errorf("%s: next is %q", h.word, h.next)
		}
	}
}

// What is typed ahead of a boot is of a word that hints know, and in place of what would be typed then.
func TestAheadAdvice(t *testing.T) {
	for word := range aheadAdvice() {
		if !slices.ContainsFunc(hints(), func(h hint) bool { return h.word == word && h.next == unlockByHand }) {
			t.Errorf("%s is no word whose advice is to unlock", word)
		}
	}
}

// One word has one exit code, whatever class it comes from.
func TestWordsAreUnambiguous(t *testing.T) {
	exits := map[string]int{}
	for _, h := range hints() {
		if other, ok := exits[h.word]; ok && other != h.exit {
			t.Errorf("%s: exit codes %d and %d", h.word, other, h.exit)
		}
		exits[h.word] = h.exit
	}
}

// Errors as they come: wrapped, joined, with causes that are classes too.
func TestExplain(t *testing.T) {
	late := fmt.Errorf("%w: %w", tpm2.ErrTimeout, context.DeadlineExceeded)
	noKey := &unlock.NoKeyError{Container: "/srv/a.luks", Attempts: []unlock.Attempt{
		{Source: "tpm2", Err: late},
		{Source: "keyfile", Err: fmt.Errorf("%w: %w", unlock.ErrKeyFileMissing, fs.ErrNotExist)},
	}}
	tests := []struct {
		err   error
		class string
		exit  int
	}{
		{errors.New("something"), classOther, exitFailed},
		{&volume.StepError{Step: volume.StepUnlock, Err: noKey}, "no_key_fits", exitNoKey},
		{noKey.Attempts[0], "tpm_timeout", exitNoKey},
		{noKey.Attempts[1], "key_missing", exitNoKey},
		{errors.Join(&volume.StepError{Step: volume.StepBind, Err: mount.ErrBusy}, errors.New("and then")), "in_use", exitBusy},
		{&luks2.RefusedError{Field: "segments.0.encryption"}, "header_refused", exitRefused},
		{&luks2.MismatchError{}, "pin_mismatch", exitRefused},
		{fmt.Errorf("%w: %w", state.ErrBusy, context.DeadlineExceeded), "busy", exitBusy},
		{&config.Error{}, "config", exitUsage},
		{startError{&config.Error{}}, "config", exitCannotStart},
		{fmt.Errorf("cannot write: %w", syscall.ENOSPC), "no_space", exitFailed},
		{fmt.Errorf("%w: %w", transfer.ErrStateFull, state.NoSpace(syscall.ENOSPC)), "volume_full", exitFailed},
		{&volume.StepError{Step: volume.StepMount, Err: syscall.EIO}, "io_error", exitFailed},
		{fmt.Errorf("cannot write: %w", syscall.EROFS), "read_only", exitFailed},
		{&health.Failure{Class: health.ReasonNoInodes, Err: errors.New("full")}, "no_inodes", exitFailed},
		{usageError{errors.New("unknown flag")}, classUsage, exitUsage},
		{&api.ProblemError{Class: "pin_mismatch", Next: "x", ExitCode: exitRefused}, "pin_mismatch", exitRefused},
	}
	for _, test := range tests {
		if got := explain(test.err); got.Class != test.class || got.ExitCode != test.exit {
			t.Errorf("%v: got %+v, want %s, %d", test.err, got, test.class, test.exit)
		} else if got.Next == "" && test.class != classOther {
			t.Errorf("%v: nothing says what to type", test.err)
		}
		if reason := health.Reason(test.class); advise(health.Mount, reason) == "" && health.ReasonOf(test.err) == reason {
			t.Errorf("%s in a step: nothing says what to type", reason)
		}
	}
}

// Every condition has its section in the runbook, which knows each reason of a probe that is its own, and those of the daemon. One more
// section is about the daemon itself.
func TestRunbook(t *testing.T) {
	content, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, section := range strings.Split(string(content), "\n## ")[1:] {
		title, text, _ := strings.Cut(section, "\n")
		sections[title] = text
	}
	everywhere := []health.Reason{health.ReasonError}
	for _, code := range health.Codes() {
		text, there := sections[string(code)]
		if !there || len(strings.TrimSpace(text)) < 50 {
			t.Errorf("%s: no section", code)
		}
		for _, reason := range health.Reasons(code) {
			if !slices.Contains(everywhere, reason) && !strings.Contains(text, "`"+string(reason)+"`") {
				t.Errorf("%s: its section does not tell what %s is", code, reason)
			}
		}
		delete(sections, string(code))
	}
	for _, reason := range daemonReasons(t) {
		if !strings.Contains(string(content), "`"+string(reason)+"`") {
			t.Errorf("it does not tell what %s is", reason)
		}
	}
	delete(sections, "daemon")
	for title := range sections {
		t.Errorf("section %s is of no condition", title)
	}
}

// Whatever a condition fails with, the person on call reads what to type.
func TestEveryReasonHasAdvice(t *testing.T) {
	for _, code := range health.Codes() {
		reasons := health.Reasons(code)
		if reasons == nil {
			continue
		}
		for _, reason := range append(reasons, health.ReasonStale) {
			if advise(code, reason) == "" {
				t.Errorf("%s fails with %s and nothing says what to type", code, reason)
			}
		}
	}
	for _, h := range hints() {
		if h.next != "" && advise(health.Container, health.Reason(h.word)) == "" {
			t.Errorf("%s in a step: nothing says what to type", h.word)
		}
	}
	if next := advise(health.Configuration, classConfig); !strings.HasPrefix(next, "luksmediad config check") {
		t.Errorf("a wrong configuration: %s", next)
	}
	for _, reason := range daemonReasons(t) {
		if advise(health.Gate, reason) == "" {
			t.Errorf("the daemon gives %s and nothing says what to type", reason)
		}
	}
}

// cryptsetup opens a file container a second time, on a loop device of its own: both copies of the filesystem would be written.
func TestWhatOpensTheContainerLocksFirst(t *testing.T) {
	var commands []string
	for _, h := range hints() {
		commands = append(commands, h.next)
	}
	for _, page := range []string{"README.md", "docs/runbook.md", "docs/operations.md"} {
		content, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		commands = append(commands, strings.Split(string(content), "\n")...)
	}
	opens, locked := regexp.MustCompile(`cryptsetup open ({container}|/)`), regexp.MustCompile("(^|[ `])luksmediad lock && cryptsetup open ")
	found := 0
	for _, command := range commands {
		if !opens.MatchString(command) {
			continue
		}
		found++
		if !locked.MatchString(command) {
			t.Error(command)
		}
	}
	if found < 4 {
		t.Errorf("only %d found", found)
	}
}

// A probe that was not done in time waits for what it asks, which is not always the disk.
func TestAdviceWhenLate(t *testing.T) {
	for code, want := range map[health.Code]string{
		health.Containers: "systemctl status docker.service", health.Keys: "luksmediad key test", health.Thumbnail: "{synapse_log}",
		health.Write: kernelLog, health.Ciphertext: kernelLog, health.Header: kernelLog, health.Space: kernelLog,
	} {
		if got := advise(code, health.ReasonTimeout); got != want {
			t.Errorf("%s: %s", code, got)
		}
	}
}

// Advice that nothing leads to is a misspelt reason.
func TestNoUnusedAdvice(t *testing.T) {
	known := map[health.Reason]bool{health.ReasonStale: true}
	for _, code := range health.Codes() {
		for _, reason := range health.Reasons(code) {
			known[reason] = true
		}
	}
	for _, row := range probeAdvice() {
		if !known[row.reason] {
			t.Errorf("no probe fails with %s", row.reason)
		}
		delete(known, row.reason)
	}
	if len(known) > 0 {
		t.Errorf("twice or missing: %v", slices.Collect(maps.Keys(known)))
	}
	for _, row := range stateAdvice() {
		if !slices.Contains(daemonReasons(t), row.reason) {
			t.Errorf("the daemon does not give %s", row.reason)
		}
	}
}

// daemonReasons are the constants called reason… or Reason… of the daemon.
func daemonReasons(t *testing.T) []health.Reason {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../internal/daemon/report.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []health.Reason
	ast.Inspect(file, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(strings.ToLower(spec.Names[0].Name), "reason") && len(spec.Values) == 1 {
			if value, ok := spec.Values[0].(*ast.BasicLit); ok {
				reasons = append(reasons, health.Reason(strings.Trim(value.Value, `"`)))
			}
		}
		return true
	})
	if len(reasons) == 0 {
		t.Fatal("none found")
	}
	return reasons
}

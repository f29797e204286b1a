package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"luksmediad/internal/volume"
	"luksmediad/test/golden"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"luksmediad": asOrdinaryUser})
}

// asOrdinaryUser is the program, without root's rights also where the tests have them, on a machine where it was never used: whatever a
// daemon of this one has, ordinary users may not even look at.
func asOrdinaryUser() {
	const nobody = 65534
	if os.Geteuid() == 0 {
		for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)} {
			if err != nil {
				panic(err)
			}
		}
	}
	machine := filepath.Join(os.Getenv("WORK"), "machine")
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, places{
		Paths:  volume.Paths{State: filepath.Join(machine, "state"), Runtime: machine},
		socket: filepath.Join(machine, "control.sock"),
	}))
}

// The commands as they are typed: testdata/script.
func TestScripts(t *testing.T) {
	root, err := os.MkdirTemp("", "luksmediad") // not below t.TempDir(), which nobody else may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	readable := func(dir string) error { return os.Chmod(dir, 0o755) }
	if err := readable(root); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		WorkdirRoot:   root,
		Cmds:          map[string]func(*testscript.TestScript, bool, []string){"exit": exits},
		Setup:         func(env *testscript.Env) error { return readable(env.WorkDir) },
		UpdateScripts: golden.Updating(),
	})
}

// exits is a command of the scripts: "exit CODE PROGRAM ARGUMENT…" runs the program and requires its exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	code := exitDone
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		failed, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = failed.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// session runs the program in this process with files for its streams.
type session struct {
	in, out, err *os.File
}

func newSession(t *testing.T) session {
	t.Helper()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	return session{file("stdin"), file("stdout"), file("stderr")}
}

// written is what has been written to a stream.
func written(t *testing.T, f *os.File) string {
	t.Helper()
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// paths are all commands, each as its words.
func paths(cmd *cobra.Command) [][]string {
	all := [][]string{strings.Fields(cmd.CommandPath())[1:]}
	for _, sub := range cmd.Commands() {
		all = append(all, paths(sub)...)
	}
	return all
}

// The help of every command goes to standard output, without an error.
func TestHelp(t *testing.T) {
	var text strings.Builder
	for _, path := range paths(newRootCommand(&app{})) {
		s := newSession(t)
		if code := run(append(path, "--help"), s.in, s.out, s.err, places{}); code != exitDone || written(t, s.err) != "" {
			t.Errorf("%v: exit code %d, %s", path, code, written(t, s.err))
		}
		help := written(t, s.out)
		text.WriteString("$ luksmediad " + strings.Join(append(path, "--help"), " ") + "\n" + help + "\n")
		other := newSession(t)
		if run(append([]string{"help"}, path...), other.in, other.out, other.err, places{}); written(t, other.out) != help {
			t.Errorf("%v: help and --help differ", path)
		}
		for line := range strings.Lines(help) {
			if len([]rune(line)) > 121 {
				t.Errorf("%v: line of %d characters: %s", path, len([]rune(line)), line)
			}
		}
	}
	golden.Compare(t, "testdata/help.golden", text.String())
}

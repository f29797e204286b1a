package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

// A passphrase loses the one newline that editors and echo put behind it, and nothing else.
func TestPassphrase(t *testing.T) {
	for content, want := range map[string]string{
		"correct horse": "correct horse", "correct horse\n": "correct horse", "two\n\n": "two\n", " a ": " a ", "\r\n": "\r",
	} {
		path := filepath.Join(t.TempDir(), "passphrase")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		stdin, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, flags := range map[string]passphraseFlags{
			"file": {file: path}, "standard input": {file: "-"}, "command": {command: "cat " + path},
		} {
			if _, err := stdin.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			key, err := flags.read(t.Context(), &app{stdin: stdin})
			if err != nil || string(key.Bytes()) != want || !flags.given() {
				t.Errorf("%q from %s: got %q, %v", content, name, key.Bytes(), err)
			}
			key.Wipe()
		}
		stdin.Close()
	}
}

// What becomes a keyslot has to be typed one day, perhaps at the prompt of another program.
func TestPassphraseToEnrol(t *testing.T) {
	longest := strings.Repeat("x", 512)
	for content, want := range map[string]string{
		"correct horse\n": "", "correct horse": "", " größe ": "", longest + "\n": "",
		"correct horse\nuser: matrix\n": "it has 2 lines", "a\r\nb\r\n": "it has 2 lines", "correct horse\n\n": "it has 2 lines",
		"correct horse\r\n": "carriage return", "correct\thorse\n": "tab", "correct\x1b[Dhorse": "control character", "correct\x7f": "control character",
		"correct\x00": "control character", longest + "x": "it has 513 bytes",
	} {
		path := filepath.Join(t.TempDir(), "passphrase")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		create := &createCommand{app: &app{}, passphrase: passphraseFlags{file: path}}
		for name, read := range map[string]func() (*secret.Key, error){
			"create":  func() (*secret.Key, error) { return create.recovery(t.Context()) },
			"key add": func() (*secret.Key, error) { return (&keyAdd{app: &app{}}).readNewPassphrase(t.Context(), path) },
		} {
			key, err := read()
			_, usage := errors.AsType[usageError](err)
			switch {
			case want == "" && (err != nil || string(key.Bytes()) != strings.TrimSuffix(content, "\n")):
				t.Errorf("%s, %q: %v", name, content, err)
			case want != "" && (!usage || key != nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "horse")):
				t.Errorf("%s, %q: %v", name, content, err)
			}
			key.Wipe()
		}
	}
	if key, err := (&createCommand{app: &app{}}).recovery(t.Context()); key != nil || err != nil {
		t.Errorf("none given: %v", err)
	}
}

// The program may ask at the terminal, which takes its being in the process group that the terminal is for.
func TestPassphraseCommandMayAsk(t *testing.T) {
	script := filepath.Join(t.TempDir(), "ask")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncut --delimiter=' ' --fields=5 /proc/$$/stat\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := (&passphraseFlags{command: script}).read(t.Context(), &app{})
	if err != nil || string(key.Bytes()) != strconv.Itoa(syscall.Getpgrp()) {
		t.Errorf("group %q, %v", key.Bytes(), err)
	}
	key.Wipe()
}

func TestNoPassphrase(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	newline := filepath.Join(t.TempDir(), "newline")
	huge := filepath.Join(t.TempDir(), "huge")
	for path, content := range map[string]string{empty: "", newline: "\n", huge: strings.Repeat("x", unlock.MaxKeyFileBytes+1)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		flags passphraseFlags
		want  error
	}{
		{passphraseFlags{file: empty}, secret.ErrEmpty},
		{passphraseFlags{file: newline}, secret.ErrEmpty},
		{passphraseFlags{file: huge}, secret.ErrTooLarge},
		{passphraseFlags{file: empty + ".missing"}, fs.ErrNotExist},
		{passphraseFlags{command: "cat " + newline}, secret.ErrEmpty},
		{passphraseFlags{command: "no-such-program"}, command.ErrNotFound},
	} {
		key, err := test.flags.read(t.Context(), &app{})
		if key != nil || !errors.Is(err, test.want) {
			t.Errorf("%+v: got %v, want %v", test.flags, err, test.want)
		}
	}
	if _, err := (&passphraseFlags{command: "  "}).read(t.Context(), &app{}); explain(err).ExitCode != exitUsage {
		t.Errorf("an empty command: %v", err)
	}
	if key, err := (&passphraseFlags{}).read(t.Context(), &app{}); key != nil || err != nil {
		t.Errorf("no flag: %v, %v", key, err)
	}
}

// The recovery key is printed once, whole, and nothing beside it.
func TestDeliver(t *testing.T) {
	key, err := secret.From([]byte("cbdefghi-jklnrtuv"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	for want, json := range map[string]bool{
		"recovery key: cbdefghi-jklnrtuv\n":                                 false,
		`{"type":"recovery_key","recovery_key":"cbdefghi-jklnrtuv"}` + "\n": true,
	} {
		s := newSession(t)
		c := &createCommand{app: &app{stdout: s.out, stderr: s.err, json: json}}
		if err := c.printRecoveryKey(key); err != nil {
			t.Error(err)
		}
		if got := written(t, s.out); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

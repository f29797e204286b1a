package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// readUnlock tells "nothing said", which means the default, from "no source", which would be a machine that never
// opens its volume by itself.
func (c *Config) readUnlock(v value) {
	const example = "[{tpm2: {}}]"
	v.list(example, c.readSource)
	if list, ok := v.node.(*ast.SequenceNode); ok && len(list.Values) == 0 {
		v.report(v.key, example, "there is no key source")
	}
}

func (c *Config) readSource(v value) {
	before, count := len(v.problems), 0
	var source KeySource
	readers := source.readers()
	for kind, read := range readers {
		readers[kind] = func(v value) { count++; read(v) }
	}
	v.mapping(readers)
	if len(v.problems) == before && count != 1 {
		v.report(v.key, "{tpm2: {}}", "needs exactly one of: %s", strings.Join(SourceKinds(), ", "))
		source = KeySource{}
	}
	c.Unlock = append(c.Unlock, source)
}

func (s *KeySource) readers() fields {
	return fields{
		"tpm2":       func(v value) { s.TPM2 = defaultTPM2(); s.TPM2.read(v) },
		"keyfile":    func(v value) { s.Keyfile = defaultKeyfile(); s.Keyfile.read(v) },
		"credential": func(v value) { s.Credential = defaultCredential(); s.Credential.read(v) },
		"clevis":     func(v value) { s.Clevis = defaultClevis(); s.Clevis.read(v) },
		"command":    func(v value) { s.Command = defaultCommand(); s.Command.read(v) },
		"passphrase": func(v value) { s.Passphrase = defaultPassphrase(); s.Passphrase.read(v) },
	}
}

func (t *TPM2) read(v value) {
	v.mapping(fields{
		"device":    parsed(&t.Device, "auto", parseTPMDevice),
		"bank":      parsed(&t.Bank, "sha256", ParseBank),
		"pin":       parsed(&t.PIN, "ask", parsePIN),
		"signature": parsed(&t.Signature, "auto", parseSignature),
		"wait":      parsed(&t.Wait, "30s", parseWait),
		"reseal":    parsed(&t.Reseal, "false", parseBool),
		"pcrs": func(v value) {
			v.list("[7, 14]", func(v value) {
				pcr := -1
				parsed(&pcr, "7", parsePCR)(v)
				t.addPCR(v, pcr)
			})
		},
	})
}

func (k *Keyfile) read(v value) {
	v.mapping(fields{
		"path": parsed(&k.Path, "/root/.luks-media.key", parsePath),
		"wait": parsed(&k.Wait, "5s", parseWait),
	})
}

func (c *Credential) read(v value) {
	v.mapping(fields{"name": parsed(&c.Name, "luksmediad.key", parseCredential)})
}

func (c *Clevis) read(v value) {
	v.mapping(fields{"timeout": parsed(&c.Timeout, "30s", parseAnswerTimeout)})
}

func (c *Command) read(v value) {
	const example = "[/usr/local/bin/media-key]"
	before := len(v.problems)
	v.mapping(fields{
		"run": func(v value) {
			v.list(example, func(v value) {
				parse := parseArgument
				if len(c.Run) == 0 {
					parse = parsePath
				}
				var argument string
				parsed(&argument, "/usr/local/bin/media-key", parse)(v)
				c.Run = append(c.Run, argument)
			})
		},
		"timeout": parsed(&c.Timeout, "30s", parseAnswerTimeout),
	})
	if len(v.problems) == before && len(c.Run) == 0 {
		v.report(v.key+".run", example, "is missing")
	}
}

func (p *Passphrase) read(v value) {
	v.mapping(fields{"timeout": parsed(&p.Timeout, "60s", parseAnswerTimeout)})
}

// ParseBank reads the name of a bank.
func ParseBank(text string) (Bank, error) {
	if bank := Bank(text); slices.Contains([]Bank{SHA1, SHA256, SHA384, SHA512}, bank) {
		return bank, nil
	}
	return "", fmt.Errorf("%s is none of sha1, sha256, sha384, sha512", quote(text))
}

// parsePIN does not repeat what is no path: it may well be the PIN.
func parsePIN(text string) (string, error) {
	if text == NoPIN || text == AskPIN {
		return text, nil
	}
	if !strings.HasPrefix(text, "/") {
		return "", errors.New("is neither none nor ask nor the path of a file that holds the PIN")
	}
	return parsePath(text)
}

func parseSignature(text string) (string, error) {
	if text == AutoSignature {
		return text, nil
	}
	return parsePath(text)
}

// parseCredential takes what is a valid name for a credential and for a file, and needs no quotes (systemd
// src/shared/creds-util.c, credential_name_valid).
func parseCredential(text string) (string, error) {
	return match(text, `[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,127}`, "is not the name of a credential")
}

func parseArgument(text string) (string, error) {
	if strings.ContainsRune(text, 0) {
		return "", errors.New("has a NUL byte")
	}
	return text, nil
}

// mostPatience is below the time after which the service manager gives up on what waits for the volume.
const mostPatience = 10 * time.Minute

// parseWait takes how long to wait for what is late; 0s is not at all.
func parseWait(text string) (time.Duration, error) { return parsePatience(text, 0) }

// parseAnswerTimeout takes how long something may take that has to happen.
func parseAnswerTimeout(text string) (time.Duration, error) { return parsePatience(text, time.Second) }

func parsePatience(text string, least time.Duration) (time.Duration, error) {
	if text == "0" {
		text = "0s"
	}
	duration, err := parseDuration(text, least, day)
	if err == nil && duration > mostPatience {
		return 0, fmt.Errorf("%s is more than %v", quote(text), mostPatience)
	}
	return duration, err
}

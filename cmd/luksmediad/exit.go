package main

import (
	"fmt"
	"strings"
)

// The exit codes are an interface: documented, never reused.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitDegraded    = 3
	exitNotSetUp    = 10
	exitBusy        = 11
	exitNoKey       = 12
	exitVerify      = 13
	exitGateClosed  = 14
	exitRefused     = 15
	exitCannotStart = 16
	exitInterrupted = 130
)

// exitCode is an exit code and its meaning.
type exitCode struct {
	code    int
	meaning string
}

func exitCodes() []exitCode {
	return []exitCode{
		{exitDone, "done"},
		{exitFailed, "failed"},
		{exitUsage, "the command line or the configuration is wrong"},
		{exitDegraded, "degraded: it works, but a condition does not hold"},
		{exitNotSetUp, "not set up"},
		{exitBusy, "busy: something else works on it or uses it"},
		{exitNoKey, "no key fits"},
		{exitVerify, "verification failed"},
		{exitGateClosed, "gate closed"},
		{exitRefused, "refused, to protect data"},
		{exitCannotStart, "the daemon does not start: its configuration is wrong"},
		{exitInterrupted, "interrupted"},
	}
}

// exitHelp lists the exit codes, at the end of a help text.
func exitHelp() string {
	var text strings.Builder
	text.WriteString("Exit codes:\n")
	for _, e := range exitCodes() {
		fmt.Fprintf(&text, "  %3d  %s\n", e.code, e.meaning)
	}
	return strings.TrimSuffix(text.String(), "\n")
}

// Command luksmediad keeps Synapse's media store on an encrypted volume: one binary, the daemon (run) and the commands.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, onMachine())) }

// run is main with everything it touches handed in; it returns the exit code.
func run(args []string, stdin, stdout, stderr *os.File, places places) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, places: places}
	root := newRootCommand(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.finish(cmd, err)
}

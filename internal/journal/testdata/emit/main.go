// Command emit reports what its arguments say, as the daemon would: with "detect" one event by the detected sink, with
// a number so many events by the native one, waiting for a line on standard input before it closes.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"luksmediad/internal/journal"
)

func main() {
	if os.Args[1] == "detect" {
		logger := journal.New(journal.Detect(), "luksmediad-synapse-media")
		logger.Emit(journal.Unlocked, journal.F("SOURCE", "tpm2"), journal.F("KEYSLOT", 1))
		finish(logger)
		return
	}
	count, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	logger := journal.New(journal.Native{}, "")
	for i := range count {
		logger.Emit(journal.Failed, journal.F("ERROR", "line one\nline two"), journal.F("NUMBER", i))
	}
	fmt.Println(logger.Dropped())
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	logger.Emit(journal.DaemonStopping)
	finish(logger)
}

func finish(logger *journal.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := logger.Close(ctx); err != nil {
		panic(err)
	}
}

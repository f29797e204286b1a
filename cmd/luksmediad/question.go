package main

import (
	"context"
	"fmt"
	"time"

	"luksmediad/internal/agent"
)

// questionPause is the time between two looks for questions of the daemon.
const questionPause = 200 * time.Millisecond

// attend deals with each question about the volume that the daemon asks, until ctx ends.
func (a *app) attend(ctx context.Context, id string, deal func(context.Context, agent.Question)) {
	dealt := map[agent.Question]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(questionPause):
		}
		questions, err := agent.Questions(agent.Folder, id)
		if err != nil {
			return // who may not look does not answer either; other agents may
		}
		for _, question := range questions {
			if !dealt[question] {
				dealt[question] = true
				deal(ctx, question)
			}
		}
	}
}

// answer passes a question on to the person at the terminal, for as long as it stands. Who types nothing refuses it.
func (a *app) answer(ctx context.Context, question agent.Question) {
	standing, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for standing.Err() == nil && question.Waits() {
			time.Sleep(questionPause)
		}
		stop()
	}()
	key, err := a.ask(standing, printable(question.Message)+": ")
	if standing.Err() != nil {
		return
	}
	if err == nil {
		err = question.Answer(key)
		key.Wipe()
	} else {
		err = question.Refuse()
	}
	if err != nil {
		fmt.Fprintf(a.stderr, "luksmediad: %v\n", err)
	}
}

// refuse makes the daemon go on without an answer: somebody is here with another key.
func refuse(_ context.Context, question agent.Question) {
	_ = question.Refuse() // it is answered otherwise, or the daemon goes on by itself
}

// withAgent runs do while a goroutine deals with the daemon's questions.
func (a *app) withAgent(ctx context.Context, id string, deal func(context.Context, agent.Question), do func()) {
	attending, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.attend(attending, id, deal)
	}()
	do()
	stop()
	<-ended
}

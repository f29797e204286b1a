package main

import (
	"strings"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/pkg/health"
)

// explainFor is explain with the names of the configured things in its advice.
func explainFor(c *config.Config, err error) api.Explanation {
	explained := explain(err)
	explained.Next = expand(c, explained.Next)
	return explained
}

// adviceFor is advise with the names of the configured things.
func adviceFor(c *config.Config) func(health.Code, health.Reason) string {
	return func(code health.Code, reason health.Reason) string { return expand(c, advise(code, reason)) }
}

// expand fills the names of the configured things into advice, so that it can be pasted. Without a configuration, and
// where there are several stores, the braces stay for the reader to fill.
func expand(c *config.Config, next string) string {
	if c == nil {
		return next
	}
	names := []string{"{volume}", c.Volume.Name, "{container}", c.Volume.Container, "{root}", c.Volume.Root()}
	if len(c.Stores) == 1 {
		names = append(names, "{store}", c.Stores[0].Path, "{store_name}", c.Stores[0].Name)
	}
	if s := c.Probes.Synapse; s != nil && s.HomeserverConfig != "" {
		names = append(names, "{homeserver}", s.HomeserverConfig)
	}
	for _, source := range c.Unlock {
		if source.Keyfile != nil {
			names = append(names, "{keyfile}", source.Keyfile.Path)
		}
	}
	return strings.NewReplacer(names...).Replace(next)
}

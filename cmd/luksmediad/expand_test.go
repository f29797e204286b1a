package main

import (
	"regexp"
	"testing"

	"luksmediad/internal/config"
)

// Advice can be pasted as it stands: no names are left to fill in once there is a configuration.
func TestAdviceIsFilled(t *testing.T) {
	c := &config.Config{
		Volume: config.Volume{Name: "media", Container: "/var/media.luks"},
		Stores: []config.Store{{Name: "media", Path: "/srv/media_store"}},
		Unlock: []config.KeySource{{Keyfile: &config.Keyfile{Path: "/root/media.key"}}},
	}
	braces := regexp.MustCompile(`\{[a-z]+\}`)
	for _, h := range hints() {
		if next := expand(c, h.next); braces.MatchString(next) {
			t.Errorf("%s: %s", h.word, next)
		}
	}
	if got, want := expand(c, "findmnt {store}"), "findmnt /srv/media_store"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.Stores = append(c.Stores, config.Store{Name: "other", Path: "/srv/other"})
	if got, want := expand(c, "findmnt {store}"), "findmnt {store}"; got != want {
		t.Errorf("several stores: got %q, want %q", got, want)
	}
}

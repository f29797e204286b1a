package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
)

// Only the move of Synapse's own store needs its token, and a Synapse that answers.
func TestMoveTrialCheck(t *testing.T) {
	there := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(there, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	versions := `{"versions":["v1.11"]}`
	for name, test := range map[string]struct {
		token    string
		versions string // empty: nobody listens
		whoami   int
		warns    string
		want     error
	}{
		"well":               {there, versions, http.StatusOK, "", nil},
		"no token":           {there + ".missing", versions, http.StatusOK, "", synapse.ErrUnauthorized},
		"unknown token":      {there, versions, http.StatusUnauthorized, "M_UNKNOWN_TOKEN", nil},
		"whoami is not here": {there, versions, http.StatusNotFound, "", nil},
		"unreachable":        {there, "", http.StatusOK, "", synapse.ErrUnreachable},
		"something else":     {there, "<html>", http.StatusOK, "", synapse.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/versions") {
					_, _ = w.Write([]byte(test.versions))
					return
				}
				w.WriteHeader(test.whoami)
				_, _ = w.Write([]byte(`{"errcode":"M_UNKNOWN_TOKEN","user_id":"@luksmediad:hs.test"}`))
			}))
			defer server.Close()
			if test.versions == "" {
				server.Close()
			}
			trial := newMoveTrial(&config.Config{Probes: config.Probes{Synapse: &config.Synapse{URL: server.URL, TokenFile: test.token, Store: "media"}}})
			warning, err := trial.check(t.Context(), config.Store{Name: "media"})
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) || (warning != "") != (test.warns != "") || !strings.Contains(warning, test.warns) {
				t.Errorf("warning %q, %v", warning, err)
			}
			if warning, err := trial.check(t.Context(), config.Store{Name: "database"}); warning != "" || err != nil {
				t.Errorf("another store: %q, %v", warning, err)
			}
		})
	}
}

// A Synapse that says itself that it does not know the token never will; a proxy before it may, when it has come up.
func TestMoveTrialGivesUp(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	var stat unix.Stat_t
	if err := errors.Join(os.WriteFile(token, []byte("s3cret\n"), 0o600), unix.Stat(dir, &stat)); err != nil {
		t.Fatal(err)
	}
	opened := &volume.Opened{PrivateDir: dir, Mapping: &unlock.Mapping{Device: stat.Dev},
		Stores: []volume.StoreStatus{{Name: "media", Path: dir, State: volume.StoreEncrypted, Mounted: true}}}
	for answer, hopeless := range map[string]bool{`{"errcode":"M_UNKNOWN_TOKEN"}`: true, "<html>": false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(answer))
		}))
		trial := newMoveTrial(&config.Config{Probes: config.Probes{Synapse: &config.Synapse{URL: server.URL, TokenFile: token, Store: "media"}}})
		err := trial.run(t.Context(), config.Store{Name: "media"}, opened)
		if !errors.Is(err, synapse.ErrUnauthorized) || errors.Is(err, volume.ErrUnhealthy) != hopeless || explain(err).Class != "unauthorized" {
			t.Errorf("%s: %v", answer, err)
		}
		server.Close()
	}
}

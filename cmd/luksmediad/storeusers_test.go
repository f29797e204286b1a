package main

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
	"luksmediad/test/dockerd"
)

// newEngine is a Docker with three containers that can write into a folder above the store and others that cannot.
func newEngine(t *testing.T, folder string) *synapse.Docker {
	t.Helper()
	var listed []string
	for name, bind := range map[string]string{
		"synapse":  `"Source":"` + folder + `","RW":true`,
		"worker":   `"Source":"` + folder + `/media_store","RW":true`,
		"linked":   `"Source":"` + folder + `.link","RW":true`,
		"reader":   `"Source":"` + folder + `","RW":false`,
		"exporter": `"Source":"/","RW":true`,
		"beside":   `"Source":"` + folder + `/media_store2","RW":true`,
	} {
		listed = append(listed, `{"Id":"id-`+name+`","Names":["/`+name+`"],"Mounts":[{"Type":"bind","Destination":"/data",`+bind+`}]}`)
	}
	return synapse.NewDocker(dockerd.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer := "[" + strings.Join(listed, ",") + "]"
		if name, ok := strings.CutPrefix(strings.TrimSuffix(r.URL.Path, "/json"), "/containers/"); ok {
			answer = `{"Id":"id-` + strings.TrimPrefix(name, "id-") + `","State":{"Pid":7}}`
		}
		_, _ = w.Write([]byte(answer))
	}))
}

// Whoever can write into the store is named, but not the service that is going to be stopped, nor who has the whole machine.
func TestStoreUsers(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(folder, folder+".link"); err != nil {
		t.Fatal(err)
	}
	store := config.Store{Name: "media", Path: filepath.Join(folder, "media_store")}
	users := storeUsers{newEngine(t, folder)}
	for name, test := range map[string]struct {
		service *config.Service
		runs    bool
		want    []string
	}{
		"no service":              {nil, false, []string{"linked", "synapse", "worker"}},
		"container that runs":     {&config.Service{Docker: "synapse"}, true, []string{"linked", "worker"}},
		"container after its end": {&config.Service{Docker: "synapse"}, false, []string{"linked", "synapse", "worker"}},
		"unit that runs":          {&config.Service{Systemd: "synapse.service"}, true, nil},
		"unit after its end":      {&config.Service{Systemd: "synapse.service"}, false, []string{"linked", "synapse", "worker"}},
	} {
		store.Service = test.service
		found, err := users.named(t.Context(), store, test.runs)
		var names []string
		for _, text := range found {
			names = append(names, strings.Fields(text)[1])
		}
		if slices.Sort(names); err != nil || !slices.Equal(names, test.want) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	absent := storeUsers{synapse.NewDocker(filepath.Join(folder, "docker.sock"))}
	if found, err := absent.named(t.Context(), store, false); found != nil || err != nil {
		t.Errorf("without Docker: %v, %v", found, err)
	}
}

// What a new store would be hidden from is named, with what to type; a Docker or a unit that is not there is not.
func TestPathUsed(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	users := storeUsers{newEngine(t, folder)}
	err := users.requireNone(t.Context(), config.Store{Name: "media", Path: filepath.Join(folder, "media_store")})
	if !errors.Is(err, errPathUsed) || !strings.Contains(err.Error(), "container synapse has "+folder+" at /data") {
		t.Fatal(err)
	}
	why := explainFor(&config.Config{}, errors.Join(errors.New("and then"), err))
	names := strings.Fields(strings.TrimSuffix(strings.TrimPrefix(why.Next, "docker stop "), "; luksmediad create"))
	if slices.Sort(names); !slices.Equal(names, []string{"synapse", "worker"}) || why.ExitCode != exitBusy {
		t.Errorf("%+v", why)
	}
	free := config.Store{Name: "films", Path: filepath.Join(filepath.Dir(folder), "films"), Service: &config.Service{Systemd: "luksmediad-none.service"}}
	if err := users.requireNone(t.Context(), free); err != nil {
		t.Error(err)
	}
	absent := storeUsers{synapse.NewDocker(filepath.Join(folder, "docker.sock")).LeaveStopped()}
	if err := absent.requireNone(t.Context(), config.Store{Name: "media", Path: filepath.Join(folder, "media_store")}); err != nil {
		t.Error(err)
	}
}

package main

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
)

// engine is Docker's side of a socket, with three containers that can write into a folder above the store and others that cannot.
func engine(t *testing.T, folder string) *synapse.Docker {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine") // not t.TempDir: its name may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
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
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := "[" + strings.Join(listed, ",") + "]"
		if name, ok := strings.CutPrefix(strings.TrimSuffix(r.URL.Path, "/json"), "/containers/"); ok {
			answer = `{"Id":"id-` + strings.TrimPrefix(name, "id-") + `","State":{"Pid":7}}`
		}
		_, _ = w.Write([]byte(answer))
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	return synapse.NewDocker(socket)
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
	users := storeUsers{engine(t, folder)}
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

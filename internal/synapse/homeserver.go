package synapse

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
)

// maxHomeserver is more than any homeserver.yaml has, in bytes.
const maxHomeserver = 4 << 20

// MediaPlaces are the places besides its media_store where Synapse keeps media, as its homeserver.yaml says (synapse/config/repository.py).
type MediaPlaces struct {
	// StoreOff: enable_local_media_storage is false, so that media_store is not one of them.
	StoreOff bool
	// Copies name the storage providers, and the directory of backup_media_store_path.
	Copies []string
}

// ReadMediaPlaces reads a homeserver.yaml.
func ReadMediaPlaces(path string) (MediaPlaces, error) {
	places, err := readMediaPlaces(path)
	if err != nil {
		return MediaPlaces{}, fmt.Errorf("cannot read Synapse's configuration: %w", err)
	}
	return places, nil
}

func readMediaPlaces(path string) (MediaPlaces, error) {
	file, err := os.Open(path)
	if err != nil {
		return MediaPlaces{}, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxHomeserver))
	if err != nil {
		return MediaPlaces{}, err
	}
	var homeserver struct {
		Local     *bool  `yaml:"enable_local_media_storage"`
		Backup    string `yaml:"backup_media_store_path"`
		Providers []struct {
			Module string `yaml:"module"`
			Config struct {
				Directory string `yaml:"directory"`
				Bucket    string `yaml:"bucket"`
			} `yaml:"config"`
		} `yaml:"media_storage_providers"`
	}
	if err := yaml.Unmarshal(content, &homeserver); err != nil {
		return MediaPlaces{}, errors.New(path + " is not what Synapse reads") // what it quotes may be a secret
	}
	places := MediaPlaces{StoreOff: homeserver.Local != nil && !*homeserver.Local}
	for _, p := range homeserver.Providers {
		places.Copies = append(places.Copies, strings.TrimSpace(p.Module+" "+p.Config.Directory+p.Config.Bucket))
	}
	if homeserver.Backup != "" {
		places.Copies = append(places.Copies, homeserver.Backup)
	}
	return places, nil
}

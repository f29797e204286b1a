// Package config reads /etc/luksmediad/config.yaml.
//
// The file is read strictly: an unknown key, a second value for a key, or a value out of bounds is an error, and all
// errors are reported at once. Every scalar is taken as the text that stands in the file, so a name may look like a
// number. What Load returns is complete, with all defaults filled in, and is not changed afterwards.
package config

import (
	"slices"
	"time"
)

const (
	// DefaultPath is where the configuration is looked for.
	DefaultPath = "/etc/luksmediad/config.yaml"
	// StateDir holds what luksmediad remembers and, by default, the container.
	StateDir = "/var/lib/luksmediad"
	// VolumesDir holds the private mountpoints of the volumes.
	VolumesDir = StateDir + "/volumes"
)

// Config is the effective configuration.
type Config struct {
	Volume Volume      `yaml:"volume"`
	Stores []Store     `yaml:"stores"`
	Unlock []KeySource `yaml:"unlock"` // tried in this order
	Probes Probes      `yaml:"probes"`
	HTTP   HTTP        `yaml:"http"`
}

// Volume is the encrypted volume.
type Volume struct {
	Name       string     `yaml:"name"`
	Container  string     `yaml:"container"` // absolute path of the container file or block device
	Size       Size       `yaml:"size"`      // of a new container file; a block device has its own
	Filesystem Filesystem `yaml:"filesystem"`
	AutoGrow   *AutoGrow  `yaml:"auto_grow,omitempty"` // nil: it grows only by hand
}

// AutoGrow says when the daemon makes the container file larger by itself.
type AutoGrow struct {
	Below Percent `yaml:"below"` // of the volume's space that is left
	Step  Size    `yaml:"step"`
	Max   Size    `yaml:"max"` // of the container
}

// Mapping is the name of the open container below /dev/mapper.
func (v Volume) Mapping() string { return "luksmediad-" + v.Name }

// Root is the private mountpoint of the volume.
func (v Volume) Root() string { return VolumesDir + "/" + v.Name }

// Filesystem is the kind of filesystem in the volume.
type Filesystem string

// The filesystems that a volume can have.
const (
	Ext4 Filesystem = "ext4"
	XFS  Filesystem = "xfs"
)

// Store is a directory of the volume and the path at which a service expects it.
type Store struct {
	Name    string   `yaml:"name"`
	Path    string   `yaml:"path"` // absolute
	Owner   Owner    `yaml:"owner"`
	Service *Service `yaml:"service,omitempty"` // nil: nobody is said to use this store
}

// Service is what uses a store; its unit must require the gate, as docker.service does by the installed drop-in. Exactly
// one field is set.
type Service struct {
	Docker  string   `yaml:"docker,omitempty"`  // container name
	Compose *Compose `yaml:"compose,omitempty"` // service of a Compose project
	Systemd string   `yaml:"systemd,omitempty"` // unit name with its suffix
}

// Compose is a service of a Compose project, which is known by its name or by its file.
type Compose struct {
	Project string `yaml:"project,omitempty"`
	File    string `yaml:"file,omitempty"` // as docker compose was given it, absolute
	Service string `yaml:"service"`
}

func (s *Service) String() string {
	switch {
	case s == nil:
		return ""
	case s.Docker != "":
		return "container " + s.Docker
	case s.Compose != nil:
		return "service " + s.Compose.Service + " of Compose project " + s.Compose.Project + s.Compose.File
	}
	return s.Systemd
}

// Unit is the systemd unit behind the gate that uses the store: Docker's own for a container, which Docker may start by
// itself. It is empty where the store has no service.
func (s Store) Unit() string {
	switch {
	case s.Service == nil:
		return ""
	case s.Service.Docker != "", s.Service.Compose != nil:
		return "docker.service"
	}
	return s.Service.Systemd
}

// Units are the systemd units behind the gate that use the stores.
func (c *Config) Units() []string {
	units := []string{}
	for _, store := range c.Stores {
		if unit := store.Unit(); unit != "" && !slices.Contains(units, unit) {
			units = append(units, unit)
		}
	}
	return units
}

// Probes says how often and how health is probed.
type Probes struct {
	Interval time.Duration `yaml:"interval"`
	Timeout  time.Duration `yaml:"timeout"` // of one run; at most the interval
	Keys     KeysProbe     `yaml:"keys"`
	Space    SpaceProbe    `yaml:"space"`
	Synapse  *Synapse      `yaml:"synapse,omitempty"`
}

// KeysProbe says how often keys are tried, and for how long that counts.
type KeysProbe struct {
	Interval     time.Duration `yaml:"interval"`
	ProvenWithin time.Duration `yaml:"proven_within"`
}

// SpaceProbe says when there is little room left.
type SpaceProbe struct {
	WarnAt     Percent       `yaml:"warn_at"`     // of space or inodes in use
	FullWithin time.Duration `yaml:"full_within"` // at the rate of the last week
}

// Synapse is the homeserver that is asked for a thumbnail.
type Synapse struct {
	URL       string `yaml:"url"`        // scheme and authority only
	TokenFile string `yaml:"token_file"` // holds the access token of an application service
	// AdminTokenFile holds the access token of a server admin, with which replaced canaries are deleted; empty: they are not.
	AdminTokenFile string `yaml:"admin_token_file,omitempty"`

	Store string `yaml:"store"` // name of the store that is its media_store
	// HomeserverConfig is its homeserver.yaml, which is looked into for other places where it keeps media; empty: it is not looked into.
	HomeserverConfig string `yaml:"homeserver_config,omitempty"`
}

// HTTP is the read-only listener.
type HTTP struct {
	Listen    string `yaml:"listen"`               // IP address and port; a loopback address unless there is a WebConfig
	WebConfig string `yaml:"web_config,omitempty"` // TLS and authentication, a file of Prometheus' exporter-toolkit
}

// withDefaults is the configuration without stores and before anything is derived from what the file says.
func withDefaults() Config {
	return Config{
		Volume: Volume{Name: "synapse-media", Size: 50 * GiB, Filesystem: Ext4},
		Probes: Probes{
			Interval: time.Minute,
			Keys:     KeysProbe{Interval: 24 * time.Hour, ProvenWithin: 720 * time.Hour},
			Space:    SpaceProbe{WarnAt: 90, FullWithin: 72 * time.Hour},
		},
		HTTP: HTTP{Listen: "127.0.0.1:10165"},
	}
}

// SynapseStore is the name of the store that is Synapse's: the one of its probe, or the first.
func (c *Config) SynapseStore() string {
	if c.Probes.Synapse != nil {
		return c.Probes.Synapse.Store
	}
	return c.Stores[0].Name
}

func defaultAutoGrow() *AutoGrow { return &AutoGrow{Below: 15, Step: 10 * GiB} }

func defaultStore() Store { return Store{Name: "media", Owner: Owner{UID: 991, GID: 991}} }

func defaultSynapse() *Synapse {
	return &Synapse{URL: "http://127.0.0.1:8008", TokenFile: "/etc/luksmediad/synapse.token"}
}

// derive fills the defaults that depend on other values.
func (c *Config) derive() {
	if c.Volume.Container == "" {
		c.Volume.Container = StateDir + "/" + c.Volume.Name + ".luks"
	}
	if len(c.Unlock) == 0 {
		c.Unlock = []KeySource{{TPM2: defaultTPM2()}}
	}
	if c.Probes.Timeout == 0 {
		c.Probes.Timeout = min(15*time.Second, c.Probes.Interval)
	}
	if s := c.Probes.Synapse; s != nil && s.Store == "" && len(c.Stores) > 0 {
		s.Store = c.Stores[0].Name
	}
}

package config

import (
	"fmt"
	"net/netip"
)

// validate checks what concerns more than one value. Values that are wrong by themselves are reported already and are
// empty here.
func (c *Config) validate(d *document) {
	c.checkStores(d)
	c.checkContainer(d)
	c.checkAutoGrow(d)
	c.checkSources(d)
	c.checkProbes(d)
	c.checkHTTP(d)
	if c.Volume.Filesystem == XFS && c.Volume.Size < minXFS {
		d.report("volume.size", "1GiB", "%q is less than xfs needs, %v", c.Volume.Size, minXFS)
	}
}

// minXFS leaves 300 MiB, the least that mkfs.xfs makes since xfsprogs 5.19, after the LUKS2 header.
const minXFS = 320 * MiB

func (c *Config) checkStores(d *document) {
	if len(c.Stores) == 0 && !d.reported("stores") {
		d.report("stores", "[{path: "+examplePath+"}]", "there is no store")
	}
	for i, store := range c.Stores {
		key := fmt.Sprintf("stores[%d]", i)
		if store.Path == "" {
			d.requirePath(key)
			continue
		}
		if inside(store.Path, StateDir) || inside(StateDir, store.Path) {
			d.report(key+".path", examplePath, "%q and luksmediad's own directory %s overlap", store.Path, StateDir)
		}
		for j, other := range c.Stores[:i] {
			c.checkPair(d, key, store, fmt.Sprintf("stores[%d]", j), other)
		}
	}
}

// requirePath reports a missing path, unless there was one and it is reported already.
func (d *document) requirePath(key string) {
	if d.places[key+".path"] == nil {
		d.report(key+".path", examplePath, "is missing")
	}
}

func (c *Config) checkPair(d *document, key string, store Store, otherKey string, other Store) {
	if store.Name == other.Name {
		d.report(key+".name", store.Name+"-2", "%q is the name of %s too", store.Name, otherKey)
	}
	switch {
	case other.Path == "":
	case store.Path == other.Path:
		d.report(key+".path", "", "%q is the path of %s too", store.Path, otherKey)
	case inside(store.Path, other.Path):
		d.report(key+".path", "", "%q lies inside the path of %s, %q", store.Path, otherKey, other.Path)
	case inside(other.Path, store.Path):
		d.report(key+".path", "", "%q contains the path of %s, %q", store.Path, otherKey, other.Path)
	}
}

// checkContainer refuses a container that would be hidden by its own volume.
func (c *Config) checkContainer(d *document) {
	const key, example = "volume.container", StateDir + "/synapse-media.luks"
	if inside(c.Volume.Container, VolumesDir) {
		d.report(key, example, "%q lies in %s, where volumes are mounted", c.Volume.Container, VolumesDir)
	}
	if d.places[key] != nil { // else the store overlaps with StateDir, which says it better
		c.checkOutsideStores(d, key, c.Volume.Container, example)
	}
}

// checkAutoGrow refuses what would never grow.
func (c *Config) checkAutoGrow(d *document) {
	auto := c.Volume.AutoGrow
	if auto == nil || d.reported("volume.auto_grow") {
		return
	}
	if inside(c.Volume.Container, "/dev") {
		d.report("volume.auto_grow", "", "the container %q is a block device, which is enlarged by what made it", c.Volume.Container)
	}
	if auto.Max != 0 && auto.Max <= c.Volume.Size {
		d.report("volume.auto_grow.max", (2 * c.Volume.Size).String(), "%q is not more than the size of the volume, %v", auto.Max, c.Volume.Size)
	}
}

// checkOutsideStores refuses a path that is only readable once the volume is open.
func (c *Config) checkOutsideStores(d *document, key, path, example string) {
	for i, store := range c.Stores {
		if store.Path != "" && inside(path, store.Path) {
			d.report(key, example, "%q lies inside the path of stores[%d], %q", path, i, store.Path)
		}
	}
}

func (c *Config) checkSources(d *document) {
	first := map[string]int{}
	for i, source := range c.Unlock {
		key := fmt.Sprintf("unlock[%d]", i)
		same := source.identity()
		if j, ok := first[same]; ok && same != "" {
			d.report(key, "", "is the same source as unlock[%d]", j)
		} else {
			first[same] = i
		}
		c.checkSource(d, key, source)
	}
}

// checkReseal refuses a second TPM beside one whose keys are sealed anew: the keys of the one look to the other as if it had been
// replaced.
func (c *Config) checkReseal(d *document, key, device string) {
	for i, source := range c.Unlock {
		if source.TPM2 != nil && source.TPM2.Device != device {
			d.report(key, "false", "unlock[%d] is another TPM", i)
		}
	}
}

// identity is what makes two sources the same one; two PCR policies of one TPM are not.
func (s KeySource) identity() string {
	switch {
	case s.TPM2 != nil:
		return fmt.Sprint("tpm2 ", s.TPM2.Device, s.TPM2.Bank, s.TPM2.PCRs, s.TPM2.PIN)
	case s.Keyfile != nil:
		return "keyfile " + s.Keyfile.Path
	case s.Credential != nil:
		return "credential " + s.Credential.Name
	case s.Command != nil && len(s.Command.Run) == 0: // reported already
		return ""
	case s.Command != nil:
		return fmt.Sprintf("command %q", s.Command.Run)
	}
	return s.Kind()
}

// checkSource refuses files that are only readable once the volume is open.
func (c *Config) checkSource(d *document, key string, source KeySource) {
	const example = "/root/.luks-media.key"
	switch {
	case source.Keyfile != nil:
		c.checkKeyfile(d, key+".keyfile.path", source.Keyfile.Path, example)
	case source.Command != nil && len(source.Command.Run) > 0:
		c.checkKeyfile(d, key+".command.run[0]", source.Command.Run[0], "/usr/local/bin/media-key")
	case source.TPM2 != nil:
		c.checkKeyfile(d, key+".tpm2.pin", source.TPM2.PINFile(), "/root/.luks-media.pin")
		if source.TPM2.Signature != AutoSignature {
			c.checkKeyfile(d, key+".tpm2.signature", source.TPM2.Signature, "auto")
		}
		if source.TPM2.Reseal {
			c.checkReseal(d, key+".tpm2.reseal", source.TPM2.Device)
		}
	}
}

func (c *Config) checkKeyfile(d *document, key, path, example string) {
	if path == "" {
		return
	}
	if path == c.Volume.Container {
		d.report(key, example, "%q is the container", path)
	}
	if inside(path, VolumesDir) {
		d.report(key, example, "%q lies in %s, where volumes are mounted", path, VolumesDir)
	}
	c.checkOutsideStores(d, key, path, example)
}

func (c *Config) checkProbes(d *document) {
	if c.Probes.Timeout > c.Probes.Interval {
		d.report("probes.timeout", c.Probes.Interval.String(), "%q is more than the interval, %v", c.Probes.Timeout, c.Probes.Interval)
	}
	if k := c.Probes.Keys; k.ProvenWithin < k.Interval {
		d.report("probes.keys.proven_within", k.Interval.String(), "%q is less than the interval, %v", k.ProvenWithin, k.Interval)
	}
	if c.Probes.Synapse == nil || len(c.Stores) == 0 {
		return
	}
	for _, store := range c.Stores {
		if store.Name == c.Probes.Synapse.Store {
			return
		}
	}
	d.report("probes.synapse.store", c.Stores[0].Name, "%q is not the name of a store", c.Probes.Synapse.Store)
}

const (
	exampleListen    = "127.0.0.1:10165"
	exampleWebConfig = "/etc/luksmediad/web.yaml"
)

// checkHTTP keeps a listener without authentication on this machine.
func (c *Config) checkHTTP(d *document) {
	c.checkOutsideStores(d, "http.web_config", c.HTTP.WebConfig, exampleWebConfig)
	address, err := netip.ParseAddrPort(c.HTTP.Listen)
	if err == nil && !address.Addr().IsLoopback() && c.HTTP.WebConfig == "" && !d.reported("http.web_config") {
		d.report("http.listen", exampleListen, "%q is not a loopback address, and there is no http.web_config to authenticate who asks", c.HTTP.Listen)
	}
}

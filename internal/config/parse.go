package config

import (
	"errors"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Parse reads a configuration; name stands for the file in errors. The error is an *Error.
func Parse(name string, content []byte) (*Config, error) {
	d := &document{file: name, places: map[string]*token.Position{}}
	c := withDefaults()
	if body, ok := d.tree(content); ok {
		c.read(value{d, "", body})
		c.derive()
		c.validate(d)
	}
	if len(d.problems) > 0 {
		sortProblems(d.problems)
		return nil, &Error{Problems: d.problems}
	}
	return &c, nil
}

// tree returns the only document of the file, nil if it is empty. After a syntax error there is nothing more to say.
func (d *document) tree(content []byte) (ast.Node, bool) {
	file, err := parser.ParseBytes(content, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.reportSyntax(err)
		return nil, false
	}
	if len(file.Docs) > 1 {
		d.report("", "", "%d YAML documents stand where one is expected", len(file.Docs))
		return nil, false
	}
	if len(file.Docs) == 0 {
		return nil, true
	}
	return file.Docs[0].Body, true
}

func (d *document) reportSyntax(err error) {
	p := Problem{File: d.file, Reason: "not YAML: " + err.Error()}
	var located yaml.Error
	if errors.As(err, &located) {
		p.Reason = "not YAML: " + located.GetMessage()
		if at := located.GetToken(); at != nil {
			p.Line, p.Column = at.Position.Line, at.Position.Column
		}
	}
	d.problems = append(d.problems, p)
}

func (c *Config) read(v value) {
	v.mapping(fields{
		"volume": c.Volume.read,
		"stores": func(v value) { v.list("[{path: "+examplePath+"}]", c.readStore) },
		"unlock": c.readUnlock,
		"probes": c.Probes.read,
		"http":   c.HTTP.read,
	})
}

func (http *HTTP) read(v value) {
	v.mapping(fields{
		"listen":     parsed(&http.Listen, exampleListen, parseListen),
		"web_config": parsed(&http.WebConfig, exampleWebConfig, parsePath),
	})
}

func (volume *Volume) read(v value) {
	v.mapping(fields{
		"name":       parsed(&volume.Name, "synapse-media", parseName),
		"container":  parsed(&volume.Container, StateDir+"/synapse-media.luks", parseContainer),
		"size":       parsed(&volume.Size, "50GiB", parseVolumeSize),
		"filesystem": parsed(&volume.Filesystem, "ext4", parseFilesystem),
		"auto_grow": func(v value) {
			volume.AutoGrow = defaultAutoGrow()
			volume.AutoGrow.read(v)
		},
	})
}

func (auto *AutoGrow) read(v value) {
	before := len(v.problems)
	v.mapping(fields{
		"below": parsed(&auto.Below, "15%", parsePercent),
		"step":  parsed(&auto.Step, "10GiB", parseGrowStep),
		"max":   parsed(&auto.Max, "200GiB", parseVolumeSize),
	})
	if len(v.problems) == before && auto.Max == 0 {
		v.report(v.key, "{below: 15%, step: 10GiB, max: 200GiB}", "needs max, the size at which it ends")
	}
}

func (c *Config) readStore(v value) {
	store := defaultStore()
	v.mapping(fields{
		"name":  parsed(&store.Name, "media", parseName),
		"path":  parsed(&store.Path, examplePath, parsePath),
		"owner": parsed(&store.Owner, "991:991", ParseOwner),
		"service": func(v value) {
			store.Service = &Service{}
			store.Service.read(v)
		},
	})
	c.Stores = append(c.Stores, store)
}

func (service *Service) read(v value) {
	before := len(v.problems)
	v.mapping(fields{
		"docker":  parsed(&service.Docker, "synapse", parseDocker),
		"systemd": parsed(&service.Systemd, "matrix-synapse.service", parseUnit),
		"compose": func(v value) {
			service.Compose = &Compose{}
			service.Compose.read(v)
		},
	})
	set := 0
	for _, is := range []bool{service.Docker != "", service.Systemd != "", service.Compose != nil} {
		if is {
			set++
		}
	}
	if len(v.problems) == before && set != 1 {
		v.report(v.key, "{docker: synapse}", "needs exactly one of: docker, compose, systemd")
	}
}

func (compose *Compose) read(v value) {
	before := len(v.problems)
	v.mapping(fields{
		"project": parsed(&compose.Project, "matrix", parseDocker),
		"file":    parsed(&compose.File, "/home/ubuntu/app/docker-compose.yml", parsePath),
		"service": parsed(&compose.Service, "synapse", parseDocker),
	})
	if len(v.problems) == before && (compose.Service == "" || (compose.Project == "") == (compose.File == "")) {
		v.report(v.key, "{project: matrix, service: synapse}", "needs a service, and exactly one of: project, file")
	}
}

func (probes *Probes) read(v value) {
	v.mapping(fields{
		"interval": parsed(&probes.Interval, "60s", parseInterval),
		"timeout":  parsed(&probes.Timeout, "10s", parseTimeout),
		"keys": func(v value) {
			v.mapping(fields{
				"interval":      parsed(&probes.Keys.Interval, "24h", parseKeysInterval),
				"proven_within": parsed(&probes.Keys.ProvenWithin, "720h", parseLongTime),
			})
		},
		"space": func(v value) {
			v.mapping(fields{
				"warn_at":     parsed(&probes.Space.WarnAt, "90%", parsePercent),
				"full_within": parsed(&probes.Space.FullWithin, "72h", parseLongTime),
			})
		},
		"synapse": func(v value) {
			probes.Synapse = defaultSynapse()
			probes.Synapse.read(v)
		},
	})
}

func (synapse *Synapse) read(v value) {
	v.mapping(fields{
		"url":        parsed(&synapse.URL, "http://127.0.0.1:8008", parseURL),
		"token_file": parsed(&synapse.TokenFile, "/etc/luksmediad/synapse.token", parsePath),
		"store":      parsed(&synapse.Store, "media", parseName),

		"admin_token_file":  parsed(&synapse.AdminTokenFile, "/etc/luksmediad/synapse-admin.token", parsePath),
		"homeserver_config": parsed(&synapse.HomeserverConfig, "/home/ubuntu/app/synapse_data/homeserver.yaml", parsePath),
	})
}

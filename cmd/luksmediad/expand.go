package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/pkg/health"
)

// explainFor is explain with the names of the configured things in its advice, and of the file that the error is about.
func explainFor(c *config.Config, err error) api.Explanation {
	return fill(c, err, explain(err))
}

// explainAhead is explainFor for a failure that is met while the volume may well be open.
func explainAhead(c *config.Config, err error) api.Explanation {
	explained := explain(err)
	explained.Next = ahead(explained)
	if _, about := errors.AsType[fileError](err); !about && explained.Next == lookAtFile {
		explained.Next = "luksmediad key list"
	}
	return fill(c, err, explained)
}

// fileError is an error about one file.
type fileError interface {
	error
	File() string
}

func fill(c *config.Config, err error, explained api.Explanation) api.Explanation {
	if about, ok := errors.AsType[fileError](err); ok {
		if errors.Is(err, fs.ErrNotExist) && explained.Class == "not_found" {
			explained.Next = lookAtFile
		}
		explained.Next = strings.ReplaceAll(explained.Next, "{file}", about.File())
	} else if explained.Class == "not_found" {
		explained.Next = cmp.Or(makeFolder(c), explained.Next)
	}
	if used, ok := errors.AsType[*usedPathError](err); ok {
		explained.Next = strings.ReplaceAll(explained.Next, stopUser, used.stop)
	}
	explained.Next = expand(c, explained.Next)
	return explained
}

// makeFolder is the advice if the folder of the container or of a store is not there, which nothing makes unasked; else empty.
func makeFolder(c *config.Config) string {
	if c == nil {
		return ""
	}
	paths := []string{c.Volume.Container}
	for _, store := range c.Stores {
		paths = append(paths, store.Path)
	}
	for _, path := range paths {
		if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			return "findmnt --target " + filepath.Dir(path) + "; mount what belongs there, or: mkdir -p " + filepath.Dir(path)
		}
	}
	return ""
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
	names := []string{"{volume}", c.Volume.Name, "{container}", c.Volume.Container, "{root}", c.Volume.Root(), "{units}", strings.Join(c.Units(), " ")}
	names = append(names, "{fsck}", map[config.Filesystem]string{config.Ext4: "e2fsck -f", config.XFS: "xfs_repair"}[c.Volume.Filesystem])
	if len(c.Stores) == 1 {
		names = append(names, "{store}", c.Stores[0].Path, "{store_name}", c.Stores[0].Name, "{owner}", c.Stores[0].Owner.String())
		names = append(names, lookAt(c.Stores[0]).names("service")...)
	} else {
		names = append(names, "{service_log}", logsOf(c.Stores))
	}
	for _, store := range c.Stores {
		if store.Name == c.SynapseStore() {
			names = append(names, lookAtSynapse(store, c.Probes.Synapse).names("synapse")...)
		}
	}
	if s := c.Probes.Synapse; s != nil {
		names = append(names, "{synapse_url}", s.URL, "{token}", s.TokenFile, "{admin_token}", s.AdminTokenFile)
		if s.HomeserverConfig != "" {
			names = append(names, "{homeserver}", s.HomeserverConfig)
		}
	}
	for _, source := range c.Unlock {
		if source.Keyfile != nil {
			names = append(names, "{keyfile}", source.Keyfile.Path, "{file}", source.Keyfile.Path)
		}
	}
	if strings.HasPrefix(c.Volume.Container, "/dev/") {
		next = growBy().ReplaceAllString(next, "enlarge {container} by what made it, such as lvextend, and luksmediad grow")
	}
	return strings.NewReplacer(names...).Replace(next)
}

// asTyped has in advice the configuration that is in use, the copy of its container's header, and for root no sudo, which need not be there.
func (a *app) asTyped(next string) string {
	return asTyped(a.withHeaderCopy(next), a.configPath, os.Geteuid() == 0)
}

// withHeaderCopy names the copy of the header that is kept; where none is, the reader has to look for one.
func (a *app) withHeaderCopy(next string) string {
	if a.config == nil || !strings.Contains(next, headerCopy) {
		return next
	}
	path := a.places.volumeOf(a.config).HeaderCopy()
	if path == "" {
		return next
	}
	return strings.NewReplacer(findHeaderCopy, "", headerCopy, path).Replace(next)
}

// adviceFor is adviceFor as the daemon gives it.
func (a *app) adviceFor(c *config.Config) func(health.Code, health.Reason) string {
	advise := adviceFor(c)
	return func(code health.Code, reason health.Reason) string { return a.asTyped(advise(code, reason)) }
}

func asTyped(next, path string, root bool) string {
	if root {
		next = strings.NewReplacer(retryAsRoot, kernelLog, "sudoedit ", "editor ").Replace(next) // the kernel tells what has been denied to root
	}
	if path == "" || path == config.DefaultPath {
		return next
	}
	next = strings.ReplaceAll(next, config.DefaultPath, path)
	return ownCommand().ReplaceAllString(next, "${1}luksmediad --config "+strings.ReplaceAll(path, "$", "$$")+" ${2}")
}

// ownCommand is where advice has a command of luksmediad, not a unit of that name.
var ownCommand = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(^|[;&:] |sudo |, and |then |the |type )luksmediad ([a-z…])`)
})

// growBy is what makes a file larger. A block device is taken as it is.
var growBy = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`luksmediad grow --by \w+( --dry-run)?`) })

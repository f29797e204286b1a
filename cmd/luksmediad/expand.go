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
	explained.Store = storeInError(err, explained.Class)
	explained.Next = expandFor(c, explained.Store, explained.Next)
	return explained
}

// storeError is an error about one store.
type storeError interface {
	error
	Store() string
}

// storeInError is the store that an error is about by that part of it which is of the class: of several errors each may be about another.
func storeInError(err error, class api.Class) string {
	if about, ok := err.(storeError); ok && explain(err).Class == class { //nolint:errorlint // each part of the tree is looked at
		return about.Store()
	}
	switch wrapped := err.(type) { //nolint:errorlint // as above
	case interface{ Unwrap() error }:
		return storeInError(wrapped.Unwrap(), class)
	case interface{ Unwrap() []error }:
		for _, part := range wrapped.Unwrap() {
			if name := storeInError(part, class); name != "" {
				return name
			}
		}
	}
	return ""
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
func adviceFor(c *config.Config) func(health.Code, health.Reason, string) string {
	return func(code health.Code, reason health.Reason, about string) string {
		return expandFor(c, about, advise(code, reason))
	}
}

// expand is expandFor about no store in particular.
func expand(c *config.Config, next string) string { return expandFor(c, "", next) }

// expandFor fills the names of the configured things into advice, so that it can be pasted. Without a configuration, and
// where it is not known which of several stores it is about, the braces stay for the reader to fill.
func expandFor(c *config.Config, about, next string) string {
	if c == nil {
		return next
	}
	names := []string{"{volume}", c.Volume.Name, "{container}", c.Volume.Container, "{root}", c.Volume.Root(), "{units}", strings.Join(c.Units(), " ")}
	names = append(names, "{fsck}", map[config.Filesystem]string{config.Ext4: "e2fsck -f", config.XFS: "xfs_repair"}[c.Volume.Filesystem])
	for _, store := range c.Stores {
		if store.Name == about || len(c.Stores) == 1 {
			names = append(names, "{store}", store.Path, "{store_name}", store.Name, "{owner}", store.Owner.String())
			names = append(names, lookAt(store).names("service")...)
		}
	}
	names = append(names, "{stores}", pathsOf(c.Stores), "{service_log}", logsOf(c.Stores)) // the first of a place counts
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
func (a *app) adviceFor(c *config.Config) func(health.Code, health.Reason, string) string {
	advise := adviceFor(c)
	return func(code health.Code, reason health.Reason, about string) string {
		return a.asTyped(advise(code, reason, about))
	}
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

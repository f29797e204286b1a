# Everything is in one of these commands; each installs what it needs.
.DEFAULT_GOAL := build

VERSION  ?= 0.1.0
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
version  := github.com/prometheus/common/version
LDFLAGS  := -s -w -X $(version).Version=$(VERSION) -X $(version).Revision=$(REVISION)

# Units, hooks and alerts name it, and journald reads catalogs nowhere else: only DESTDIR moves what is installed.
override prefix := /usr
units  := $(DESTDIR)$(prefix)/lib/systemd/system
pages  := $(DESTDIR)$(prefix)/share/doc/luksmediad

export GOFLAGS := -mod=readonly -buildvcs=false

.PHONY: build install install-pages test lint generate demo bench clean

build:
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o build/luksmediad ./cmd/luksmediad

install: build install-pages
	install -D -m 0755 build/luksmediad $(DESTDIR)$(prefix)/bin/luksmediad
	install -D -m 0644 -t $(units) deploy/systemd/luksmediad.service deploy/systemd/luksmediad-gate.service deploy/systemd/luksmediad.socket
	install -D -m 0644 -t $(units)/docker.service.d deploy/systemd/docker.service.d/luksmediad.conf
	install -D -m 0644 deploy/systemd/luksmediad.tmpfiles.conf $(DESTDIR)$(prefix)/lib/tmpfiles.d/luksmediad.conf
	install -D -m 0644 deploy/systemd/luksmediad.sysusers.conf $(DESTDIR)$(prefix)/lib/sysusers.d/luksmediad.conf
	install -D -m 0644 -t $(DESTDIR)$(prefix)/lib/systemd/catalog deploy/systemd/luksmediad.catalog

# All in one folder, where their links lead too.
install-pages:
	install -D -m 0644 -t $(pages) README.md docs/operations.md docs/runbook.md docs/exit-codes.md docs/keys.md docs/interop.md \
		docs/threat-model.md api/openapi.yaml deploy/apt/99luksmediad-will-boot \
		deploy/prometheus/prometheus.yml deploy/prometheus/luksmediad.rules.yml deploy/grafana/luksmediad.json
	sed -i 's,](\(\.\./\|docs/\|api/\),](,g' $(pages)/*.md

# Everything, the linter too.
test:
	test/run

lint:
	test/lint/run

generate:
	go generate ./...

demo:
	test/demo/demo

bench:
	test/bench/run

clean:
	rm -rf build

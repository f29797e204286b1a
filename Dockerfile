# syntax=docker/dockerfile:1

# An image of the program and the programs it runs. What it is good for: building without Go on the machine
# (docker build --target build), and the commands that need no volume, such as
#
#   docker run --rm --volume ./config.yaml:/etc/luksmediad/config.yaml:ro luksmediad config check
#
# where the file must be root's, as on the host.
#
# What it is not good for: the daemon. What is mounted in the mount namespace of a container is not there for Docker and
# Synapse, so every command that opens the volume refuses a private one; and Docker, which would have to start the
# container, waits for the volume. Install the program and its units on the host instead: make install.

FROM golang:1.26-trixie AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=0.1.0
ARG REVISION=unknown
RUN make build VERSION="$VERSION" REVISION="$REVISION"

FROM debian:trixie-slim
# What the program runs: cryptsetup, mkfs.ext4 and e2fsck, mkfs.xfs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cryptsetup-bin e2fsprogs xfsprogs \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/build/luksmediad /usr/bin/luksmediad
COPY LICENSE /usr/share/doc/luksmediad/LICENSE

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="luksmediad" \
    org.opencontainers.image.description="Keeps the media of a Synapse server on an encrypted volume" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"

ENTRYPOINT ["/usr/bin/luksmediad"]
CMD ["--help"]

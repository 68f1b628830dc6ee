# syntax=docker/dockerfile:1
# The operator's image: a static binary, the certificates of public authorities, and nothing else.
#
#   docker build -t moneygo-operator .
#
# A binary that is there already takes the place of the stage "compile": a folder that holds out/moneygo-operator and
# out/ca-certificates.crt (`cargo xtask release` writes one: target/release-artefacts), given as a named build context. No other
# image is pulled then:
#
#   docker build --build-context compile=FOLDER -t moneygo-operator .

ARG RUST_VERSION=1.95

# Compiles on the builder's own platform, for the target's: emulation would take an hour.
FROM --platform=$BUILDPLATFORM docker.io/library/rust:${RUST_VERSION}-bookworm AS compile
ARG TARGETARCH
# `otlp`: with traces.
ARG FEATURES=
WORKDIR /build
RUN set -eu; \
    host=$(dpkg --print-architecture); \
    arch=${TARGETARCH:-$host}; \
    case "$arch" in \
        amd64) target=x86_64-unknown-linux-gnu; tools=x86_64-linux-gnu; package=gcc-x86-64-linux-gnu ;; \
        arm64) target=aarch64-unknown-linux-gnu; tools=aarch64-linux-gnu; package=gcc-aarch64-linux-gnu; page=16 ;; \
        *) echo "no build for $arch: amd64 and arm64 only" >&2; exit 1 ;; \
    esac; \
    rustup target add "$target"; \
    apt-get update -qq; \
    apt-get install -y -qq --no-install-recommends ca-certificates; \
    if [ "$arch" != "$host" ]; then \
        apt-get install -y -qq --no-install-recommends "$package" "libc6-dev-$arch-cross"; \
    fi; \
    printf 'export %s\n' \
        "CARGO_BUILD_TARGET=$target" \
        "CARGO_TARGET_$(echo "$target" | tr a-z- A-Z_)_LINKER=$tools-gcc" \
        "CC_$(echo "$target" | tr - _)=$tools-gcc" \
        "JEMALLOC_SYS_WITH_MALLOC_CONF=narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0" \
        "JEMALLOC_SYS_WITH_LG_PAGE=${page:-12}" \
        "RUSTFLAGS='-C target-feature=+crt-static --remap-path-prefix=$CARGO_HOME=/cargo'" \
        > environment

# Puts the list of dependencies into the binary, for whoever scans the image. The version of xtask/src/tools.rs.
RUN cargo install --locked --version 0.7.7 cargo-auditable

# The dependencies: a layer of their own, which a change of the sources leaves as it is. Cargo wants a file for each
# target that a manifest names.
COPY Cargo.toml Cargo.lock ./
COPY kubectl-moneygo/Cargo.toml kubectl-moneygo/
COPY tests/bench/Cargo.toml tests/bench/
COPY tests/consumer/Cargo.toml tests/consumer/
COPY tests/controlplane/Cargo.toml tests/controlplane/
COPY tests/fake-moneygo/Cargo.toml tests/fake-moneygo/
COPY tests/faults/Cargo.toml tests/faults/
COPY tests/model/Cargo.toml tests/model/
COPY tests/simulation/Cargo.toml tests/simulation/
COPY xtask/Cargo.toml xtask/
RUN set -eu; \
    for member in . kubectl-moneygo tests/* xtask; do \
        mkdir -p "$member/src"; \
        touch "$member/src/lib.rs"; \
        echo 'fn main() {}' >"$member/src/main.rs"; \
    done; \
    mkdir src/bin; \
    cp src/main.rs src/bin/crdgen.rs; \
    . ./environment; \
    cargo auditable build --release --locked --features "$FEATURES" --bin moneygo-operator

COPY src src
# The files keep the times of the checkout, which may be older than what was compiled a layer ago.
RUN set -eu; \
    . ./environment; \
    touch src/lib.rs src/main.rs; \
    cargo auditable build --release --locked --features "$FEATURES" --bin moneygo-operator; \
    mkdir /out; \
    cp "target/$CARGO_BUILD_TARGET/release/moneygo-operator" /etc/ssl/certs/ca-certificates.crt /out/

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="moneygo-operator" \
      org.opencontainers.image.description="Keeps Money-Go access tokens fresh in Kubernetes Secrets" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="https://github.com/moneygo-operator/moneygo-operator" \
      org.opencontainers.image.url="https://github.com/moneygo-operator/moneygo-operator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=compile /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=compile --chmod=0755 /out/moneygo-operator /moneygo-operator
# A number, so that runAsNonRoot can be checked. Nothing belongs to it: any other number does, too (OpenShift gives one).
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/moneygo-operator"]

# The sidecar as a static program and the root certificates of public CAs; nothing else.
#
#   podman build --build-arg SSM_SIDECAR_COMMIT="$(git rev-parse HEAD)" -t ssm-sidecar .
#
# Without network, from vendored crates:
#
#   cargo vendor --locked >>.cargo/config.toml
#   podman build --network none -t ssm-sidecar .

# Tag for the reader, digest for the builder: change both together.
ARG RUST=docker.io/library/rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082

FROM ${RUST} AS build
WORKDIR /src
COPY . .
# Shown by `/metrics`.
ARG SSM_SIDECAR_COMMIT=unknown
# Named, so that the flag is for the program alone and not for what the compiler loads (macros).
RUN set -eu; \
    target=$(rustc --print host-tuple); \
    RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked \
        --package ssm-sidecar --bin ssm-sidecar --target "$target"; \
    install -D -t /image "target/$target/release/ssm-sidecar"; \
    install -D -m 644 -t /image/etc/ssl/certs /etc/ssl/certs/ca-certificates.crt

FROM scratch
COPY --from=build /image/ /
# A number, so that `runAsNonRoot` can be checked; it owns nothing.
USER 65532:65532
ENTRYPOINT ["/ssm-sidecar"]

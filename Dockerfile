# The program in an image of its own, run by nobody in particular:
#
#   docker build -t borealis .
#   docker run --rm -v backup:/backup -v keys:/keys borealis init
#
# Beside a PostgreSQL in a container, `protect` reads the data directory from the same volume, under the path that
# the server says, and so as the same user: 999 in the official image (docker run --user).

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p borealis-cli

FROM debian:bookworm-slim
# What the program trusts when it speaks TLS to a store.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 999 -g 999 -m 0700 /backup /keys
COPY --from=build /src/target/release/borealis /usr/bin/borealis
USER 999:999
ENV BOREALIS_REPOSITORY=/backup/repository BOREALIS_KEY_FILE=/keys/borealis.key
VOLUME ["/backup", "/keys"]
ENTRYPOINT ["/usr/bin/borealis"]
CMD ["--help"]

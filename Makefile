# The commands of this project. Each installs what it needs; see scripts/setup.

.PHONY: build demo test lint acceptance bench package clean

build:
	cargo build --release --locked -p borealis-cli

# The main job on real data, in under three minutes after the build.
demo: setup-demo build
	scripts/demo

# Everything that must hold, in at most 25 minutes from nothing on 2 cores.
test: setup-test lint
	scripts/test

lint: setup-test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/check-layers
	scripts/check-docs
	scripts/check-deny

# What takes longer: many seeds, long chaos, the package installed.
acceptance: setup-acceptance
	scripts/acceptance

# The measurements of docs/benchmarks.md.
bench: setup-bench build
	scripts/bench

# A Debian package in target/package.
package: setup-package
	scripts/package

.PHONY: setup-demo setup-test setup-acceptance setup-bench setup-package
setup-demo setup-test setup-acceptance setup-bench setup-package: setup-%:
	scripts/setup $*

clean:
	cargo clean

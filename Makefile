# fcvm. "make help" lists the targets.

PREFIX  ?= /usr/local
DESTDIR ?=
# Where tests keep kernel, guest root and images between runs.
FCVM_TEST_DATA ?= $(CURDIR)/build/test-data
export FCVM_TEST_DATA

GO = scripts/with-go go
# The commit goes into fcvm, where git gives it. It stays out of fc-agent, so
# that the initramfs is made again only when the agent's code has changed.
VCS := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
BUILD = CGO_ENABLED=0 $(GO) build -trimpath

.DEFAULT_GOAL := build
.PHONY: demo build test unit matrix fuzz e2e lab bench lab-bench stress lint fmt man install uninstall clean help

demo: ## install what is missing, set up, and run a container in a VM
	@scripts/demo

build: ## build bin/fcvm and bin/fc-agent
	@scripts/deps build
	$(BUILD) -buildvcs=$(VCS) -o bin/fcvm ./cmd/fcvm
	$(BUILD) -buildvcs=false -o bin/fc-agent ./cmd/fc-agent

test: ## install what the tests need, and run them all
	@scripts/test all

unit: ## run the unit tests, with the race detector
	@scripts/test unit

matrix: ## compare the disks of images with what umoci and buildah unpack
	@scripts/test matrix

fuzz: ## run each fuzz target for a minute, or FUZZTIME
	@scripts/test fuzz

e2e: ## run the end-to-end tests on QEMU; RUN=REGEXP for some of them
	@scripts/test e2e

lab: ## run the end-to-end tests on Firecracker, in an emulated KVM host where this one cannot
	@scripts/test lab

bench: ## measure networks beside a bare tap, images beside umoci, first output beside QEMU by hand, exec beside podman exec, clones beside the VMM alone
	@scripts/test bench

lab-bench: ## measure on Firecracker, in an emulated KVM host where this one cannot
	@scripts/test lab-bench

stress: ## start and stop a hundred VMs, kill each process of a VM fifty times, clone large guests
	@scripts/test stress

lint: ## check formatting, vet both architectures, run the linters
	@scripts/lint

fmt: ## format the code
	scripts/tool gofumpt -w cmd internal test

man: build ## write the manual pages into build/man
	bin/fcvm man build/man

install: ## install programs, manual pages and completions below PREFIX (/usr/local)
	@test -x bin/fcvm && test -x bin/fc-agent || { echo 'install: nothing is built: run make build first' >&2; exit 1; }
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/libexec/fcvm' '$(DESTDIR)$(PREFIX)/share/man/man1' \
		'$(DESTDIR)$(PREFIX)/share/bash-completion/completions' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions' \
		'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	install -m 755 bin/fcvm '$(DESTDIR)$(PREFIX)/bin/fcvm'
	install -m 755 bin/fc-agent '$(DESTDIR)$(PREFIX)/libexec/fcvm/fc-agent'
	bin/fcvm man '$(DESTDIR)$(PREFIX)/share/man/man1'
	bin/fcvm completion bash >'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/fcvm'
	bin/fcvm completion zsh >'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_fcvm'
	bin/fcvm completion fish >'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/fcvm.fish'

uninstall: ## remove what install has installed
	rm -rf '$(DESTDIR)$(PREFIX)/libexec/fcvm'
	rm -f '$(DESTDIR)$(PREFIX)/bin/fcvm' '$(DESTDIR)$(PREFIX)'/share/man/man1/fcvm.1 \
		'$(DESTDIR)$(PREFIX)'/share/man/man1/fcvm-*.1 \
		'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/fcvm' \
		'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_fcvm' \
		'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/fcvm.fish'

clean: ## remove what was built here; data directories elsewhere are left alone
	rm -rf bin build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

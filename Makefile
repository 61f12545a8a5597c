# make demo   a first walk: writes walk.mp4 and walk.png; the same by a generator without priors in generated/
# make test   lint, types, tests (installs Debian's chromium for the tests of the page if run by root)
# make docs   docs/environment.md from the environments' docstrings, and the site of all pages in site/
# make wheel  dist/*.whl, weights included
# Needs Python 3.11 or newer (choose one with PYTHON=...) and a package registry; everything goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint kernels browser docs wheel clean

demo: $(VENV)/demo.stamp
	$(RUN) examples/walk.py
	$(RUN) examples/walk.py --model street-generator --out generated

# the page is tested in a real browser: Debian's, put in place by root where it is missing; others are told how
browser:
	@command -v chromium >/dev/null || [ -n "$(CHROMIUM)" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
	  || echo "no chromium: the tests of the page will be skipped (apt-get install chromium, or CHROMIUM=/path/to/it)"

# two things at a time wherever there are two; the kernels are compiled once, not by every worker of the tests; a worker that
# crashed is not replaced: pytest-xdist may wait for the new one for ever
test:
	@$(MAKE) --no-print-directory -j2 $(VENV)/dev.stamp browser
	@$(MAKE) --no-print-directory -j2 lint kernels
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m mypy

kernels: $(VENV)/dev.stamp
	$(RUN) -c "import gymnasium, yume_gym; gymnasium.make('YumeStreet-v0').reset(seed=0)"

docs: $(VENV)/docs.stamp
	$(RUN) docs/environment.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "the site is in site/: open site/index.html"

wheel: $(VENV)/dev.stamp
	$(RUN) -m build --wheel

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# uv takes a fraction of pip's time; where it fails, pip is asked
define install
	$(RUN) -m pip install --quiet --disable-pip-version-check uv && UV_FIND_LINKS="$$PIP_FIND_LINKS" \
	  $(RUN) -m uv pip install --quiet --python $(RUN) --editable '$(1)' \
	  || $(RUN) -m pip install --quiet --editable '$(1)'
endef

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV); torch is large, this takes a few minutes"
	$(call install,.)
	touch $@

# the development install contains the demo's
$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV); torch is large, this takes a few minutes"
	$(call install,.[dev])
	touch $@ $(VENV)/demo.stamp

# the site's generator is no part of the development install: tests read the pages without it
$(VENV)/docs.stamp: pyproject.toml | $(VENV)/bin/python
	$(call install,.[docs])
	touch $@ $(VENV)/demo.stamp

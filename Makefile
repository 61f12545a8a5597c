# make demo   a first walk: writes walk.mp4 and walk.png
# make test   lint, types, tests (installs Debian's chromium for the tests of the page if run by root)
# make docs   docs/environment.md from the environments' docstrings, and the site of all pages in site/
# make wheel  dist/*.whl, weights included
# Needs Python 3.11 or newer (choose one with PYTHON=...) and a package registry; everything goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test browser docs wheel clean

demo: $(VENV)/demo.stamp
	$(RUN) examples/walk.py

# the page is tested in a real browser: Debian's, put in place by root where it is missing; others are told how
browser:
	@command -v chromium >/dev/null || [ -n "$(CHROMIUM)" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
	  || echo "no chromium: the tests of the page will be skipped (apt-get install chromium, or CHROMIUM=/path/to/it)"

test: $(VENV)/dev.stamp browser
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n 2 --dist loadfile

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
	$(RUN) -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV); torch is large, this takes a few minutes"
	$(RUN) -m pip install --quiet --editable .
	touch $@

# the development install contains the demo's
$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV); torch is large, this takes a few minutes"
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp

# the site's generator is no part of the development install: tests read the pages without it
$(VENV)/docs.stamp: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/demo.stamp

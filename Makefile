PYTHON ?= python3

.PHONY: demo test tables

# The light core alone, as a user installs it, and its main job.
demo: .venv-light/stamp
	.venv-light/bin/python examples/see_and_say.py examples/cat.png demo/answer.wav

test: .venv/stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2

tables: .venv/stamp
	.venv/bin/python -m vitalk.report

.venv/stamp: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[train,eval,bench,serve,data,dev]'
	touch $@

.venv-light/stamp: pyproject.toml $(shell find src results -type f -not -name '*.pyc')
	test -x .venv-light/bin/python || $(PYTHON) -m venv .venv-light
	.venv-light/bin/python -m pip install --quiet .
	touch $@

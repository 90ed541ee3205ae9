# Every target builds .venv itself when it is missing or older than what defines it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
OUT ?=

.PHONY: help demo test test-slow smoke gallery soak lint types clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	@echo "installing covshift and what it needs into $(VENV): a few minutes, once"
	# torch first and alone: pinned to the release in constraints.txt, so that no other package draws in another build.
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)  ## train four 50-layer nets on digits, record them, write a report
	$(BIN)/python -m covshift demo $(if $(OUT),--out $(OUT))

test: $(STAMP)  ## tests and doctests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow
	$(BIN)/python tests/mutations.py

smoke: $(STAMP)  ## every analysis of the paper, for seconds: OUT=DIR keeps the recordings
	$(BIN)/python analyses/smoke.py $(if $(OUT),--out $(OUT))

gallery: $(STAMP)  ## train small nets and draw every figure of them into docs/gallery
	$(BIN)/python docs/gallery/build.py $(if $(OUT),--out $(OUT))

soak: $(STAMP)  ## half an hour of recorded training: does memory, or anything else, grow?
	$(BIN)/python analyses/soak.py --minutes 30 $(if $(OUT),--json $(OUT))

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy --strict covshift

clean:  ## remove the environment and caches, never recordings
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find covshift tests analyses -name __pycache__ -type d -prune -exec rm -rf {} +

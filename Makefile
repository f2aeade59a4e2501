# make repro   the whole graph on real images: environment, downloads, `dvc repro`, the report
# make test    the environment, then every check
PYTHON ?= python3
EXTRAS ?= cpu,demo,s3,dev
VENV   := .venv
BIN    := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test check plots bench clean

repro: $(VENV)/installed
	dvc repro
	@echo "The report: $(CURDIR)/results/report.html"

test: $(VENV)/installed
	@$(MAKE) --no-print-directory check

check:
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	pytest -n 2 --dist loadfile --no-loadscope-reorder

plots: $(VENV)/installed
	python -m askance.pipeline.plots .dvc/tmp/plots.html
	dvc plots show --html-template .dvc/tmp/plots.html -o results/plots

bench: $(VENV)/installed
	python -m benchmarks

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	git clean -qfdX data stores neighbours models results .dvc/cache .dvc/tmp

# pip's find-links setting, if any, is handed to uv, which does not read it.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { echo "missing: Python 3.11 to 3.13 (PYTHON=... names another than $(PYTHON))"; exit 1; }
	@for tool in git npm; do command -v $$tool >/dev/null || { echo "missing: $$tool"; exit 1; }; done
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "missing: Python's venv module"; exit 1; }
	@if command -v uv >/dev/null; then \
	    echo "installing with uv"; UV_FIND_LINKS="$$PIP_FIND_LINKS" uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
	    echo "installing with pip: some minutes"; $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	@touch $@

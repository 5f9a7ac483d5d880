# make          what CI runs: formatting, lint, types, import floors and all tests
# make quick    tests of single parts only
.PHONY: test quick format bench clean

VENV := .venv/bin

test: .venv
	$(VENV)/pytest

quick: .venv
	$(VENV)/pytest tests/unit tests/property

format: .venv
	$(VENV)/ruff format . && $(VENV)/ruff check --fix .

bench: .venv
	for claim in benchmarks/*.py; do echo "== $$claim"; $(VENV)/python $$claim || exit 1; done

.venv: pyproject.toml constraints.txt
	python3 -m venv .venv && $(VENV)/pip install -c constraints.txt -e '.[dev]' && touch .venv

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

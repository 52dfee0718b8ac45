"""The mutants of `nox -s mutants` fit the code, so that they are not found stale when somebody needs them."""

from __future__ import annotations

import pytest

from mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant: Mutant) -> None:
    assert (ROOT / "src" / mutant.file).read_text("utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new
    paths = mutant.tests.split(" -k ")[0].split()
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_mutant_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)

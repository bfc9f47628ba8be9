"""The faults of `tests/mutants.py` can be put in, and are caught."""

import pytest

from tests.mutants import MUTANTS, ROOT, catch, check_unpatched, copy_to


def test_every_patch_applies_and_names_a_test():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        compile(mutant.patched(ROOT), mutant.file, "exec")
        file, _, name = mutant.test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutants")
    copy_to(folder)
    check_unpatched(folder, MUTANTS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_is_caught(copied, mutant):
    assert catch(copied, mutant).startswith(("FAILED", "ERROR"))

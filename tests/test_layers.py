"""Imports between folders flow one way, stages are named in their folder, files stay small."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "show1_jax"
MAX_FILE, MAX_FUNCTION = 450, 80
MAX_STAGE_NAMES = 6


def sources():
    return {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def room(module):
    """The folder, or the module, right below the package."""
    return module.split(".")[1]


def imports():
    """By room, those that it imports when it is imported itself."""
    found = {}
    for path, text in sources().items():
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if len(parts) == 2 and parts[1] == "__init__":
            continue  # the public API, which leads to everything
        own = found.setdefault(parts[1], set())
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ImportFrom) or not node.module.startswith("show1_jax"):
                continue
            whole = node.module == "show1_jax"
            modules = [f"show1_jax.{n.name}" for n in node.names] if whole else [node.module]
            own |= {room(module) for module in modules} - {parts[1]}
    return found


def test_no_folder_is_imported_by_what_it_imports():
    """A folder that can be taken last, again and again, until none is left."""
    left = imports()
    while left:
        free = [name for name, others in left.items() if not others & left.keys()]
        assert free, f"these import each other: {left}"
        for name in free:
            del left[name]


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("models", "diffusion"),
        ("diffusion", "models"),
        ("stages", "checkpoints"),
        ("stages", "training"),
        ("training", "engine"),
        ("engine", "cli"),
        ("parallel", "models"),
    ],
)
def test_folders_that_know_nothing_of_each_other(lower, upper):
    assert upper not in imports()[lower]


def test_stages_are_known_by_name_to_themselves_alone():
    names = "keyframes|interpolation|first_frame|super_resolution|translation"
    found = [
        f"{path.name}: {line.strip()}"
        for path, text in sources().items()
        if "stages" not in path.parts
        for line in text.splitlines()
        if re.search(rf"[\"']({names})[\"']|config\.({names})\b", line)
    ]
    assert len(found) <= MAX_STAGE_NAMES, found


def test_files_and_functions_can_be_read_in_one_go():
    for path, text in sources().items():
        assert text.count("\n") <= MAX_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION, (path.name, node.name)

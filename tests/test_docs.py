"""Documentation: commands use flags and config keys that exist, links lead to files that exist.

Each program is asked for its `--help`, with JAX kept from being imported, which would take
seconds. If a program needs JAX even for that, its flags are read from its source.
"""

import ast
import functools
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONSOLE = {
    "show1-sample": ("sample.py",),
    "show1-train": ("train.py",),
    "show1-convert": ("-m", "show1_jax.convert"),
    "show1-app": ("-m", "show1_jax.app"),
}
OTHERS = ("venv", "pytest", "pip", "ruff", "mypy")  # `python -m` of programs that are not ours
HELP = """
import runpy, sys
sys.modules["jax"] = None  # importing it fails
kind, name = sys.argv[1:3]
sys.argv[:] = [name, "--help"]
runpy.run_path(name, run_name="__main__") if kind == "file" else runpy._run_module_as_main(name)
"""


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        yield found[1], found[2]


def prose(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.M | re.S)


def commands(text: str) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each program that a page runs, such as `("-m", "show1_jax.convert")`, and its arguments."""
    lines = [line for kind, block in blocks(text) if kind in ("sh", "bash", "") for line in
             block.replace("\\\n", " ").splitlines()]  # fmt: skip
    inline = re.findall(r"`((?:python|show1-)[^`]*)`", prose(text))
    for line in [*lines, *(code.replace("\n", " ") for code in inline)]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # results that are shown, with an apostrophe
            continue
        parts: list[list[str]] = [[]]
        for word in words:
            parts.append([]) if word in ("&&", ";", "|", "||") else parts[-1].append(word)
        for first, *rest in filter(None, map(_without_environment, parts)):
            name = Path(first).name
            script = re.search(r"\b(train|sample)\.sh$", rest[0]) if rest else None
            if name == "bash" and script:  # of examples/pods
                yield (f"{script[1]}.py",), rest[1:]
            elif name.startswith("show1-"):
                yield CONSOLE.get(name, (name,)), rest
            elif name in ("python", "python3") and rest[:1] == ["-m"] and rest[1] not in OTHERS:
                yield ("-m", rest[1]), rest[2:]
            elif name in ("python", "python3") and rest and rest[0].endswith(".py"):
                yield (rest[0],), rest[1:]


def _without_environment(words: list[str]) -> list[str]:
    """A command without `exec` and `NAME=VALUE` before it."""
    return list(itertools.dropwhile(lambda word: re.fullmatch(r"exec|\w+=.*", word), words))


def source(program: tuple[str, ...]) -> Path:
    """The file of a program."""
    if program[0] != "-m":
        return ROOT / program[0]
    path = ROOT.joinpath(*program[1].split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def flags(program: tuple[str, ...]) -> frozenset[str]:
    """The flags of a program, without dashes."""
    kind = "module" if program[0] == "-m" else "file"
    shown = _run([sys.executable, "-c", HELP, kind, program[-1]])
    if shown.returncode:  # it needs JAX
        found = frozenset(_defined(ast.parse(source(program).read_text())))
        if found:
            return found
        shown = _run([sys.executable, *program, "--help"])  # it has them from elsewhere
        assert shown.returncode == 0, shown.stderr
    return frozenset(re.findall(r"(?<![\w-])--(?:\[no\])?([\w-]+)", shown.stdout + shown.stderr))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _defined(tree: ast.AST) -> Iterator[str]:
    """The flags that code defines, by itself or by functions of ours named `define_…`."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name == "add_argument" or name.startswith("DEFINE") or name == "define_path":
            texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            yield from (str(text).lstrip("-") for text in texts[:2] if " " not in str(text))
        elif name.startswith("define_"):
            yield from _defined_by(name)


@functools.cache
def _defined_by(name: str) -> frozenset[str]:
    for path in (ROOT / "show1_jax").rglob("*.py"):
        if f"def {name}(" not in (text := path.read_text()):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return frozenset(_defined(node))
    return frozenset()


def config(arguments: list[str]):
    """The config that a command names."""
    path = "configs/tiny.py"
    for word, following in itertools.pairwise([*arguments, ""]):
        if word.startswith("--config="):
            path = word.partition("=")[2]
        elif word == "--config":
            path = following
    path, _, argument = path.partition(":")
    return runpy.run_path(str(ROOT / path))["get_config"](argument)


def faults(text: str) -> list[str]:
    """What is wrong with the commands of a page."""
    found = []
    for program, arguments in commands(text):
        shown = " ".join(program)
        if program[0].startswith("show1-") or not source(program).is_file():
            found.append(f"there is no program {shown}")
            continue
        for word in arguments:
            if not re.match("--[a-z]", word):
                continue
            flag = word[2:].partition("=")[0]
            name, _, key = flag.partition(".")
            if not {name, name.removeprefix("no")} & flags(program):
                found.append(f"{shown} has no flag --{name}")
            elif key and not _has(config(arguments), key):
                found.append(f"{shown}: the config has no key {key}")
    return found


def _has(settings, key: str) -> bool:
    for part in key.split("."):
        if part not in settings:
            return False
        settings = settings[part]
    return True


def anchors(page: Path) -> set[str]:
    """What links can name within a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_have_the_flags_that_a_page_gives_them(page):
    assert faults(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match("https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_a_page_is_python(page):
    for kind, block in blocks(page.read_text()):
        if kind == "python":
            ast.parse(block)


def test_the_readme_is_short_and_begins_with_a_small_picture():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    picture = re.fullmatch(r"!\[.*\]\((.*)\)", lines[2])
    assert picture
    assert (ROOT / picture[1]).stat().st_size < 400_000


def test_every_page_is_linked_from_the_readme():
    text = README.read_text()
    assert [page.name for page in PAGES[1:] if f"{page.relative_to(ROOT)})" not in text] == []


def test_ci_installs_and_tests_as_the_readme_says():
    lines = README.read_text().splitlines()
    (command,) = (line for line in lines if line.endswith(".venv/bin/python -m pytest"))
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.findall(r'"\.\[([\w-]+)\]"', "".join(page.read_text() for page in PAGES))
    assert set(wanted) <= set(extras["optional-dependencies"])


def test_the_notebook_is_clean():
    notebook = json.loads((ROOT / "examples" / "show1.ipynb").read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            ast.parse("".join(cell["source"]))


WRONG = {
    "python sample.py --promt x": "sample.py has no flag --promt",
    "python sample.py --prompt x \\\n    --sed 3": "sample.py has no flag --sed",
    ".venv/bin/python train.py --work x": "train.py has no flag --work",
    "python -m show1_jax.convert a b --check": "-m show1_jax.convert has no flag --check",
    "python -m show1_jax.shapes.sweep --stages x": "-m show1_jax.shapes.sweep has no flag --stages",
    "pip install x && show1-sample --out": "",
    "show1-sample --outs": "sample.py has no flag --outs",
    "show1-sing --out": "there is no program show1-sing",
    "BUCKET=s3://b bash examples/pods/train.sh --coordinated=auto": (
        "train.py has no flag --coordinated"
    ),
    "BUCKET=s3://b exec show1-sample --shards 3": "sample.py has no flag --shards",
    "python -m show1_jax.sing": "there is no program -m show1_jax.sing",
    "python sample.py --config.text.cats=3": "sample.py: the config has no key text.cats",
    "python train.py --config configs/show1.py:vae --config.video=x": (
        "train.py: the config has no key video"
    ),
    "python train.py --config=configs/customize.py --config.video=x  # --not": "",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_commands_are_found(command):
    expected = [WRONG[command]] if WRONG[command] else []
    assert faults(f"```sh\n{command}\n```\n") == expected
    if "\n" not in command and not command.startswith((".venv", "pip", "BUCKET")):
        assert faults(f"So `{command}` does it.") == expected

"""Check that code distinguishes levels by `Features` and optional interfaces, never by a name or a class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.host.checks import CHECKS
from sandbox.isolation import DEFAULT, LEVELS, driver
from sandbox.isolation.base import Features, Forking

PACKAGE = Path(__file__).resolve().parents[3] / "sandbox"
TABLE = "isolation/__init__.py"
PACKAGES = {target.split(".")[2] for target in LEVELS.values()}
OTHER_MEANINGS = {("images", "vm")}
"""Folders of this package where a word is no level's name: a form of the root filesystem, and the folder `vm/`."""


def names(tree: ast.AST) -> Iterator[str]:
    """Texts in a program that are the name of a level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in LEVELS:
            yield node.value


def engines(tree: ast.AST) -> Iterator[str]:
    """Packages of single levels that a program imports, or names for a lazy import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [node.value.partition(":")[0]]
        else:
            continue
        for name in found:
            parts = name.split(".")
            if parts[:2] == ["sandbox", "isolation"] and len(parts) > 2 and parts[2] in PACKAGES:
                yield ".".join(parts[:3])


def modules() -> Iterator[tuple[str, ast.AST]]:
    """Every module outside of the table and the levels' own packages."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        own = place.parts[:1] == ("isolation",) and place.parts[1] in PACKAGES
        if str(place) != TABLE and not own:
            yield str(place), ast.parse(path.read_text(encoding="utf-8"))


def test_no_level_is_named_outside_its_package() -> None:
    found = {(place, name) for place, tree in modules() for name in names(tree)}
    assert {one for one in found if (one[0].partition("/")[0], one[1]) not in OTHER_MEANINGS} == set()


def test_no_levels_package_is_used_outside_of_it() -> None:
    found = {(place, package) for place, tree in modules() for package in engines(tree)}
    assert found == set()


@pytest.mark.parametrize(
    "text",
    [
        'if level == "vm": pass',
        'level in ("container", "x")',
        'TABLE = {"gvisor": 1}',
        "match level:\n case 'process': pass",
    ],
)
def test_a_name_would_be_seen(text: str) -> None:
    assert len(list(names(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from sandbox.isolation.docker.sandbox import ContainerSandbox",
        "from sandbox.isolation import vm",
        "import sandbox.isolation.local.warm",
        "import_module('sandbox.isolation.vm.driver')",
    ],
)
def test_an_import_would_be_seen(text: str) -> None:
    assert set(engines(ast.parse(text)))


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_says_what_it_can(level: str) -> None:
    found = driver(level)
    assert found.name == level
    assert isinstance(found.features, Features)
    assert set(found.features.requires) <= set(CHECKS)
    # At most one way to start warm: by a zygote, or by a paused sandbox.
    assert not (isinstance(found, Forking) and found.features.warm_by_pause)


def test_the_default_is_a_level() -> None:
    assert DEFAULT in LEVELS

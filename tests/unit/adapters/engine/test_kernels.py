"""How our kernels are compiled, kept and refused."""

import os
from pathlib import Path

import jax
import pytest

from jaxserver.adapters.engine import kernels
from jaxserver.adapters.engine.kernels import register_kernels
from jaxserver.ports.errors import InvalidConfig
from tests.numerics.test_kernels import needs_compiler


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that is the first on the path, and is not written yet."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path / "c++"


def write(compiler: Path, script: str) -> None:
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded yet, and nothing is registered in this process for good."""
    monkeypatch.setattr(kernels, "_LOADED", {})
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_: None)


@needs_compiler
def test_a_library_that_is_broken_is_made_anew(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = register_kernels(tmp_path / "whole")
    broken = tmp_path / "broken" / f"{name}.so"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    monkeypatch.setattr(kernels, "_LOADED", {})
    assert register_kernels(broken.parent) == name
    assert broken.stat().st_size > 0


@needs_compiler
def test_what_was_compiled_is_not_compiled_again(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = register_kernels(tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(kernels, "_LOADED", {})
    monkeypatch.setattr(kernels, "_compile", never)
    assert register_kernels(tmp_path) == name
    assert [file.stem for file in tmp_path.iterdir()] == [name]


def test_where_no_compiler_is_they_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidConfig, match=r"no compiler.*c\+\+, g\+\+, clang\+\+"):
        register_kernels(tmp_path / "kernels")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'x.cc:1: error: no VNNI' >&2; exit 1", "says x.cc:1: error: no VNNI"),
        ("echo 'ld: cannot find -lstdc++' >&2; exit 1", "says ld: cannot find"),
        ("exit 1", "says nothing"),
        ("exec sleep 60", "timed out after 0.5 seconds"),
    ],
)
def test_what_a_compiler_says_against_them_is_said(
    script: str,
    said: str,
    compiler: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(compiler, f'test "$1" = --version && exit 0; {script}')
    monkeypatch.setattr(kernels, "LONGEST_SECONDS", 0.5)
    folder = tmp_path / "kernels"
    with pytest.raises(InvalidConfig, match=f"{said}.*allowed is xla"):
        register_kernels(folder)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_said(
    compiler: Path, tmp_path: Path
) -> None:
    write(compiler, "exit 0")
    file = tmp_path / "a file"
    file.touch()
    with pytest.raises(InvalidConfig, match=r"a file.*a cache that can be written"):
        register_kernels(file / "kernels")

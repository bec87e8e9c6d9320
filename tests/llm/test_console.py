"""Nothing that is printed ends a run, and no file depends on the encoding of the machine."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.console import print_whatever_the_encoding, refuse_undecoded

ROOT = Path(__file__).resolve().parents[2]
SAID = "λ* ∝ ρ², naïve – ok"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_no_character_ends_a_run(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = io.BytesIO()
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(kept, encoding=encoding, write_through=True)
    )
    print_whatever_the_encoding()
    print(SAID)
    printed = kept.getvalue().decode(encoding)
    assert printed.rstrip() == SAID.encode(encoding, errors="replace").decode(encoding)
    assert printed.rstrip().endswith("ok")


def test_a_stream_that_is_no_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        print_whatever_the_encoding()


def test_words_that_the_locale_cannot_read() -> None:
    refuse_undecoded(["train", "--data", "données/∝.jsonl"])
    with pytest.raises(
        ValueError, match="'données' has characters that Python cannot read in this locale"
    ):
        refuse_undecoded(["--data", "données".encode().decode("ascii", errors="surrogateescape")])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
def test_the_command_prints_its_help_and_its_json_anywhere(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """The claim's text and figure have characters that ASCII lacks; JSON keeps them as escapes."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))
    }
    command = [
        sys.executable,
        "-m",
        "experiments",
        "verify",
        "--profile",
        "smoke",
        "--workers",
        "1",
        "--out",
        str(tmp_path),
    ]

    def said(*more: str) -> bytes:
        done = subprocess.run(
            [*command, *more],
            cwd=ROOT,
            env=environment | settings,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    (claim,) = json.loads(said("--claim", "bias-kl", "--json").decode("ascii"))
    assert "∝" in json.dumps(claim, ensure_ascii=False)
    assert b"?" in said("--explain", "bias-kl")
    assert "∝" in (tmp_path / "ledger.md").read_text(encoding="utf-8")


def test_every_text_file_names_its_encoding() -> None:
    """`open`, `read_text` and `write_text` take the machine's encoding where none is given: cp1252
    on Windows."""
    found = []
    for package in ("theory", "llm", "experiments", "paper_figures"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "notebooks" not in path.parts:
                tree = ast.parse(path.read_text(encoding="utf-8"))
                found += [
                    f"{path.relative_to(ROOT)}:{call.lineno}"
                    for call in ast.walk(tree)
                    if _of_the_machine(call)
                ]
    assert not found


def _of_the_machine(call: ast.AST) -> bool:
    if not isinstance(call, ast.Call) or any(word.arg == "encoding" for word in call.keywords):
        return False
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and not _binary(call)
    if not isinstance(call.func, ast.Attribute):
        return False
    opens = (
        call.func.attr == "open"
        and ast.unparse(call.func.value) not in ("gzip", "Image", "os")
        and not _binary(call)
    )
    return opens or call.func.attr in ("read_text", "write_text")


def _binary(call: ast.Call) -> bool:
    modes = [word.value for word in call.keywords if word.arg == "mode"] + call.args
    return any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)

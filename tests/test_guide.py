"""The guide does what it says: its code and commands are run, the others are parsed, and the site
builds without a warning.

In the pages of docs/guide and docs/results, in docs/index.md, README.md and docs/training.md a
fenced block is one of these:

* python: run, in order, in one namespace for each page, in an empty folder;
* python with a file as its title: appended to that file, or a new file; diff: applied to that file.
  The page is then run in another process, on a copy of the project with these edits;
* text with the title "prints": what the python block before it prints;
* bash: every line is run, in this process;
* bash with a title, and blocks without a language: every line is parsed with the parser of its
  command, and not run;
* yaml: parsed as a file of options of `prefdro train`.
"""

import contextlib
import html
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tests.test_formulas import WITH_FORMULAS, formulas

ROOT = Path(__file__).resolve().parent.parent
GUIDE = sorted(
    page for room in ("guide", "results") for page in (ROOT / "docs" / room).glob("*.md")
)
PAGES = [*GUIDE, ROOT / "docs" / "index.md", ROOT / "docs" / "training.md", ROOT / "README.md"]
CODE = ("theory", "llm", "experiments", "paper_figures")
FENCE = re.compile(
    r"^```[ ]?([a-z]*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
PRINTS = "prints"
GAP = re.compile(r"gap \d\.\de[-+]\d+")  # of a fit: rounding, which is another on another machine


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, title and text, and the line of the page where it begins."""

    language: str
    title: str
    text: str
    line: int

    def commands(self) -> list[str]:
        """Lines of a shell block; a backslash at the end joins two, and what follows a # is left
        out."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in joined.splitlines() if shlex.split(line, comments=True)]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start()) + 1)
        for m in FENCE.finditer(text)
    ]
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found), (
        f"{page.name} has a fence that is not understood"
    )
    return found


# ------------------------------------------------------------------------------------------ parsers
class Parsed(Exception):
    """The arguments of a command were understood; it stops here."""


def _stopping(command: Callable[..., None]) -> Callable[..., None]:
    """The same signature, for the parser; `plan` of the experiment, where it reads no files, checks
    the values as well."""

    @wraps(command)
    def stop(*given: Any, **named: Any) -> None:
        for config in (*given, *named.values()):
            module = inspect.getmodule(type(config))
            if (
                module is not None
                and hasattr(module, "plan")
                and getattr(config, "pairs", None) is None
            ):
                module.plan(config)
        raise Parsed

    return stop


def parse_prefdro(words: list[str], patch: pytest.MonkeyPatch) -> None:
    from experiments import cli
    from llm.train import parse

    if words[0] == "train":
        if "--help" not in words:
            parse(_train_words(words[1:]))
        return
    commands = cli.commands

    def stopping(group: str, asked: str) -> dict[str, Callable[..., None]]:
        return {name: _stopping(command) for name, command in commands(group, asked).items()}

    with patch.context() as inside:
        inside.setattr(cli, "commands", stopping)
        try:
            cli.main(words)
        except Parsed:
            return
        except SystemExit as stop:
            if stop.code in (0, None) and "--help" in words:
                return
            pytest.fail(f"prefdro {shlex.join(words)} was refused")
        pytest.fail(f"prefdro {shlex.join(words)} did not reach a command")


def _train_words(words: list[str]) -> list[str]:
    """Without a file of options that only the reader has, and without GPUs, which are not here."""
    words = [word for word in words if word != "..."]
    for option, count in (("--config", 2), ("--bf16", 1)):
        if option in words:
            at = words.index(option)
            count += int(option == "--bf16" and words[at + 1 : at + 2] == ["true"])
            words = words[:at] + words[at + count :]
    return words


def parse_launch(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` and `torchrun` with their own parsers, then the module's arguments with
    ours."""
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert words[1] == "launch"
        launch = launch_command_parser().parse_args(words[2:])
    else:
        from torch.distributed.run import get_args_parser

        launch = get_args_parser().parse_args(words[1:])
    assert launch.module
    script = launch.training_script
    assert script in ("llm.train", "experiments"), f"no such module to launch: {script}"
    parse_prefdro(
        [*(["train"] if script == "llm.train" else []), *launch.training_script_args], patch
    )


def check_command(line: str, patch: pytest.MonkeyPatch) -> None:
    """The command is there and takes these arguments."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
        words = words[1:]
    if words[0] == "prefdro":
        parse_prefdro(words[1:], patch)
    elif words[0] in ("accelerate", "torchrun"):
        parse_launch(words, patch)
    elif words[0] == "make":
        for target in [word for word in words[1:] if "=" not in word]:
            assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE), (
                f"no target {target}"
            )
    elif words[0] == "sbatch":
        assert (ROOT / next(word for word in words[1:] if word.endswith(".sbatch"))).is_file(), (
            f"no file for {line}"
        )
    elif words[0] == "pip":
        import tomllib

        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", line)))) <= set(extras)
    elif words[:2] == ["python", "-m"]:
        assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file() or words[
            2
        ] == "http.server", f"no module {words[2]}"
    else:
        assert words[0] in ("cd", "git", "source"), f"nothing here knows how to check {line!r}"


# -------------------------------------------------------------------------------------------- tests
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(page: Path) -> None:
    """Run the code and the commands of a page in the current folder."""
    from experiments import cli

    namespace: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language == "python" and not block.title:
            code = compile("\n" * block.line + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            printed = out.getvalue()
        elif block.language == "text" and block.title == PRINTS:
            said, shown = (
                [GAP.sub("gap", line.rstrip()) for line in text.splitlines()]
                for text in (block.text, printed)
            )
            assert shown == said, f"{where}: the code prints\n{printed}"
        elif block.language == "bash" and not block.title:
            for line in block.commands():
                words = shlex.split(line, comments=True)
                assert words[0] == "prefdro", (
                    f"{where}: give the block a title if it is not to be run"
                )
                try:
                    cli.main(words[1:])
                except SystemExit as stop:
                    assert not stop.code, f"{where}: {line} ended with status {stop.code}"
        elif block.language == "text":
            assert block.title, f"{where}: a text block needs a title, `{PRINTS}` or another"
        else:
            assert block.language in (
                "",
                "bash",
                "yaml",
                "python",
                "diff",
                "math",
            ), f"{where}: {block.language!r}"


def edits(page: Path) -> list[Block]:
    return [
        block
        for block in blocks(page)
        if block.language == "diff" or (block.language == "python" and block.title)
    ]


def apply(edit: Block, root: Path) -> None:
    """Append a python block to the file of its title, or put each hunk of a diff where its old
    lines are, which is one place."""
    path = root / edit.title
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if edit.language == "python":
        path.write_text(f"{text}\n\n{edit.text}" if text else edit.text, encoding="utf-8")
        return
    for hunk in edit.text.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
        assert old.strip() and text.count(old) == 1, (
            f"{edit.title} has these lines {text.count(old)} times:\n{old}"
        )
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not edits(page):
        run_page(page)
        return
    for package in (*CODE, "tests/__init__.py", "tests/test_formulas.py", "tests/test_guide.py"):
        copy = shutil.copytree if (ROOT / package).is_dir() else shutil.copy
        (folder / package).parent.mkdir(exist_ok=True)
        copy(ROOT / package, folder / package)
    for edit in edits(page):
        apply(edit, folder)
    work = folder / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tests.test_guide", str(page)]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for edit in edits(page):  # in the style of the project
        ruff = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--quiet",
            "--config",
            str(ROOT / "pyproject.toml"),
            str(folder / edit.title),
        ]
        checked = subprocess.run(ruff, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist_and_take_these_arguments(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llm.train import parse

    for block in blocks(page):
        if block.language == "" or (block.language == "bash" and block.title):  # the others are run
            for line in block.commands():
                check_command(line, monkeypatch)
        elif block.language == "yaml":
            file = tmp_path / "options.yaml"
            file.write_text(
                re.sub(r"^bf16: true\n", "", block.text, flags=re.MULTILINE)
            )  # refused without a GPU
            parse(["--config", str(file), "--output_dir", str(tmp_path)])


def test_the_page_on_the_papers_has_every_figure_and_table_with_its_command() -> None:
    from paper_figures.catalogue import ENTRIES

    text = (ROOT / "docs" / "guide" / "reproducing.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    shown = {row[0]: row[3] for row in rows if len(row) == 4}
    assert shown == {
        e.key: e.command(Path("results")) if e.experiment else "none: computed when drawn"
        for e in ENTRIES
    }


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments" / "slurm").glob("*.sbatch")), ids=lambda file: file.stem
)
@pytest.mark.parametrize("experiment", ["armorm", "leaderboard", "aot-benchmark"])
def test_the_files_for_slurm_start_what_exists(
    file: Path, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^srun (.*)$", text, re.MULTILINE)
    known = {
        "EXPERIMENT": experiment,
        "OUT": "results",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_COUNT": "8",
        "@": "",
    }
    check_command(
        re.sub(r"\$(\w+|@)", lambda found: known[found[1]], command).replace('""', ""), monkeypatch
    )


@pytest.mark.parametrize(
    "line",
    [
        "prefdro run armorm --no-such-option 1",
        "prefdro run no-such-experiment",
        "prefdro run armorm --profile huge",
        "prefdro train --objective kldpo --no_such_option 1",
        "accelerate launch --no-such-option -m llm.train --model MODEL",
        "torchrun --nproc_per_node 2 -m llm.other",
        "make no-such-target",
        "rm -rf results",
    ],
)
def test_a_wrong_command_is_noticed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, SystemExit, ValueError)):
        check_command(line, monkeypatch)


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(GUIDE)
    fetched = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link(?![^>]*canonical)[^>]*\shref=\"?(?:https?:)?//"
    )
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not fetched.search(text), page.name
        assert not re.search("cdn|jsdelivr|unpkg", text), page.name
    assert (tmp_path / "site" / "javascripts" / "tex-svg.js").stat().st_size > 1_000_000
    for page in WITH_FORMULAS:  # what MathJax will read is what was written
        built = (
            tmp_path / "site" / page.relative_to(ROOT / "docs").with_suffix(".html")
        ).read_text(encoding="utf-8")
        assert "javascripts/formulas.js" in built
        inline, displayed = (
            [html.unescape(found).strip() for found in re.findall(pattern, built, re.DOTALL)]
            for pattern in (
                r'<span class="arithmatex">\\\((.*?)\\\)</span>',
                r'<div class="arithmatex">\\\[(.*?)\\\]</div>',
            )
        )
        written = formulas(page.read_text(encoding="utf-8"))
        assert (inline, displayed) == tuple([f.strip() for f in group] for group in written)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))

"""The catalogue: it names what there is, says its state, and everything with rows is drawn whatever
else fails."""

import inspect
import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments.cli import main
from paper_figures import catalogue, gallery
from paper_figures.catalogue import ENTRIES, Entry, state
from tests.launches import run
from tests.paper_figures.language_tables import write_aot_benchmark, write_leaderboard

SCHEME = next(entry for entry in ENTRIES if entry.name == "wdpo_fig1")


def test_every_figure_of_a_study_is_named_once() -> None:
    assert len({entry.key for entry in ENTRIES}) == len(ENTRIES)
    for module in {
        entry.module for entry in ENTRIES if entry.ours and entry.module != "studies.ledger"
    }:
        named = {entry.name for entry in ENTRIES if entry.module == module}
        assert named - {"aot_quantiles"} == set(import_module(f"paper_figures.{module}").FIGURES)


def test_every_module_draws_and_every_file_of_a_paper_is_named() -> None:
    doors = {import_module(f"paper_figures.{entry.module}").draw for entry in ENTRIES}
    assert {str(inspect.signature(draw)) for draw in doors} == {
        str(inspect.signature(import_module("paper_figures.studies.aot").draw))
    }
    files = {
        f"paper.{p.stem}"
        for p in Path(catalogue.__file__).parent.glob("paper/*.py")
        if re.match(r"(wdpo|aot)_(fig|table\d|benchmarks)", p.stem)
    }
    assert files == {entry.module for entry in ENTRIES if not entry.ours}


def test_the_list_needs_no_matplotlib() -> None:
    code = (
        "import sys; import paper_figures.catalogue; sys.exit('matplotlib' in sys.modules or"
        " 'pandas' in sys.modules)"
    )
    assert run([sys.executable, "-c", code]).returncode == 0


def test_states_of_a_figure(tmp_path: Path) -> None:
    results, out = tmp_path, tmp_path / "figures"
    table = next(entry for entry in ENTRIES if entry.name == "wdpo_table3")
    assert (
        state(table, results, out)
        == f"no rows: prefdro run leaderboard --out {tmp_path / 'leaderboard'}"
    )
    folder = write_leaderboard(results)
    assert state(table, results, out) == "rows there"
    gallery.draw_all(results, out, 1, [table])
    assert state(table, results, out) == "drawn"
    os.utime(folder / "scores.csv", ns=(1, 1))  # other rows than those that were drawn
    assert state(table, results, out) == "rows there"
    gallery.draw_all(results, out, 1, [table])
    record = json.loads((out / "figures.json").read_text())
    (out / "figures.json").write_text(
        json.dumps(record | {"wdpo_table3": record["wdpo_table3"] | {"code": "older"}})
    )
    assert state(table, results, out) == "rows there"
    gallery.draw_all(results, out, 1, [table])
    (out / "wdpo_table3.tex").unlink()
    assert state(table, results, out) == "rows there"


def test_commands() -> None:
    commands = {entry.experiment: entry.command(Path("results")) for entry in ENTRIES}
    assert commands["armorm"] == "prefdro run armorm" and commands["ledger"] == "prefdro verify"


def test_all_are_drawn_though_one_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_aot_benchmark(tmp_path)
    (write_leaderboard(tmp_path) / "scores.csv").write_text("model\nx\n")
    with pytest.raises(SystemExit) as ended:
        main(["figures", "--all", "--results", str(tmp_path), "--workers", "1"])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert (
        "failed: paper_figures.paper.wdpo_table1: ValueError" in said.err
        and "has no column" in said.err
    )
    assert "aot_fig2" not in said.err
    assert (
        f"no rows for wdpo_fig3, wdpo_fig4: prefdro run armorm --out {tmp_path / 'armorm'}"
        in said.out
    )
    page = (tmp_path / "figures" / "README.md").read_text()
    linked = re.findall(r"\]\(([^)]+)\)", page)
    assert {"wdpo_fig1.png", "aot_fig2.png", "aot_benchmarks.tex"} <= set(linked)
    assert all((tmp_path / "figures" / name).is_file() for name in linked)
    assert "## Failed" in page and "GPT-2 of 0.13 M parameters" in page and "| AOT paired |" in page


def test_what_has_no_rows_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            "figures",
            "--all",
            "--results",
            str(tmp_path),
            "--out",
            str(tmp_path / "drawn"),
            "--workers",
            "1",
        ]
    )
    assert "1 of " in capsys.readouterr().out and (tmp_path / "drawn" / "wdpo_fig1.png").is_file()
    main(["list", "--results", str(tmp_path)])
    assert "wdpo_fig1" in capsys.readouterr().out


def test_one_experiment_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_leaderboard(tmp_path / "elsewhere").rename(tmp_path / "other-name")
    main(["figures", "--from", str(folder)])
    written = capsys.readouterr().out.split()
    assert (
        str(folder / "figures" / "wdpo_table1.md") in written
        and str(folder / "figures" / "wdpo_table4.tex") in written
    )


def test_names_that_begin_alike_are_kept_apart() -> None:
    rewards = Entry("aot", "", catalogue.OURS, "aot", "aot")
    assert rewards.owns(Path("aot_ours.csv")) and not rewards.owns(Path("aots.csv"))
    assert (
        SCHEME.key == "wdpo_fig1"
        and Entry("frontier", "", catalogue.OURS, "emotion", "emotion").key == "emotion/frontier"
    )

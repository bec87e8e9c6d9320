"""The claims ledger on the command line: what it prints, writes and compares, and its exit
status."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from experiments import verify
from experiments.cli import main
from experiments.engine.provenance import code_fingerprint
from experiments.ledger_page import Entry, escape, page, section
from experiments.verify import Verify, check_cell, differences, record, run
from theory.claims import CLAIMS
from theory.claims.ledger import Claim, Finding, Kind, Measurement, Verdict, conclude

CALLS: list[str] = []


def holds(profile: str, seed: int) -> Finding:
    CALLS.append("sound")
    rows = [{"x": float(n), "y": 1 / n + seed, "log": "xy"} for n in (1, 10, 100)]
    return conclude(
        f"seed {seed}, {profile}",
        [Measurement("two | sides", Verdict.HOLDS, "[0, 1]")],
        {"error": rows},
    )


def fails(profile: str, seed: int) -> Finding:
    line = Measurement(
        "a *bound*", Verdict.REFUTED, "ratio 0.5", ratio=float("inf"), counterexample="x = 1, y = 2"
    )
    step = Measurement("its lemma", Verdict.INCONCLUSIVE, "wide", step=True, decides="more samples")
    return conclude("too small by half", [line, step])


def raises(profile: str, seed: int) -> Finding:
    raise RuntimeError("no such world")


def claim(name: str, check: object = holds, kind: Kind = Kind.PUBLISHED) -> Claim:
    return Claim(
        name,
        "Lemma 1",
        f"title of {name}",
        "for all E_n",
        "none",
        "by hand",
        "anything else",
        check,
        kind,
    )  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    CALLS.clear()
    monkeypatch.setattr(
        verify, "CLAIMS", {"sound": claim("sound"), "broken": claim("broken", fails)}
    )
    monkeypatch.setattr(verify, "BASELINE", tmp_path / "baseline.json")


def config(tmp_path: Path, **changes: object) -> Verify:
    return Verify(**{"profile": "smoke", "out": tmp_path / "out", "workers": 1, **changes})  # type: ignore[arg-type]


def test_what_is_not_on_record_is_said_until_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config(tmp_path)) == 1
    assert (
        "sound: not recorded for the profile smoke, now holds; run with --record."
        in capsys.readouterr().out
    )
    assert run(config(tmp_path, record=True)) == 0
    assert run(config(tmp_path)) == 0
    assert run(config(tmp_path, profile="quick")) == 1  # each profile has a record of its own
    shown = capsys.readouterr().out
    assert "sound: not recorded for the profile quick" in shown
    assert re.search(r"1 × holds; 1 × refuted. Slowest: \w+ \d", shown)


@pytest.mark.parametrize(
    ("kind", "of_holds", "of_fails", "line"),
    [
        (Kind.PUBLISHED, "holds", "refuted", "refuted"),
        (Kind.ASSUMPTION, "assumption holds", "assumption can fail", "fails"),
        (Kind.DERIVED, "derived, holds", "derived, fails", "fails"),
        (Kind.IDENTITY, "identity", "identity, fails", "fails"),
    ],
)
def test_only_what_a_source_says_is_refuted(
    kind: Kind,
    of_holds: str,
    of_fails: str,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The word on the screen, in JSON, in the tables, on the page and on record is the same."""
    kinds = {"sound": claim("sound", kind=kind), "broken": claim("broken", fails, kind)}
    monkeypatch.setattr(verify, "CLAIMS", kinds)
    assert run(config(tmp_path, record=True)) == 0
    shown = capsys.readouterr().out
    assert of_holds in shown and of_fails in shown
    assert json.loads((tmp_path / "baseline.json").read_text()) == {
        "smoke": {"sound": of_holds, "broken": of_fails}
    }
    assert run(config(tmp_path, json=True)) == 0  # a recorded failure is no difference
    found = json.loads(capsys.readouterr().out)
    assert [(entry["verdict"], entry["kind"]) for entry in found] == [
        (of_holds, kind),
        (of_fails, kind),
    ]
    assert found[1]["measurements"][0]["verdict"] == line
    out = tmp_path / "out"
    assert pd.read_parquet(out / "ledger.parquet").verdict.tolist() == [of_holds, of_fails]
    assert pd.read_parquet(out / "evidence.parquet").verdict.tolist()[1] == line
    text = (out / "ledger.md").read_text()
    assert f"Verdict: **{of_fails}**" in text and f"* **{line}**: a" in text


def test_a_verdict_that_changes_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(tmp_path, record=True))
    monkeypatch.setattr(
        verify, "CLAIMS", {"sound": claim("sound", fails), "broken": claim("broken", fails)}
    )
    assert run(config(tmp_path, out=tmp_path / "new")) == 1
    assert "sound: recorded holds, now refuted; too small by half" in capsys.readouterr().out


def test_a_claim_that_is_gone_is_a_difference_of_the_whole_ledger_only(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"smoke": {"sound": "holds", "old": "holds"}}))
    entries = [Entry(claim("sound"), holds("smoke", 0), 1.0)]
    assert differences(entries, "smoke", all_run=False, path=path) == []
    assert differences(entries, "smoke", all_run=True, path=path) == [
        "old: recorded, but there is no such claim; run with --record."
    ]
    record(entries, "smoke", path)
    assert json.loads(path.read_text()) == {"smoke": {"sound": "holds"}}


def test_a_part_of_the_ledger_is_recorded_without_the_rest(tmp_path: Path) -> None:
    run(config(tmp_path, record=True))
    run(config(tmp_path, record=True, claim=("broken",)))
    assert json.loads((tmp_path / "baseline.json").read_text()) == {
        "smoke": {"sound": "holds", "broken": "refuted"}
    }


def test_json_and_nothing_else_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config(tmp_path, json=True)) == 1
    captured = capsys.readouterr()
    assert captured.out.isascii()  # a pipe may have any encoding
    sound, broken = json.loads(captured.out)
    assert (sound["claim"], sound["source"], sound["verdict"], sound["figure"]) == (
        "sound",
        "Lemma 1",
        "holds",
        "seed 0, smoke",
    )
    assert sound["seconds"] >= 0
    assert broken["measurements"][0] == {
        "what": "a *bound*",
        "verdict": "refuted",
        "figure": "ratio 0.5",
        "step": False,
        "ratio": None,  # infinite
        "counterexample": "x = 1, y = 2",
        "decides": "",
    }
    assert "not recorded" in captured.err


def test_explain_shows_everything_about_one_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(tmp_path, record=True))
    run(config(tmp_path, explain="broken"))
    shown = capsys.readouterr().out
    for words in (
        "for all E_n",
        "by hand",
        "anything else",
        "too small by half",
        "ratio 0.5",
        "x = 1, y = 2",
        "more samples",
    ):
        assert words in shown, words
    assert "step of the proof: its lemma" in shown
    run(config(tmp_path, explain="sound"))
    shown = capsys.readouterr().out
    assert "two | sides: [0, 1]" in shown
    path = tmp_path / "out" / "figures" / "sound.png"
    assert str(path) in shown and path.is_file()
    assert CALLS == ["sound"]  # computed once, then read


def test_what_is_stored_is_not_computed_again_unless_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(tmp_path))
    run(config(tmp_path))
    assert CALLS == ["sound"]
    run(config(tmp_path, seed=1))
    assert CALLS == ["sound"] * 2
    monkeypatch.setattr(verify, "_fingerprint", lambda: "other code")
    run(config(tmp_path))
    assert CALLS == ["sound"] * 3


def test_the_fingerprint_is_that_of_theory_and_its_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = verify._fingerprint()
    read = Path.read_bytes
    for changed in ("functionals.py", "newton.py", "programs.py", "ledger.py"):  # of each room
        monkeypatch.setattr(
            Path, "read_bytes", lambda path, name=changed: read(path) + b"#" * (path.name == name)
        )
        assert (
            verify._fingerprint() == before
        )  # a running process computes with the code that it has loaded
        code_fingerprint.cache_clear()  # as in a new process
        assert verify._fingerprint() != before
        monkeypatch.setattr(Path, "read_bytes", read)
        code_fingerprint.cache_clear()
        assert verify._fingerprint() == before


def test_a_failing_check_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "CLAIMS", {"bad": claim("bad", raises), "sound": claim("sound")})
    assert run(config(tmp_path, record=True)) == 1
    shown = capsys.readouterr().out
    assert "bad: the check failed" in shown and "RuntimeError: no such world" in shown
    assert "1 claims (smoke): 1 × holds" in shown
    assert json.loads((tmp_path / "baseline.json").read_text()) == {"smoke": {"sound": "holds"}}
    monkeypatch.setattr(verify, "CLAIMS", {"bad": claim("bad", raises)})
    assert run(config(tmp_path, out=tmp_path / "empty")) == 1


def test_tables_and_page(tmp_path: Path) -> None:
    run(config(tmp_path))
    out = tmp_path / "out"
    claims, lines = (
        pd.read_parquet(out / "ledger.parquet"),
        pd.read_parquet(out / "evidence.parquet"),
    )
    assert claims.verdict.tolist() == ["holds", "refuted"]
    assert lines.claim.tolist() == ["sound", "broken", "broken"]
    assert len(pd.read_parquet(out / "tables" / "sound--error.parquet")) == 3
    text = (out / "ledger.md").read_text()
    assert "[sound](#sound)" in text and "\n## sound\n" in text
    assert r"two \| sides: \[0, 1\]" in text and r"a \*bound\*" in text
    for link in re.findall(r"\]\(<?((?:figures|tables)/[^)>]+)>?\)", text):
        assert (out / link).is_file()
    assert "figures/sound.png" in text and "figures/broken.png" not in text


def test_a_subset_leaves_the_rest_of_the_ledger_in_place(tmp_path: Path) -> None:
    run(config(tmp_path))
    run(config(tmp_path, claim=("broken",)))
    assert pd.read_parquet(tmp_path / "out" / "ledger.parquet").claim.tolist() == [
        "sound",
        "broken",
    ]


def test_another_profile_or_seed_leaves_no_stale_tables(tmp_path: Path) -> None:
    run(config(tmp_path))
    image = tmp_path / "out" / "figures" / "sound.png"
    first = image.read_bytes()
    run(config(tmp_path, seed=3, claim=("broken",)))
    assert list((tmp_path / "out" / "tables").iterdir()) == []
    run(config(tmp_path, seed=3))
    assert image.read_bytes() != first


def test_the_page_is_the_same_for_the_same_findings() -> None:
    def text(seconds: float) -> str:
        entries = [
            Entry(claim("sound"), holds("smoke", 0), seconds),
            Entry(claim("broken", fails), fails("smoke", 0), seconds),
        ]
        return page(entries, {}, {}, run="by hand")

    assert text(1.0) == text(1.0)
    assert text(1.0).replace("1.0", "2.0") == text(2.0)
    assert section(Entry(claim("sound"), holds("smoke", 0), 1.0)) in text(1.0)


def test_escape_leaves_no_markup() -> None:
    assert escape("|L_n - L|\n<= 2*K") == r"\|L\_n - L\| \<= 2\*K"


def test_unknown_claims_are_refused_with_close_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown claim 'sund': did you mean sound\?"):
        run(config(tmp_path, claim=("sund",)))
    with pytest.raises(ValueError, match="there are sound, broken"):
        run(config(tmp_path, explain="zzzz"))
    with pytest.raises(ValueError, match="leave out --claim sound"):
        run(config(tmp_path, explain="broken", claim=("sound",)))


def test_the_command_exits_with_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", "--profile", "smoke", "--workers", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 1
    main([*words, "--record"])
    main([*words, "--json"])
    main(["figures", "--from", str(tmp_path / "out"), "--out", str(tmp_path / "drawn")])
    assert (tmp_path / "drawn" / "ledger.pdf").is_file()
    with pytest.raises(SystemExit):
        main([*words, "--claim", "nothing"])
    assert "unknown claim 'nothing'" in capsys.readouterr().err


def test_a_real_claim_in_a_worker_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "CLAIMS", CLAIMS)
    name = "aot-below-dpo"
    assert run(config(tmp_path, claim=(name,), workers=2, record=True)) == 0
    (entry,) = verify.stored_entries(tmp_path / "out", "smoke", 0)
    assert entry.finding == CLAIMS[name].check("smoke", 0)


def test_a_finding_survives_the_store() -> None:
    stored = json.loads(
        check_cell({"claim": "broken", "profile": "smoke", "seed": 0}, None).finding[0]
    )  # type: ignore[arg-type]
    assert verify._finding(stored) == fails("smoke", 0)

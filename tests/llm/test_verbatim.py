"""Text, messages and tool calls reach the chat template exactly as they stand in the file, whatever
its format."""

import csv
import gzip
import json
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Json, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.rows import as_rows, which
from llm.data.tokens import BadRows, load_rows, preference_texts, tokenise
from tests.llm.models import byte_tokenizer, word_tokenizer


def talk(question: str, call: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    calls = {
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": call}}],
    }
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant"} | (calls if call is not None else {"content": "yes"})],
        "rejected": [{"role": "assistant", "content": "2020-01-01"}],
    } | more


ROWS = [
    talk(
        "when?",
        {"day": "2021-05-05", "n": 3},
        tools=[{"name": "look", "parameters": {"day": "date", "n": "integer"}}],
    ),
    talk(
        "where?",
        {"town": "Ulm", "near": None, "n": "three"},
        tools=[{"name": "look", "parameters": {"town": "string"}}],
    ),
    talk("why?", {"n": 0.1, "many": [1, "x", {"y": None}], "big": 2**70}),
    talk("who?", None),
]
LOGGER = (
    "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson if tools else '' }}<eos>"
)


def seen_by_the_template(rows: Any) -> list[str]:
    """What a template that writes down all it is given makes of the chosen conversations."""
    tokenizer = byte_tokenizer(["x"], chat_template=True)
    tokenizer.chat_template = LOGGER
    data = tokenise(rows, tokenizer)
    return [tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) for row in data]


def written(rows: list[dict[str, Any]]) -> list[str]:
    """The same, by hand. transformers 5 itself takes a null content from a message before its
    template sees it."""
    spelt = [
        [
            {k: v for k, v in m.items() if (k, v) != ("content", None)}
            for m in row["prompt"] + row["chosen"]
        ]
        for row in rows
    ]
    texts = ["".join(map(json.dumps, messages)) for messages in spelt]
    tools = [json.dumps(row["tools"]) if row.get("tools") else "" for row in rows]
    return [f"{text}{tool}<eos>" for text, tool in zip(texts, tools, strict=True)]


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "folder", "splits"])
def test_objects_keep_their_own_keys_and_types(tmp_path, ending):
    lines = "\n".join(map(json.dumps, ROWS))
    if ending == "folder":
        path = tmp_path / "data"
        path.mkdir()
        (path / "train.jsonl").write_text(lines)
    elif ending == "splits":
        path = tmp_path / "two"
        (path / "data").mkdir(parents=True)
        (path / "data" / "train-0.jsonl").write_text("\n".join(map(json.dumps, ROWS[:1])))
        (path / "data" / "train-1.jsonl").write_text("\n".join(map(json.dumps, ROWS[1:])))
        (path / "data" / "test-0.jsonl").write_text("nonsense")  # is not read
    else:
        path = tmp_path / f"a.{ending}"
        content = (json.dumps(ROWS) if ending == "json" else lines).encode()
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    rows = load_rows(path)
    assert rows == ROWS
    assert seen_by_the_template(rows) == written(ROWS)


@pytest.mark.parametrize("ending", ["parquet", "saved", "frame", "dataset"])
def test_keys_that_arrow_filled_in_are_taken_away(tmp_path, ending):
    """Structs hold the keys of all rows; a null cannot be told from a key that was never there, and
    is taken for that."""
    rows = [
        talk("a", {"day": "1"}, tools=[{"name": "p"}]),
        talk("b", {"town": "2"}, tools=[{"name": "q", "of": "r"}]),
        talk("c", None),
    ]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / "a.parquet"
    if ending == "parquet":
        pa.parquet.write_table(table, path)
        found: Any = load_rows(path)
    elif ending == "saved":
        Dataset(table).save_to_disk(tmp_path / "saved")
        found = load_rows(tmp_path / "saved")
    else:
        found = table.to_pandas() if ending == "frame" else Dataset(table)
    assert as_rows(found) == rows
    assert seen_by_the_template(found) == written(rows)


def test_columns_of_json_in_data_sets(tmp_path):
    rows = [{"prompt": "p", "tools": [{"a": None, "b": 1}]}, {"prompt": "q", "tools": [{"c": "x"}]}]
    features = Features({"prompt": Value("string"), "tools": List(Json())})
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    assert load_rows(tmp_path / "saved") == rows
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert load_rows(tmp_path / "a.parquet") == rows


def test_cells_of_csv_are_text(tmp_path):
    texts = [
        "007",
        "",
        "NA",
        "nan",
        "2020-01-01",
        "1e5",
        "True",
        "a,b",
        'say "x"',
        "two\r\nlines",
        "\u2028",
        " blank ",
        "é😀",
    ]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows(
            [
                ["prompt", "chosen", "weight", "group", "label"],
                *[["p", text, "1.5", "3", "true"] for text in texts],
            ]
        )
    rows = load_rows(path)
    assert [row["chosen"] for row in rows] == texts
    assert all((row["weight"], row["group"], row["label"]) == (1.5, 3, True) for row in rows)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_in_any_file(tmp_path_factory, texts):
    folder, rows = tmp_path_factory.mktemp("any"), [{"prompt": text} for text in texts]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "b.jsonl").write_text(
        "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        encoding="utf-16",
        newline="",
    )
    (folder / "c.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8-sig")
    pd.DataFrame(rows).to_parquet(folder / "d.parquet")
    with (folder / "e.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [["prompt"], *[[row["prompt"]] for row in rows]]
        )
    for name in ("a.jsonl", "b.jsonl", "c.json", "d.parquet"):
        assert load_rows(folder / name) == rows
    if not any("\0" in text for text in texts):
        assert load_rows(folder / "e.csv") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"prompt": "café"}\n'.encode("latin-1"),
            r"line 1: the byte 0xe9 .* text there is .*café.*iconv",
        ),
        (
            "a.csv",
            "prompt\nx\nà la carte\n".encode("cp1252"),
            r"line 3: the byte 0xe0 .*à la carte",
        ),
        (
            "a.jsonl",
            '{"prompt": "x"}\n'.encode("utf-16-le"),
            r"zero bytes, as UTF-16 without a mark.*iconv -f UTF-16LE",
        ),
        ("a.jsonl", '{"prompt": "x"}\n'.encode("utf-16")[:-1], r"begins as UTF-16 and is no"),
        (
            "a.json",
            b'{"data": [{"prompt": "x"}]}',
            r"one JSON object with 'data'; its rows are under 'data'",
        ),
        (
            "a.json",
            b'{"prompt": {"0": "x"}, "chosen": {"0": "y"}}',
            r"it holds columns.*orient='records'",
        ),
        ("a.json", b'{\n "prompt": "x",\n "chosen": "y"\n}\n', r"a single row over several lines"),
        ("a.csv", b'prompt,chosen\n"x,y\n', r"a\.csv, line \d: not valid CSV"),
        ("a.csv", b"prompt;chosen;rejected\nx;y;z\n", r"its cells are separated by ';'"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            r"a pointer of Git LFS",
        ),
        ("a.jsonl", b'{"x": ' + b"[" * 9000 + b"]" * 9000 + b"}", r"1 row \(1\) not valid JSON"),
    ],
)
def test_files_of_another_form_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / name)


def test_tools_as_text():
    rows = [
        talk("q", None, tools=tools)
        for tools in ("", " ", "[]", "null", None, [], '[{"name": "t", "x": null}]')
    ]
    assert seen_by_the_template(rows)[-1].endswith('[{"name": "t", "x": null}]<eos>')
    assert len(set(seen_by_the_template(rows)[:-1])) == 1
    bad = [
        *rows,
        talk("q", None, tools="[{"),
        talk("q", None, tools='{"name": "t"}'),
        talk("q", None, tools=7),
    ]
    with pytest.raises(
        ValueError,
        match=(
            r"1 row \(8\) with something in `tools` that is no JSON.*1 row \(9\) with an object.*1"
            r" row \(10\)"
        ),
    ):
        seen_by_the_template(bad)
    with pytest.raises(
        ValueError,
        match=r"1 row \(1\) with a list in `chat_template_kwargs`, which needs an object",
    ):
        seen_by_the_template([talk("q", None, chat_template_kwargs=[1]), talk("q", None)])


#  bad rows ----------------------------------------------------------------------------------------
GOOD = {"prompt": "the cat", "chosen": " is red", "rejected": " is blue"}
BAD = {
    "without `chosen`": {"prompt": "a", "rejected": "b"},
    "with a number in `rejected`": GOOD | {"rejected": 4},
    "half an emoji": GOOD | {"chosen": " is \ud83d"},
    "with a `weight`": GOOD | {"weight": "much"},
    "with a `group`": GOOD | {"group": 1.5},
}


def test_bad_rows_are_all_listed_or_left_out_with_their_reasons(tmp_path):
    good = GOOD | {"weight": 1, "group": "g"}
    rows = [{"weight": 1, "group": "g"} | row for row in BAD.values()]
    lines = [
        json.dumps(good),
        *map(json.dumps, rows),
        "no json",
        json.dumps([1]),
        json.dumps(good | {"rejected": GOOD["chosen"]}),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(lines))
    strict, loose = BadRows(), BadRows(drop=True)
    with pytest.raises(ValueError, match=r"a\.jsonl: 7 of 9 rows cannot be used: ") as error:
        tokenise(load_rows(path, bad=strict), word_tokenizer(), bad=strict)
    for number, reason in enumerate(BAD, 2):
        assert f"1 row ({number}) {reason}" in str(error.value).replace("with half", "half")
    assert "line 13: Expecting value" in str(error.value) and "--drop_bad_rows" in str(error.value)
    with pytest.warns(UserWarning, match=r"8 of 9 rows are left out"):
        data = tokenise(load_rows(path, bad=loose), word_tokenizer(), bad=loose)
    assert list(data["index"]) == [0]
    loose.write(tmp_path / "out" / "left.csv")
    table = pd.read_csv(tmp_path / "out" / "left.csv")
    assert list(table["row"]) == list(range(2, 10)) and table["reason"].str.len().min() > 10
    BadRows().write(tmp_path / "out" / "left.csv")
    assert not (tmp_path / "out" / "left.csv").exists()


def test_where_nothing_is_left_dropping_is_an_error():
    with pytest.raises(ValueError, match=r"none of the 2 rows can be used"):
        tokenise([{"chosen": 1, "rejected": 2}] * 2, word_tokenizer(), bad=BadRows(drop=True))


def test_numbers_of_rows():
    assert which([0]) == "1 row (1)"
    assert which([4, 0, 9]) == "3 rows (1, 5, 10)"
    assert which([*range(2, 12), 20]) == "11 rows (3-12, 21)"
    assert which(range(0, 40, 2)).count(",") == 19  # all of them


def test_pairs_for_analyses():
    rows = [GOOD, GOOD | {"chosen": "  "}, GOOD]
    with pytest.warns(UserWarning, match=r"1 of 3 rows is left out: 1 row \(2\) empty or blank"):
        table = preference_texts(rows)
    assert table.to_dict("records") == [GOOD | {"index": 0}, GOOD | {"index": 2}]
    conversation = preference_texts([talk("q", None)])
    assert conversation.loc[0, ["prompt", "chosen", "rejected"]].tolist() == [
        "q",
        "yes",
        "2020-01-01",
    ]
    with pytest.raises(ValueError, match="a list of dicts, a Dataset or a DataFrame, got str"):
        preference_texts("a.jsonl")  # type: ignore[arg-type]


def test_data_sets_are_not_changed_by_reading():
    data = Dataset.from_list([GOOD, GOOD])
    tokenise(data, word_tokenizer())
    assert data.to_list() == [GOOD, GOOD]
    rows = [dict(talk("q", None, tools="[]"))]
    before = json.dumps(rows)
    seen_by_the_template(rows)
    assert json.dumps(rows) == before
    assert datasets.is_caching_enabled()


def test_numbers_of_csv_are_judged_cell_by_cell(tmp_path):
    lines = [
        f"the cat, is red, is blue,{weight},{k}"
        for k, weight in enumerate(("1.5", "n/a", "", "2", "-1", "1e39"))
    ]
    (tmp_path / "a.csv").write_text("\n".join(["prompt,chosen,rejected,weight,group", *lines]))
    with pytest.raises(ValueError, match=r"4 rows \(2, 3, 5, 6\) with a `weight` .*'n/a'"):
        tokenise(load_rows(tmp_path / "a.csv"), word_tokenizer())
    bad = BadRows(drop=True)
    with pytest.warns(UserWarning, match="4 of 6 rows are left out"):
        data = tokenise(load_rows(tmp_path / "a.csv", bad=bad), word_tokenizer(), bad=bad)
    assert list(data["weight"]) == [1.5, 2.0] and list(data["group"]) == [0, 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"weight": 10**400}, r"1 row \(2\) with a `weight`"),
        ({"weight": 1e39}, r"1 row \(2\) with a `weight`"),
        ({"group": 2**70}, r"1 row \(2\) with a `group` that is no whole number from 0 to"),
    ],
)
def test_numbers_beyond_what_is_stored(row, message):
    with pytest.raises(ValueError, match=message):
        tokenise(
            [GOOD | {k: 1 for k in row}, GOOD | row, GOOD | {k: 1 for k in row}], word_tokenizer()
        )


def test_a_system_message_that_cannot_be_written():
    rows = [GOOD | {"s": "be happy"}, GOOD | {"s": "\ud83d"}, GOOD | {"s": 3}, GOOD]
    with pytest.raises(
        ValueError,
        match=r"2 rows \(2, 3\) with a system message that is no string, or holds half an emoji",
    ):
        tokenise(rows, word_tokenizer(chat_template=True), strings="chat", columns={"system": "s"})


def test_a_tool_may_return_nothing():
    row = talk("q", {"n": 1})
    row["chosen"] += [{"role": "tool", "content": ""}, {"role": "assistant", "content": "done"}]
    assert len(seen_by_the_template([row])) == 1


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "a.jsonl").write_text("<html>\n<body>Not found</body>\n")
    bad = BadRows()
    with pytest.raises(
        ValueError, match=r"none of the 2 rows can be used: 2 rows \(1, 2\) not valid JSON"
    ):
        tokenise(load_rows(tmp_path / "a.jsonl", bad=bad), word_tokenizer(), bad=bad)
    pd.DataFrame([GOOD]).to_parquet(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"is a Parquet file. Give it the ending"):
        load_rows(tmp_path / "b.jsonl")
    (tmp_path / "c.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="Git LFS"):
        load_rows(tmp_path / "c.parquet")

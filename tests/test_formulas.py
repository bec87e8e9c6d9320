"""The formulas of docs/theorems can be read on the code host and on the site.

Inline they are $...$ on one line, displayed they are fenced blocks of the language math. The code
host gives what its Markdown leaves of them to MathJax, so that a Markdown parser that knows no
mathematics must leave them alone, and they may use only what MathJax knows and the code host lets
through.
"""

import json
import re
import shutil
import subprocess
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
WITH_FORMULAS = [
    *sorted((ROOT / "docs" / "theorems").glob("*.md")),
    ROOT / "docs" / "guide" / "scaling.md",
]
INLINE = re.compile(r"(?<![\w\\$])\$(?![\s$])([^$\n]*[^\s$\\])\$(?![\w$])")
# "The following macros are not allowed", says the code host (github/markup#1688), which lets none
# through that hides text or redefines another
REFUSED = {"operatorname", "mbox", "phantom", "hphantom", "vphantom", "def", "let", "newcommand"}


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def source(token: Token) -> str:
    """What was written, less its code."""
    return re.sub(r"(`+)[^`].*?\1", "", token.content)


def shown(token: Token) -> str:
    """What a parser that knows no mathematics makes of it."""
    kept = {"text", "text_special", "softbreak"}
    return "".join(child.content or "\n" for child in token.children or [] if child.type in kept)


def formulas(text: str) -> tuple[list[str], list[str]]:
    """The inline and the displayed formulas of a page."""
    tokens = parsed(text)
    inline = [f for t in tokens if t.type == "inline" for f in INLINE.findall(source(t))]
    return inline, [t.content for t in tokens if t.type == "fence" and t.info.strip() == "math"]


def faults(text: str) -> list[str]:
    """What a reader of the page on the code host would stumble over."""
    found, tokens = [], parsed(text)
    for before, token in pairwise(tokens):
        if token.type != "inline":
            continue
        rest = INLINE.sub("", source(token))
        if "$" in rest:
            found.append(f"a dollar that belongs to no formula: {rest}")
        if before.type == "heading_open" and "$" in token.content:
            found.append(f"a formula in a heading, whose anchor differs by renderer: {rest}")
        lost = set(INLINE.findall(source(token))) - set(INLINE.findall(shown(token)))
        found += [f"Markdown changes ${formula}$" for formula in sorted(lost)]
    for formula in [f for group in formulas(text) for f in group]:
        commands = re.findall(r"\\([A-Za-z]+)", formula)
        environments = re.findall(r"\\(begin|end)\{(\w+\*?)\}", formula)
        names = {name for _, name in environments}
        unknown = set(commands) - {"begin", "end"} - known_commands() - {"left", "right"}
        found += [f"\\{c} is not known everywhere: {formula}" for c in sorted(unknown)]
        found += [f"unknown environment {n}" for n in names - {"aligned", "cases", "pmatrix"}]
        if any(
            environments.count(("begin", n)) != environments.count(("end", n)) for n in names
        ) or commands.count("left") != commands.count("right"):
            found.append(f"begin and end, or left and right, do not match: {formula}")
        if not balanced(re.sub(r"\\[{}\\]", "", formula)):
            found.append(f"braces do not match: {formula}")
    return found


def balanced(text: str) -> bool:
    depth = 0
    for sign in re.findall(r"[{}]", text):
        depth += 1 if sign == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def mathjax() -> Path:
    pytest.importorskip("mathjax", reason="MathJax comes with the extra `guide`")
    return Path(str(distribution("django-static-mathjax").locate_file("mathjax/static/mathjax")))


def known_commands() -> set[str]:
    """The commands of MathJax's packages base and ams, from their own tables."""
    tables = "".join(
        (mathjax() / "ts" / "input" / "tex" / name).read_text(encoding="utf-8")
        for name in ("base/BaseMappings.ts", "ams/AmsMappings.ts")
    )
    return set(re.findall(r"^\s*'?(?:\\\\)?([A-Za-z]+)'?:", tables, re.MULTILINE)) - REFUSED


@pytest.mark.parametrize("page", WITH_FORMULAS, ids=lambda page: page.stem)
def test_the_formulas_of_a_page_can_be_read_everywhere(page: Path) -> None:
    assert not faults(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        r"$\{x\}$",  # Markdown takes the backslashes
        r"$a\,b$",
        r"$\mathcal{Q}_n$ and $\theta_{n}$",  # emphasis from one formula into the next
        "$a*b$ and $c*d$",
        "$a<b>c$",  # an HTML element
        "$a$b",
        "costs $5",
        "$a\nb$",  # over two lines
        "| a |\n|---|\n| $|x|$ |",  # the cell ends
        "# On $x$",
        r"$\operatorname{dist}$",
        r"$\nosuchcommand$",
        r"$\frac{1}{2$",
        "```math\n\\begin{aligned} a \\end{cases}\n```",
    ],
)
def test_an_unreadable_formula_is_noticed(text: str) -> None:
    assert faults(text)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="MathJax runs in node here")
def test_mathjax_draws_every_formula(tmp_path: Path) -> None:
    pages = [formulas(page.read_text(encoding="utf-8")) for page in WITH_FORMULAS]
    asked = [[f, False] for inline, _ in pages for f in inline]
    asked += [[f, True] for _, displayed in pages for f in displayed]
    assert asked
    (tmp_path / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    script = tmp_path / "draw.js"
    script.write_text(
        f"""
        const asked = require("{tmp_path}/asked.json");
        require("{mathjax()}/es5/node-main.js").init({{
          loader: {{ load: ["input/tex", "output/svg"] }},
          tex: {{ packages: ["base", "ams"], formatError: (_, error) => {{ throw error; }} }},
        }}).then((MathJax) => {{
          for (const [formula, display] of asked) {{
            try {{ MathJax.tex2svg(formula, {{ display }}); }}
            catch (error) {{ console.log(error.message + ": " + formula); }}
          }}
        }});
        """,
        encoding="utf-8",
    )
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stdout

"""What is printed must not end a run: pipes and old consoles have encodings without ∝, é or the
name of somebody's folder."""

import io
import sys
from collections.abc import Iterable


def print_whatever_the_encoding() -> None:
    """From now on a character that stdout or stderr cannot hold is printed as `?` (on stderr as an
    escape), and is no error.

    Files are not concerned: they are always UTF-8. Nor is JSON, which is printed in ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        # a notebook's or a test's stream is of another kind, and takes everything; stderr escapes
        # what it cannot hold already
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def refuse_undecoded(words: Iterable[str]) -> None:
    """Raise ValueError for words of the command line that this locale cannot read, such as é where
    LC_ALL is C."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            shown = word.encode(errors="surrogateescape").decode(errors="replace")
            raise ValueError(
                f"{shown!r} has characters that Python cannot read in this locale"
                f" ({sys.getfilesystemencoding()}): set PYTHONUTF8=1, or LC_ALL=C.UTF-8, and give"
                " the same command again."
            ) from error

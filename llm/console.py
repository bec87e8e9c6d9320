"""What is printed must not end a run: pipes and old consoles have encodings without ∝, é or the name of somebody's folder."""

import io
import sys


def print_whatever_the_encoding() -> None:
    """From now on a character that stdout or stderr cannot hold is printed as `?` (on stderr as an escape), and is no error.

    Files are not concerned: they are always UTF-8. Nor is JSON, which is printed in ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        # a notebook's or a test's stream is of another kind, and takes everything; stderr escapes what it cannot hold already
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")

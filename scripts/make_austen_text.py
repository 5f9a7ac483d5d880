"""Make ``esper/data/files/austen.txt.gz`` from two novels of Jane Austen.

    python scripts/make_austen_text.py FILE [OUTPUT]

FILE is ``data/Rdata.rdb`` of the R package ``janeaustenr`` 1.0.0, installed: by Debian's package
``r-cran-janeaustenr`` under ``/usr/lib/R/site-library/janeaustenr``, or by R's ``install.packages``. R itself
is not needed. It has the novels as Project Gutenberg gives them, one string a line.

What is kept: *Pride and Prejudice*, then *Persuasion*, without titles and chapter headings. A line break
inside a paragraph becomes a space, the end of a paragraph a line break. Letters are made lower case, and
every character outside ``esper.data.text.ALPHABET`` (digits, brackets, marks of emphasis) is left out.
"""

from __future__ import annotations

import argparse
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from esper.data.text import ALPHABET

BOOKS = ("PRIDE AND PREJUDICE", "Persuasion")
HEADING = re.compile(r"Chapter \d+|Finis")
OUTPUT = Path(__file__).parents[1] / "esper" / "data" / "files" / "austen.txt.gz"


def stored_books(raw: bytes) -> Iterator[list[str]]:
    """The lines of each book in an R lazy-load database: length, then a zlib stream, one after another."""
    while raw:
        stream = zlib.decompressobj()
        content = stream.decompress(raw[4:])
        yield strings(content)
        raw = stream.unused_data


def strings(content: bytes) -> list[str]:
    """The character vector in ``content``, R's serialisation of version 3 in big-endian binary form.

    R Internals, section 1.8: format, versions and the native encoding, then the type (16, a character
    vector), the count, and for each string its flags, its length and its bytes.
    """
    if content[:6] != b"X\n\x00\x00\x00\x03":
        raise SystemExit("this is no R data file of version 3: take data/Rdata.rdb of janeaustenr 1.0.0")

    def number(at: int) -> int:
        return int.from_bytes(content[at : at + 4], "big")

    at = 18 + number(14)
    if number(at) != 16:
        raise SystemExit(f"a character vector (type 16) was expected, found type {number(at)}")
    count, at = number(at + 4), at + 8
    found = []
    for _ in range(count):
        end = at + 8 + number(at + 4)
        found.append(content[at + 8 : end].decode("utf-8"))
        at = end
    return found


def reduced(lines: list[str]) -> str:
    """The text of a book in the alphabet, a paragraph a line."""
    body = lines[lines.index("Chapter 1") :]
    text = "\n".join("" if HEADING.fullmatch(line.strip()) else line for line in body).lower()
    text = "".join(character for character in text if character in ALPHABET)
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "".join(f"{paragraph}\n" for paragraph in paragraphs if paragraph)


def main() -> None:
    """Read the file, reduce, write."""
    parser = argparse.ArgumentParser(description="Make the text that ships with Esper.")
    parser.add_argument("file", type=Path, help="Rdata.rdb of janeaustenr")
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    options = parser.parse_args()
    try:
        books = {lines[0]: lines for lines in stored_books(options.file.read_bytes())}
        text = "".join(reduced(books[title]) for title in BOOKS)
    except (OSError, zlib.error) as error:
        raise SystemExit(f"{options.file}: cannot be read as R data: {error}") from error
    except KeyError as error:
        raise SystemExit(f"{options.file}: the book {error} is not in it") from error
    options.output.write_bytes(gzip.compress(text.encode("ascii"), mtime=0))
    print(f"{options.output}: {len(text):,} characters, {options.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

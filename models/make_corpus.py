#!/usr/bin/env python3
"""Extracts the training text of kjv-10m from Debian packages, deterministically.

    apt-get install bible-kjv bible-kjv-text dict-devil
    python3 models/make_corpus.py models/build/corpus.json

The King James text comes out of the `bible` program, the Devil's Dictionary out of dictd's
compressed file. Written: {"train": [document...], "heldout": {book: [document...]},
"chat": [[word, definition]...]}; a document is one chapter (a title line, then one verse a line)
or one dictionary entry.
"""

import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

# the program's abbreviation -> the title a chapter gets
TRAIN = {"Ge": "Genesis", "Exo": "Exodus", "Ruth": "Ruth", "Job": "Job", "Psa": "Psalm", "Prv": "Proverbs",
         "Eccl": "Ecclesiastes", "SSol": "Song of Solomon", "Isa": "Isaiah", "Mat": "Matthew", "Mark": "Mark",
         "Luke": "Luke", "Acts": "Acts"}
HELD_OUT = {"John": "John", "Rom": "Romans", "Jonah": "Jonah", "1Sm": "1 Samuel"}
DICTIONARY = Path("/usr/share/dictd/devil.dict.dz")


def chapters():
    """Every chapter of the Bible as (abbreviation, number, [verse...]), in order."""
    text = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    out = []
    for line in text.splitlines():
        book, chapter, verse = re.match(r"(\d?[A-Za-z]+)(\d+):\d+ (.*)", line).groups()
        if not out or out[-1][:2] != (book, int(chapter)):
            out.append((book, int(chapter), []))
        out[-1][2].append(verse.strip())
    return out


def squeeze(lines):
    return re.sub(r"\s+", " ", " ".join(lines)).strip()


def entries():
    """The dictionary's entries as lists of paragraphs; prose on one line, verse kept line by line."""
    text = gzip.decompress(DICTIONARY.read_bytes()).decode("utf-8")
    text = text[text.index("\nABASEMENT, n."):]
    out = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").splitlines()
        if not lines:
            continue
        prose = not lines[0].startswith(" ")
        paragraph = squeeze(lines) if prose else "\n".join(squeeze([x]) for x in lines)
        if prose and re.match(r"[A-Z][A-Z'. -]+,? (n|adj|v\.[ti]|adv|pp|x|vulg|pro|p)\.", paragraph):
            out.append([paragraph])
        elif out:
            out[-1].append(paragraph)
    return out


def definition(paragraph):
    """(word, definition) of an entry's first paragraph, cut at a sentence end; None where there is no short one."""
    found = re.match(r"([A-Z][A-Z' -]+), (?:n|adj|v\.[ti]|adv)\.(?:pl\.)? (.*)", paragraph)
    if not found:
        return None
    text = ""
    for sentence in re.split(r"(?<=[.?!]) (?=[A-Z\"(])", found[2]):
        if text and len(text) + len(sentence) > 300:
            break
        text = f"{text} {sentence}".strip()
    return (found[1].lower(), text) if 20 <= len(text) <= 400 else None


def main():
    train, held_out = [], {name: [] for name in HELD_OUT.values()}
    for book, number, verses in chapters():
        if book in TRAIN:
            train.append(f"{TRAIN[book]} {number}\n" + "\n".join(verses))
        elif book in HELD_OUT:
            held_out[HELD_OUT[book]].append(f"{HELD_OUT[book]} {number}\n" + "\n".join(verses))
    words = entries()
    train += ["\n".join(e) for e in words]
    chat = sorted(dict(x for x in (definition(e[0]) for e in words) if x).items())
    out = json.dumps({"train": train, "heldout": held_out, "chat": chat}, ensure_ascii=False)
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(out, encoding="utf-8")
    print(f"{len(train)} documents, {sum(map(len, train))} characters, {len(chat)} definitions, "
          f"{sum(len(d) for b in held_out.values() for d in b)} characters held out, "
          f"sha256 {hashlib.sha256(out.encode()).hexdigest()}")


if __name__ == "__main__":
    main()

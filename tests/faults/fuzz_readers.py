"""Coverage-guided search for files that a reader breaks on; needs atheris, which no other part does.

Run as `python tests/faults/fuzz_readers.py READER SECONDS FOLDER`, from the root of the project, for each
READER of tests/faults/test_fuzz.py. The search starts from whole files and ends at the first one whose reader
raises anything but a `UserError` of one line, or takes more than 32 MiB; it is written into FOLDER. Put it
into tests/faults/corpus/READER, mend the reader, and test_fuzz.py reads it for ever.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

# Compiled code is not instrumented: numba takes the bytecode that Python made.
KERNELS = [".".join(path.with_suffix("").parts) for path in Path("loaders/kernels").rglob("*.py")]
with atheris.instrument_imports(include=["loaders"], exclude=KERNELS):
    from tests.faults import test_fuzz


def main() -> None:
    reader, seconds, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder = Path(tempfile.mkdtemp())
    good = test_fuzz.good_files(folder)
    corpus, scratch = folder / "corpus", folder / "scratch"
    out.mkdir(parents=True, exist_ok=True)
    corpus.mkdir()
    scratch.mkdir()
    for number, data in enumerate(good[reader]):
        (corpus / str(number)).write_bytes(data)

    def check(data: bytes) -> None:
        test_fuzz.check_reader(reader, good, scratch, data)

    options = [f"-max_total_time={seconds}", f"-artifact_prefix={out}/", "-timeout=60", "-rss_limit_mb=4096"]
    longest = max(map(len, good[reader]))
    atheris.Setup([sys.argv[0], *options, f"-max_len={longest + 4096}", str(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

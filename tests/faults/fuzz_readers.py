"""Coverage-guided search for files that break a reader; only this script needs atheris.

Run as `python tests/faults/fuzz_readers.py READER SECONDS FOLDER`, from the root of the project, for each
READER of tests/faults/test_fuzz.py. The search starts from valid files and ends at the first file for which
the reader raises anything but a `UserError` of one line, or takes more than 32 MiB. That file is written into
FOLDER. Move it to tests/faults/corpus/READER and mend the reader; from then on, test_fuzz.py reads the file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

# Code that numba compiles must not be instrumented, since numba needs the bytecode that Python made.
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

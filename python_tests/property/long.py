"""The long draw: ``python python_tests/property/long.py --cases 2000``. It goes on where it was interrupted.

Every draw's outcome is a line of a file; draws that are there are not run again. A draw that fails leaves a script that
repeats it. The last lines say what was covered. Exit code 1 if a draw failed, or if too many were refused.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """Run the draws that are not in the file yet."""
    from helpers.paths import ROOT

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="how many draws (2000)")
    parser.add_argument("--start", type=int, default=0, help="the first number (0)")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "property.jsonl", help="build/property.jsonl")
    parser.add_argument("--scripts", type=Path, default=ROOT / "build" / "property", help="build/property/")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers
    from property.outcomes import complaints, read_records, record_of, summary

    transformers.logging.set_verbosity_error()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    wanted = range(options.start, options.start + options.cases)
    done = {one.number: one for one in read_records(options.results) if one.number in wanted}
    started, begun = time.monotonic(), len(done)
    with options.results.open("a") as file:
        for number in wanted:
            if number in done:
                continue
            done[number] = record_of(number, options.scripts)
            print(done[number].line(), file=file, flush=True)
            if done[number].kind == "failed":
                print(f"\nFAILED draw {number}: {done[number].reason}\n  see {options.scripts}/draw_{number}.py")
            if number % 10 == 9:
                left = (time.monotonic() - started) / (len(done) - begun) * (len(wanted) - len(done))
                print(f"\r{len(done)} of {len(wanted)} draws, {left / 60:.0f} min left ", end="", file=sys.stderr)
    records = [done[number] for number in wanted]
    print(f"\n{summary(records)}")
    wrong = complaints(records)
    for one in wrong:
        print(f"wrong: {one}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""The tests in other environments than the pinned one, and what came of it.

    make test-oldest      # the lower bounds of pyproject.toml, exactly
    make test-newest      # whatever is newest today, nothing pinned
    make test-pinned      # .venv/, as `make test` has it

Each runs this file with its environment's own Python. It runs pytest with the arguments given and
replaces the environment's row in results/compatibility.json, whose settings name every package.
"""

import subprocess
import sys
import tempfile
import time
import tomllib
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "compatibility.json"
ENVIRONMENTS = ("oldest", "pinned", "newest")


def lower_bounds() -> list[str]:
    """Every requirement of pyproject.toml that states a lower bound, held at that bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *extras["train"], *extras["serve"]]
    return [requirement.replace(">=", "==") for requirement in stated]


def versions() -> dict[str, str]:
    """What is installed here, by name."""
    found = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return dict(sorted(found.items()))


def run_tests(arguments: list[str]) -> dict[str, int]:
    """Run pytest; how many tests passed, failed (errors count as failures) and were skipped."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *arguments]
        subprocess.run(command, cwd=ROOT)
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        counts = [
            {name: int(s.attrib[name]) for name in s.attrib if s.attrib[name].isdigit()}
            for s in suites
        ]
    total = {
        name: sum(c.get(name, 0) for c in counts)
        for name in ("tests", "failures", "errors", "skipped")
    }
    failed = total["failures"] + total["errors"]
    return {
        "passed": total["tests"] - failed - total["skipped"],
        "failed": failed,
        "skipped": total["skipped"],
    }


def main(environment: str, arguments: list[str]) -> None:
    # Here, since `lower-bounds` is asked before anything is installed.
    from foretell.results import read_result, write_result
    from foretell.results.benchmarks import Compatibility
    from foretell.results.provenance import provenance

    began = time.monotonic()
    counts = run_tests(arguments)
    seconds = round(time.monotonic() - began)
    row = Compatibility(environment=environment, **counts, seconds=seconds)
    made = provenance(seed=None, device="cpu", dtype="float32", command=f"make test-{environment}")
    rows, settings = {}, {}
    if RESULT.exists():
        earlier = read_result(RESULT)
        rows = {old.environment: old for old in earlier.table(Compatibility)}
        settings = earlier.settings
    rows[environment] = row
    settings[environment] = {"provenance": made, "versions": versions()}
    ordered = [rows[name] for name in ENVIRONMENTS if name in rows]
    write_result(RESULT, "compatibility", settings, ordered, made)
    print(
        f"{environment}: {counts} in {seconds} s, torch {made['torch']}, "
        f"transformers {made['transformers']}"
    )
    sys.exit(counts["failed"] > 0 or counts["passed"] == 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["lower-bounds"]:
        print("\n".join(lower_bounds()))
    else:
        main(sys.argv[1], sys.argv[2:])

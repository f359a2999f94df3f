"""docs/results.md and README's few rows of results, made from the result files in docs/results/.

    python benchmarks/tables.py             # writes both
    python benchmarks/tables.py --check     # writes nothing; exit status 1 if either is not what this would write
    python benchmarks/tables.py --readme    # prints README's rows

README's rows stand between the lines `<!-- results -->` and `<!-- /results -->`.
"""

from __future__ import annotations

import argparse
import collections
import functools
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _compared
import _gpu_tables
import _measure
import _suite_tables
import _violations
import estimator_bias
import ladder
import long_loops
import long_run
import rastrigin
import run
import scaling
import small_transformers
from _made import Files, load, made

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results -->", "<!-- /results -->"
INTRODUCTION = """# Results

Made by `python benchmarks/tables.py` from the files in [docs/results](results); do not edit. All optimizers start from
the same points and see the same mini-batches, baselines are tuned on problems that the tests do not use, and diverged
problems count. [comparison.md](comparison.md) defines the measures, [benchmarks.md](benchmarks.md) how time and memory
are measured, and [experiments.md](experiments.md) has what was tried, and figures that have no file.

Each table says of which revision it is. Before b42c3ff the shipped weights had a clock, a pace and a spring that was
felt everywhere ([experiments.md](experiments.md#what-drove-long-runs-apart)): tables of revisions before it, or of
files that name none, show them as they were then."""


def sizes(files: Files) -> list[str]:
    """With the size of the network."""
    if "ladder" not in files:
        return []
    content = files["ladder"]
    lost = [
        f"at {row['weights']:,} weights the {form} form ({row['adam'] / row[key]:.2f})"
        for row in content["rows"].values()
        for key, form in (("plain", "plain"), ("kronecker", "Kronecker-factored"))
        if row["adam"] < row[key]
    ]
    return [
        f"ReLU networks with one hidden layer on MNIST, mini-batches of {content['batch']}: mean loss of the last 10 "
        f"of {content['horizon']} steps over {content['num_problems']} test problems. Adam is tuned for each size over "
        "learning rate and β₂, above five million weights over the learning rate alone, on one problem. In networks of "
        "more than 1,024 units the Kronecker-factored form does not rotate the first matrix's longer side. r⁺/√φ is "
        "the factor that all forces of the plain form carry.",
        made([content], "python benchmarks/ladder.py --sizes 1e3,1e4,1e5,1e6,3e6,1e7 --json docs/results/ladder.json"),
        ladder.table(content),
        f"**Where they lose to Adam**: {'; '.join(lost) or 'nowhere here'}.",
    ]


def long_runs(files: Files) -> list[str]:
    """Ten thousand steps."""
    if "long_run" not in files:
        return []
    content = files["long_run"]
    return [
        f"784-20-10 networks on MNIST, {content['steps']:,} steps, {content['problems']} test problems; baselines are "
        f"tuned at that horizon on {content['tuning_problems']} others. Mean (smallest – largest).",
        made([content], ""),
        long_run.tables(content),
    ]


def loops(files: Files) -> list[str]:
    """Ten thousand steps of users' loops."""
    if "long_loops" not in files:
        return []
    content = files["long_loops"]
    return [
        f"Mean training loss in the last tenth of {content['steps']:,} steps, one seed; in brackets the best tenth, "
        "where that was lower by more than a tenth. AdamW has warm-up, cosine and the best of three learning rates.",
        made([content], ""),
        long_loops.table(content["jobs"]),
    ]


def transformers(files: Files) -> list[str]:
    """Networks that start small."""
    if "small_transformers" not in files:
        return []
    content = files["small_transformers"]
    return [
        f"Do {'; '.join(content['models'])} of width 32 train in every mode of the drop-in? Mean loss over the last "
        f"tenth of {content['steps']:,} steps, smallest – largest of {content['seeds']} seeds. A network that has "
        f"learned nothing reaches {content['entropy']:.2f}, the entropy of single characters, of digits "
        f"{math.log(10):.2f}. BERT does not learn to fill in masked characters here, nor does it with AdamW; it learns "
        "digits in the Kronecker-factored form, on some seeds not in the plain one. Encoders that start as torch's "
        "layers do learn digits in all modes; "
        "[experiments.md](experiments.md#networks-that-start-small-not-solved) says more.",
        made([content], "python benchmarks/small_transformers.py --json docs/results/small_transformers.json"),
        small_transformers.table(content),
    ]


def landscape(files: Files) -> list[str]:
    """Rastrigin's function."""
    if "rastrigin" not in files:
        return []
    content = files["rastrigin"]
    rows = content["rows"]
    ahead = [name for name, row in rows.items() if row["median"] < rows["trained"]["median"]]
    return [
        f"10 coordinates, {content['starts']} test starts, {content['steps']:,} steps; the plain form, trained on this "
        "function by ES-Single.",
        made([content], ""),
        rastrigin.table(content),
        f"**Where it loses**: to {'; to '.join(ahead) or 'nobody here'}.",
    ]


def bias(files: Files) -> list[str]:
    """Estimators of the meta-gradient."""
    if "estimator_bias" not in files:
        return []
    content = files["estimator_bias"]
    return [
        "Gradient descent on a quadratic of three coordinates, whose meta-gradient has a closed form; "
        f"{content['horizon']} inner steps, σ = {content['sigma']:g}, {content['episodes']} episodes of "
        f"{content['problems']} equal problems. Bias is relative to the exact gradient, with one standard error; "
        "deviations are those of a single pair or direction. [estimators.md](estimators.md) has the figure.",
        made([content], ""),
        estimator_bias.table(content),
    ]


def attacks(files: Files) -> list[str]:
    """The adversary."""
    if "adversary" not in files:
        return []
    content = files["adversary"]
    rows = content["parts"]
    steps = _violations.problem_steps(rows.values())
    kronecker = _violations.problem_steps(row for name, row in rows.items() if name.startswith("kronecker"))
    return [
        "Does the guarantee of [theory.md](theory.md) hold for weights that nobody trained, half of them randomly "
        "perturbed: on landscapes, on tasks, and under gradients and losses that are chosen to do harm? H is the "
        "energy in use, E the account, E₀ what it was filled with.",
        made([content], "python benchmarks/adversary.py --json docs/results/adversary.json"),
        _violations.table(rows),
        f"{_violations.violations(rows.values())} violations in {steps / 1e6:.0f} million problem-steps, "
        f"{kronecker / 1e6:.0f} million of them of the Kronecker-factored form.",
    ]


def damages(files: Files) -> list[str]:
    """Damaged files."""
    if "damaged_files" not in files:
        return []
    content = files["damaged_files"]
    rows = [
        [
            kind,
            str(part["files"]),
            *(str(part["outcomes"].get(o, 0)) for o in ("refused", "read")),
            str(len(part["failures"])),
        ]
        for kind, part in content["parts"].items()
    ]
    return [
        "Files cut, with flipped bits, other tensors, shapes, types and sizes, without keys, or with a pipe in their "
        "place. Right is: refused in one line that names the file and says what to do; or read with the good file's "
        "content bit for bit, or with what was written where a file without a checksum is in order.",
        made([content], "python benchmarks/damaged_files.py --json docs/results/damaged_files.json"),
        _measure.table(["", "files", "refused", "read right", "not handled"], rows),
    ]


def kills(files: Files) -> list[str]:
    """Runs that were killed."""
    if "killed_runs" not in files:
        return []
    content = files["killed_runs"]
    moments = collections.Counter((run["signal"], moment) for run in content["runs"] for moment in run["moments"])
    bad = sum(bool(run["differs"]) for run in content["runs"])
    return [
        "Runs that are ended at random moments and resumed, some of them twice. Right is: the `metrics.csv` (without "
        "the speed), the comparison (without seconds), and all that the checkpoints hold, bit for bit as in a run that "
        "nobody ended.",
        made([content], "python benchmarks/killed_runs.py --json docs/results/killed_runs.json"),
        _measure.table(["signal", "moment", "times"], [[*key, str(n)] for key, n in sorted(moments.items())]),
        f"{len(content['runs'])} runs, {bad} of them not as the one that nobody ended.",
    ]


def processes(files: Files) -> list[str]:
    """What several processes cost."""
    if "scaling" not in files:
        return []
    content = files["scaling"]
    return [
        "Exchanges between two processes of one machine, in wall-clock time; draws (of one problem and pair) and "
        "windows, in CPU time of one thread. Median (minimum – maximum). [scaling.md](scaling.md) says what follows.",
        made([content], "python benchmarks/scaling.py --json docs/results/scaling.json"),
        scaling.tables(content),
    ]


def speed(files: Files) -> list[str]:
    """Time and memory: whatever `run.py` has measured."""
    parts: list[str] = []
    for content in (content for content in files.values() if "groups" in content):
        repetitions = content["settings"]["repetitions"]
        parts += [
            f"Median (minimum – maximum) of {repetitions} repetitions in turns. Speeds of one machine say little of "
            "another; ratios are of the same repetition.",
            made([content], "python benchmarks/run.py --json docs/results/benchmarks.json"),
        ]
        for name, group in content["groups"].items():
            parts += [f"### {name}", run.markdown(name, group)]
            slower = [text for entry in group["entries"] if (text := _worse(entry))]
            if slower:
                parts.append(f"**Where it loses**: {'; '.join(slower)}.")
    return parts


OURS = ("port_hamiltonian", "plain", "kronecker", "compile=", "processes, 2")


def _worse(entry: Mapping[str, Any]) -> str:
    """Where one of ours is worse than its reference."""
    if not entry["name"].startswith(OURS) or not entry["ratios"]:
        return ""
    reference, ratios = next(iter(entry["ratios"].items()))
    worse = ratios["median"] > 1 if entry["better"] == "lower" else ratios["median"] < 1
    return f"{entry['name']}, {_measure.number(ratios['median'])} times {reference}" if worse else ""


SECTIONS: dict[str, Callable[[Files], list[str]]] = {
    "Tasks that the shipped weights never saw": _suite_tables.section,
    "The same tasks, all under a schedule": functools.partial(_suite_tables.section, key="generalise_scheduled"),
    "Whole trainings": functools.partial(_suite_tables.section, key="jobs_test"),
    "Quadratics": _compared.quadratics,
    "MNIST": _compared.mnist,
    "Size of the network": sizes,
    "Ten thousand steps": long_runs,
    "Ten thousand steps in a user's loop": loops,
    "Small transformers": transformers,
    "Rastrigin's function": landscape,
    "Bias and variance of the estimators": bias,
    "The guarantee, attacked": attacks,
    "Damaged files": damages,
    "Killed runs": kills,
    "Processes": processes,
    "Time and memory": speed,
    "On a GPU": _gpu_tables.section,
}


def page(files: Files) -> str:
    """docs/results.md; a section whose file is missing is left out."""
    parts = [INTRODUCTION]
    for title, section in SECTIONS.items():
        if found := section(files):
            parts += [f"## {title}", *map(_wrapped, found)]
    return "\n\n".join(parts) + "\n"


def _wrapped(part: str) -> str:
    """Prose in lines of 120; tables, headings, lists, images and commands as they are."""
    if "\n" in part or part.startswith(("#", "|", "!", "-", "Made by")):
        return part
    return textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False)


def readme_rows(files: Files) -> list[list[str]]:
    """What README says in numbers: five rows, the last two where ours are worst."""
    return [_compared.readme_row(files["shipped_mnist_relu_100"]), *_suite_tables.readme_rows(files["generalise"])]


def readme_table(files: Files) -> str:
    """`readme_rows` with a header."""
    return _measure.table(["shipped weights, untuned", "Kronecker-factored", "plain"], readme_rows(files))


def readme(text: str, files: Files) -> str:
    """README with its rows made anew; as it is where it has no place for them."""
    return re.sub(f"(?<={START}\n).*?(?={END})", lambda _: f"\n{readme_table(files)}\n\n", text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or compare them with what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args(argv)
    files = load(ROOT / "docs" / "results")
    path = ROOT / "README.md"
    pages = {path: readme(path.read_text(), files), ROOT / "docs" / "results.md": page(files)}
    if arguments.readme:
        print(readme_table(files))
        return 0
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if arguments.check:
            print(f"{path.relative_to(ROOT)}: is not what the result files say; run python benchmarks/tables.py")
        else:
            path.write_text(pages[path])
            print(f"written: {path.relative_to(ROOT)}")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())

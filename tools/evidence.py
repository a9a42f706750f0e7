"""Carry out every study of the evidence, each a few sweeps, and write one page of results; the same command goes on.

Results are kept in evidence.json beside the page. Sweeps that it has are not carried out again, even if their runs are gone.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tyro
from PIL import Image

from cli import console
from cli.jobs import Job, side_by_side
from diffusion.data.products import marked
from diffusion.files import read_json, whole_file, write_json
from lbm_warp.checks import InputError, check_name

# Columns of the tables: how a number is taken from metrics.json (None if it is not there), and how it is written.
COLUMNS: Mapping[str, tuple[Callable[[Mapping[str, Any]], float | None], str]] = {
    "samples": (lambda report: report["scores"]["samples"], ",d"),
    "Frechet distance": (lambda report: report["scores"]["frechet_distance"], ".1f"),
    "precision": (lambda report: report["scores"]["precision"], ".2f"),
    "recall": (lambda report: report["scores"]["recall"], ".2f"),
    "density": (lambda report: report["scores"]["density"], ".2f"),
    "coverage": (lambda report: report["scores"]["coverage"], ".2f"),
    "nearer to learned": (lambda report: report.get("memorisation"), ".3f"),
    "bits a dimension": (lambda report: report.get("likelihood", {}).get("bits_per_dimension"), ".3f"),
    "calibration error": (lambda report: _mean([ranks["error"] for ranks in report.get("calibration", ())]), ".2f"),
}
PLAIN = tuple(COLUMNS)[1:6]
ABOUT = """# Evidence

What was trained, for how many images, and how it was scored stands in the command lines. Everything else is equal within a
section: network, batch, the pictures to learn (those of even number) and to compare with (those of odd number). Numbers are means
and standard deviations over the seeds. *Floor*: one half of the real pictures as samples of the other. *Nearer to learned*: share
of samples whose nearest picture is one that was learned; 0.5 means that none is known by heart. *Bits a dimension*: upper bound of
the negative log-likelihood of pictures that were not learned. *Calibration error*: by how much the ranks of pictures among their
restorations differ from uniform ones, beyond chance, in the mean of three levels; 0 is best. All scores are in evidence.json."""
WIDEST = 1400  # pictures of the page [pixels]
STORE = "evidence.json"
# Of metrics.json, what it keeps.
KEPT = ("scores", "floor", "memorisation", "likelihood", "calibration")


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


class Study(NamedTuple):
    """A question, and the sweeps that answer it."""

    question: str
    common: str
    """Options of cli.sweep that all of them share."""
    sweeps: Mapping[str, str]
    """The other options of each, by its name: its folder, and with ``named`` the name of its rows."""
    named: bool = False
    """Whether rows are called after their sweep, because process and Peclet number do not tell them apart."""
    columns: tuple[str, ...] = PLAIN
    shared: Mapping[str, tuple[str, str, tuple[float, ...]]] = MappingProxyType({})
    """More rows, by their name: those of a sweep of another study at some Peclet numbers."""

    def command(self, sweep: str) -> str:
        """Command line of a sweep, without how and where it is carried out."""
        return f"python -m cli.sweep {self.common} {self.sweeps[sweep]}"


# Sampling noise of the stepwise processes was chosen of 1, 1.25, 1.5 and 2 on the other half, as were the learning rates.
_STEPWISE = "--sigma-max 0.5 --sampling-noise"
_FASHION = "--data fashion-mnist --preset digits --size 28"
_EDM_LEVELS = "--log-mean -1.2 --log-deviation 1.2"
# One switch of the recipe for large sets at a time, beside a plain run.
_RECIPE = {
    "plain": "",
    "augmented, told": "--augment 0.12",
    "learned weighting": "--weighting learned",
    "dropout": "--network.dropout 0.1",
    "decay": "--decay 0.5",
    "EMA by half-life": "--ema-half-life 500000",
    "batch 128": "--batch 128 --rate-batch 64",
}
# fluid as it was before its network saw the filter's estimates.
_EARLIER = f"--network-input image {_EDM_LEVELS}"
STUDIES = {
    "digits": Study(
        "Which process generates best at equal training? Digits, 16 x 16",
        "--data digits --images 40000 --seeds 5",
        {
            "fluid": "--process fluid --peclet 0 4 --num 2694",
            "others": "--process ddpm blurring edm --peclet 0 --num 2694",
            "soft": "--process soft --peclet 0 --learning-rate 2e-3 --num 2694",
            "ihd": f"--process ihd --peclet 0 {_STEPWISE} 2 --num 450",
            "beyond-blur": f"--process beyond-blur --peclet 0.1 {_STEPWISE} 2 --num 450",
            "structured-noise": f"--process structured-noise --peclet 0.1 {_STEPWISE} 2 --num 450",
            "curl": f"--process beyond-blur-curl --peclet 2 {_STEPWISE} 2 --num 450",
            "frozen": f"--process beyond-blur-frozen structured-noise-frozen --peclet 0.1 {_STEPWISE} 1.25 --num 450",
            "cold": "--process cold --peclet 0 --num 450",
            "ddpm-1000": "--process ddpm-1000 --peclet 0 --num 450",
        },
        columns=("samples", *PLAIN),
    ),
    "fashion-mnist": Study(
        "And on photographs? Fashion-MNIST, 28 x 28",
        f"{_FASHION} --images 40000 --seeds 3",
        {
            "fluid": "--process fluid --peclet 0 4 --num 1000 --likelihood --calibration",
            "ddpm": "--process ddpm --peclet 0 --num 1000 --likelihood --calibration",
            "blurring": "--process blurring --peclet 0 --num 1000 --likelihood --calibration",
            "edm": "--process edm --peclet 0 --num 1000",
            "soft": "--process soft --peclet 0 --learning-rate 2e-3 --num 1000",
            "ihd": f"--process ihd --peclet 0 {_STEPWISE} 2 --num 450",
            "beyond-blur": f"--process beyond-blur --peclet 0.1 {_STEPWISE} 2 --num 450",
            "frozen": f"--process beyond-blur-frozen structured-noise-frozen --peclet 0.1 {_STEPWISE} 1.25 --num 450",
            "structured-noise": f"--process structured-noise --peclet 0.1 {_STEPWISE} 2 --num 450",
            "curl": f"--process beyond-blur-curl --peclet 2 {_STEPWISE} 2 --num 450",
            "cold": "--process cold --peclet 0 --num 450",
        },
        columns=("samples", *PLAIN, "bits a dimension", "calibration error"),
    ),
    "digits-input": Study(
        "What should the network of fluid see, and at which levels of noise should it learn? Digits",
        "--data digits --images 40000 --seeds 5 --process fluid --peclet 0 4 --num 2694",
        {"image, EDM's levels": _EARLIER},
        named=True,
        shared={"estimates, wider levels": ("digits", "fluid", (0, 4))},
    ),
    "fashion-mnist-input": Study(
        "What should the network of fluid see, and at which levels of noise should it learn? Fashion-MNIST",
        f"{_FASHION} --images 40000 --seeds 3 --process fluid --peclet 0 --num 1000 --likelihood",
        {"image, EDM's levels": _EARLIER, "estimates, EDM's levels": _EDM_LEVELS},
        named=True,
        columns=(*PLAIN, "bits a dimension"),
        shared={"estimates, wider levels": ("fashion-mnist", "fluid", (0,))},
    ),
    "fashion-mnist-length": Study(
        "Does the order change with three times the training? Fashion-MNIST",
        f"{_FASHION} --images 120000 --seeds 3 --num 1000 --likelihood --calibration",
        {"fluid 120k": "--process fluid --peclet 0 4", "ddpm 120k": "--process ddpm --peclet 0"},
        named=True,
        columns=(*PLAIN, "bits a dimension", "calibration error"),
        shared={"fluid 40k": ("fashion-mnist", "fluid", (0, 4)), "ddpm 40k": ("fashion-mnist", "ddpm", (0,))},
    ),
    "fashion-mnist-ends": Study(
        "Should the network be told which pixels may be exactly black or white? Fashion-MNIST",
        f"{_FASHION} --seeds 3 --num 1000 --likelihood --calibration --process fluid --peclet 0 --tell-ends",
        {"told 40k": "--images 40000", "told 120k": "--images 120000"},
        named=True,
        columns=(*PLAIN, "bits a dimension", "calibration error"),
        shared={
            "not told 40k": ("fashion-mnist", "fluid", (0,)),
            "not told 120k": ("fashion-mnist-length", "fluid 120k", (0,)),
            "ddpm 40k": ("fashion-mnist", "ddpm", (0,)),
            "ddpm 120k": ("fashion-mnist-length", "ddpm 120k", (0,)),
        },
    ),
    "digits-ends": Study(
        "Should the network be told which pixels may be exactly black or white? Digits",
        "--data digits --seeds 3 --num 2694 --likelihood --calibration --peclet 0",
        {
            f"{name} {images // 1000}k": f"--images {images} {options}"
            for images in (40_000, 120_000)
            for name, options in (
                ("told", "--process fluid --tell-ends"),
                ("not told", "--process fluid --no-tell-ends"),
                ("ddpm", "--process ddpm"),
            )
        },
        named=True,
        columns=(*PLAIN, "bits a dimension", "calibration error"),
    ),
    **{
        f"recipe-{data}": Study(
            f"Which parts of the recipe for large sets help in small? {title}, 16 x 16",
            f"--data {data} --preset digits --size 16 --images 20000 --seeds 3 --num 500 --process fluid --peclet 0",
            {name: options if name == "decay" else f"--decay 0 {options}".rstrip() for name, options in _RECIPE.items()},
            named=True,
        )
        for data, title in (("fashion-mnist", "Fashion-MNIST"), ("emoji", "Emoji in colour"))
    },
    "flow": Study(
        "How strong may the flow be? From none to where it fails",
        "--data digits --images 40000 --seeds 2",
        {"fluid": "--process fluid --peclet 0 1 2 4 8 16 32"},
    ),
    "told": Study(
        "May it be stronger if the network is told which flow acts? Digits",
        "--data digits --images 40000 --seeds 2 --process fluid",
        {"told": "--peclet 4 8 16 32 --tell-flow"},
        named=True,
        shared={"not told": ("flow", "fluid", (0, 4, 8, 16, 32))},
    ),
    "fashion-mnist-told": Study(
        "May it be stronger if the network is told which flow acts? Fashion-MNIST",
        f"{_FASHION} --images 40000 --seeds 3 --process fluid --num 1000 --likelihood",
        {"told": "--peclet 4 16 --tell-flow"},
        named=True,
        columns=(*PLAIN, "bits a dimension"),
        shared={"not told": ("fashion-mnist", "fluid", (0, 4))},
    ),
    "spectra": Study(
        "Which spectrum of the noise, with and without transport?",
        "--data digits --images 40000 --seeds 2 --process fluid --peclet 0 4",
        {"blue": "--noise-exponent -0.25", "red": "--noise-exponent 0.5"},
        named=True,
        shared={"white": ("flow", "fluid", (0, 4))},
    ),
    "calls": Study(
        "How many network calls does a sample need?",
        "--data digits --images 40000 --network-calls 10 20 40",
        {"fluid": "--process fluid --peclet 0 4", "others": "--process ddpm edm --peclet 0"},
    ),
    "length": Study(
        "Does the order change with longer training?",
        "--data digits --seeds 2",
        {
            f"{process} {images // 1000}k": f"--process {process} --peclet {peclet} --images {images}"
            for images in (20_000, 40_000, 120_000)
            for process, peclet in (("fluid", "0 4"), ("ddpm", "0"))
            if (process, images) != ("fluid", 40_000)
        },
        named=True,
        shared={"fluid 40k": ("flow", "fluid", (0, 4))},
    ),
    "few-pictures": Study(
        "Few pictures and long training: is the flow an augmentation?",
        f"--data digits --images 400000 --process fluid --likelihood {_EARLIER}",
        {
            "no flow": "--peclet 0",
            "flow, not told": "--peclet 4",
            "flow, told": "--peclet 4 --tell-flow",
            "mirrored": "--peclet 0 --flip",
        },
        named=True,
        columns=(*PLAIN, "nearer to learned", "bits a dimension"),
    ),
}


@dataclass(frozen=True)
class Evidence:
    """Options of ``python -m tools.evidence``."""

    only: tuple[str, ...] = ()
    """Studies to carry out, by name; all by default."""
    jobs: int = 1
    """Runs at a time, as for cli.sweep."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    runs: Path = Path("sweeps")
    """Folder of the runs: one for each study, in it one for each sweep."""
    out: Path = Path("outputs/evidence")
    """Folder of the page, README.md, with its pictures and the results as JSON."""
    page_only: bool = False
    """Write the page of what there is by now, also of sweeps under way, and carry out nothing."""
    dry_run: bool = False
    """Print the command lines, and do nothing."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        console.check_at_least(self, jobs=1)
        for name in self.only:
            check_name("study", name, STUDIES)

    def place(self, study: str, sweep: str) -> Path:
        """Folder of a sweep."""
        return self.runs / study / sweep.replace(", ", "-").replace(" ", "-").replace("'", "")

    def command(self, study: str, sweep: str) -> str:
        """Command line of a sweep."""
        return f"{STUDIES[study].command(sweep)} --jobs {self.jobs} --out {shlex.quote(str(self.place(study, sweep)))}"


def run(options: Evidence) -> None:
    """Carry out the sweeps one after the other; write the page after each."""
    options.validate()
    sweeps = [(name, sweep) for name in options.only or STUDIES for sweep in STUDIES[name].sweeps]
    if options.dry_run:
        print("\n".join(options.command(name, sweep) for name, sweep in sweeps))
        return
    failed, there = [], stored(options)
    for name, sweep in [] if options.page_only else sweeps:
        if (result := there[name].get(sweep)) and result["finished"]:
            print(f"{name}: {sweep}: in {options.out / STORE}")
            continue
        print(options.command(name, sweep), flush=True)
        job = Job(f"{name}: {sweep}", [shlex.split(options.command(name, sweep))[1:]], options.place(name, sweep) / "log.txt")
        ended = list(side_by_side([job], [options.device]))
        failed += [job.name for job, problem in ended if problem]
        write_page(options)
    print(f"wrote {write_page(options)}")
    if failed:
        raise InputError(f"{len(failed)} of {len(sweeps)} sweeps failed ({', '.join(failed)}); the same command tries again")


Results = dict[str, dict[str, dict[str, Any]]]
"""By study and sweep: the command, whether it is finished, the rows and the pictures."""


class Row(NamedTuple):
    """A row of a table."""

    name: str
    peclet: float
    reports: list[dict[str, Any]]
    """Of each finished run, in the order of the seeds: what is kept of metrics.json."""


def stored(options: Evidence) -> Results:
    """The results that are kept beside the page, of sweeps that are still defined as they were then."""
    path = options.out / STORE
    results = read_json(path) if path.is_file() else {}
    return {
        name: {
            sweep: results[name][sweep]
            for sweep in study.sweeps
            if results.get(name, {}).get(sweep, {}).get("command") == study.command(sweep)
        }
        for name, study in STUDIES.items()
    }


def collected(options: Evidence) -> Results:
    """The results that are kept, and those of runs since then, whose pictures are copied."""
    results = stored(options)
    for name, study in STUDIES.items():
        for sweep in study.sweeps:
            place = options.place(name, sweep)
            if results[name].get(sweep, {}).get("finished") or not (place / "sweep.md").is_file():
                continue
            pictures = {picture: "-".join((name, place.name, *picture.relative_to(place).parts)) for picture in pictures_of(place)}
            for picture, copied in pictures.items():
                shrink(picture, options.out / copied)
            found = read_json(place / "sweep.json")["finished"]
            rows = [row._asdict() for row in rows_of(place, sweep if study.named else None)]
            results[name][sweep] = {
                "command": study.command(sweep),
                "finished": found,
                "rows": rows,
                "pictures": [*pictures.values()],
            }
    return results


def write_page(options: Evidence) -> Path:
    """Write the page of what there is by now, its pictures, and evidence.json; returns the page."""
    results, text = collected(options), [ABOUT]
    write_json(options.out / STORE, results)
    for name, study in STUDIES.items():
        if not (rows := rows_of_study(results, name)):
            continue
        text += [f"## {study.question}", table(rows, study.columns)]
        text += [f"![{Path(picture).stem}]({picture})" for result in results[name].values() for picture in result["pictures"]]
        lines = [f"    {options.command(name, sweep)}" for sweep in results[name]]
        lines += [f"    # {called}: a row of '{STUDIES[other].question}'" for called, (other, *_) in study.shared.items()]
        text += ["Made by", "\n".join(lines)]
    page = options.out / "README.md"
    with whole_file(page) as aside:
        aside.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return page


def rows_of_study(results: Results, name: str) -> list[Row]:
    """The rows of a study: its own, and those that it shares with others; none before it has one of its own."""
    own = [Row(**row) for result in results[name].values() for row in result["rows"]]
    shared = [
        Row(**row)._replace(name=called)
        for called, (other, sweep, peclets) in STUDIES[name].shared.items()
        for row in results[other].get(sweep, {"rows": ()})["rows"]
        if row["peclet"] in peclets
    ]
    return own + shared if own or not STUDIES[name].sweeps else []


def rows_of(place: Path, name: str | None) -> list[Row]:
    """The rows of a sweep, called after their process, or by this name."""
    rows = {}
    for point in read_json(place / "sweep.json")["points"]:
        if point["runs"]:
            called = name or point["runs"][0].partition("-Pe")[0]
            reports = [read_json(place / run / "metrics.json") for run in point["runs"]]
            kept = [{part: report[part] for part in KEPT if part in report} for report in reports]
            rows[called, point["peclet"]] = Row(called, point["peclet"], kept)
    return list(rows.values())


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Markdown: mean and standard deviation over the seeds, and the floor for each number of samples."""
    lines = [["", "Pe", "seeds", *columns], ["---", *["---:"] * (2 + len(columns))]]
    floors = {}
    for row in rows:
        lines.append([row.name, f"{row.peclet:g}", str(len(row.reports)), *(cell(row.reports, column) for column in columns)])
        floors[row.reports[0]["floor"]["samples"]] = [{"scores": row.reports[0]["floor"]}]
    lines += [["floor", "", "", *(cell(floor, column) for column in columns)] for floor in floors.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(reports: Sequence[Mapping[str, Any]], column: str) -> str:
    """Mean and standard deviation of a number over the seeds; empty if no report has it."""
    take, form = COLUMNS[column]
    values = [value for report in reports if (value := take(report)) is not None]
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 and form.endswith("f") else ""
    return f"{np.mean(values):{form}}{spread}" if form.endswith("f") else f"{values[0]:{form}}"


def pictures_of(place: Path) -> list[Path]:
    """The figures of a sweep: curves where there are three values or more, and samples."""
    values = {point["peclet"] for point in read_json(place / "sweep.json")["points"]}
    names = ["sweep.png"] * (len(values) > 2) + ["network-calls.png", "samples.png"]
    return [place / name for name in names if (place / name).is_file()] + sorted(place.glob("*/metrics-calibration.png"))


def shrink(picture: Path, copied: Path) -> None:
    """Copy a picture for the page, at most 1,400 pixels wide and of 256 colours."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    image.thumbnail((WIDEST, WIDEST))
    with whole_file(copied) as aside:
        image.quantize(256).save(aside, optimize=True, pnginfo=marked("figure"))


main = partial(console.run, "evidence", run, partial(tyro.cli, Evidence), package="tools")


if __name__ == "__main__":
    main()

"""What a sweep found: as JSON, as a table, as plots with error bars, as samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cli import figures
from cli.evaluate import distance_name
from diffusion.data.dataset import OTHER_HALF, whole_and_half
from diffusion.files import whole_file, write_json
from diffusion.size import Size

SHOWN = 12  # samples of a run in samples.png


class Score(NamedTuple):
    """A column of the table: its title, how numbers are written, whether more is better."""

    title: str
    form: str
    more_is_better: bool


SCORES = {
    "frechet_distance": Score("Frechet distance", ".2f", False),
    "kernel_distance": Score("KID", ".3g", False),
    "precision": Score("precision", ".3f", True),
    "recall": Score("recall", ".3f", True),
    "density": Score("density", ".3f", True),
    "coverage": Score("coverage", ".3f", True),
    "colour_drift": Score("colour drift [1/255]", ".2f", False),
}


class Point(NamedTuple):
    """What was found for a process at a Peclet number."""

    process: str
    """Whose curve it is on."""
    called: str
    """The process that its runs are called after: another one at Pe = 0, where several processes are the same."""
    peclet: float
    reports: Mapping[Path, Mapping[str, Any]]
    """What metrics.json holds by run folder, in the order of the seeds; of the runs that are finished."""
    by_calls: Mapping[int, Mapping[Path, Mapping[str, Any]]]
    """The same for other numbers of sampling steps."""

    def values(self, score: str) -> list[float]:
        """A score of every seed."""
        return [report["scores"][score] for report in self.reports.values()]

    def mean(self, score: str) -> float | None:
        """Mean of a score over the seeds."""
        return float(np.mean(self.values(score))) if self.reports else None

    def deviation(self, score: str) -> float | None:
        """Standard deviation of a score over the seeds, of which it takes two."""
        return float(np.std(self.values(score), ddof=1)) if len(self.reports) > 1 else None

    def in_steps(self, calls: int) -> Point:
        """The same point for another number of sampling steps."""
        return self._replace(reports=self.by_calls[calls])

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation of all scores."""
        return {
            "mean": {score: self.mean(score) for score in SCORES},
            "standard_deviation": {score: self.deviation(score) for score in SCORES},
        }


def write(folder: Path, settings: Mapping[str, Any], points: Sequence[Point], runs: int) -> list[Path]:
    """Write sweep.json, and if any run is finished sweep.md, sweep.png, samples.png and network-calls.png; returns the files.

    Args:
        folder: where to.
        settings: what the runs have in common: data, size, training and more.
        points: what is known by now.
        runs: number of runs when all are finished.
    """
    reports = {run: report for point in points for run, report in point.reports.items()}
    scoring = next(({name: report[name] for name in ("reference", "features", "k", "floor")} for report in reports.values()), None)
    found = {
        "finished": len(reports) == runs,
        "settings": settings,
        "scoring": scoring,
        "runs": {run.name: report["scores"] for run, report in reports.items()},
        "points": [
            {
                "process": point.process,
                "peclet": point.peclet,
                "runs": [run.name for run in point.reports],
                **point.summary(),
                **({"by_network_calls": {n: point.in_steps(n).summary() for n in point.by_calls}} if point.by_calls else {}),
            }
            for point in points
        ],
    }
    written = [folder / name for name in ("sweep.json", "sweep.md", "sweep.png", "samples.png")]
    write_json(written[0], found)
    if scoring is None:
        return written[:1]
    points, size = [point for point in points if point.reports], Size.of(settings["size"])
    title = f"{whole_and_half(settings['data'])[0]}, {size.height} x {size.width} pixels"
    about = caption(settings, scoring, points, len(reports), runs)
    with whole_file(written[1]) as aside:
        aside.write_text(f"# {title}\n\n{table(points, scoring)}\n\n{about}\n", encoding="utf-8", errors="backslashreplace")
    figures.save_figure(written[2], figures.sweep_curves(panels(points, scoring), title, about, "Peclet number"))
    if any(point.in_steps(calls).reports for point in points for calls in point.by_calls):
        written.append(folder / "network-calls.png")
        figures.save_figure(written[-1], figures.sweep_curves(call_panels(points, scoring), title, about, "network calls a sample"))
    first = {f"{point.called}\nPe = {point.peclet:g}": next(iter(point.reports)) for point in points}
    strips = [(name, first_samples(last_grid(run, settings["training"]["images"]), size)) for name, run in first.items()]
    figures.save_figure(written[3], figures.labelled_strips(strips, f"{title}: the same sample numbers of every run"))
    return written


def titles(scoring: Mapping[str, Any]) -> dict[str, str]:
    """What the scores are called."""
    named = {name: score.title for name, score in SCORES.items()}
    return named | {"frechet_distance": distance_name(scoring["features"]["name"], named["frechet_distance"])}


def table(points: Sequence[Point], scoring: Mapping[str, Any]) -> str:
    """The scores in Markdown, a row for every value: mean and standard deviation over the seeds."""
    rows = [["process", "Pe", *titles(scoring).values()], ["---", *["---:"] * (1 + len(SCORES))]]
    for point in {(point.called, point.peclet): point for point in points}.values():
        row = [point.called, f"{point.peclet:g}"]
        for name, score in SCORES.items():
            deviation = point.deviation(name)
            spread = "" if deviation is None else f" ± {deviation:{score.form}}"
            row.append(f"{point.mean(name):{score.form}}{spread}")
        rows.append(row)
    rows.append(["floor", "", *(f"{scoring['floor'][name]:{score.form}}" for name, score in SCORES.items())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def panels(points: Sequence[Point], scoring: Mapping[str, Any]) -> list[figures.SweepPanel]:
    """A panel for every score."""
    called = [(point.called, point.peclet) for point in points]
    shared = {value for name, value in called if called.count((name, value)) > 1}

    def curve(process: str, score: str) -> dict[float, list[float]]:
        return {point.peclet: point.values(score) for point in points if point.process == process}

    def panel(score: str, title: str) -> figures.SweepPanel:
        curves = {point.process: curve(point.process, score) for point in points}
        return figures.SweepPanel(title, SCORES[score].more_is_better, scoring["floor"][score], curves, shared)

    return [panel(score, title) for score, title in titles(scoring).items()]


def call_panels(points: Sequence[Point], scoring: Mapping[str, Any]) -> list[figures.SweepPanel]:
    """A panel for every score, against the number of sampling steps; a curve for every process and Peclet number."""
    several = len({point.peclet for point in points}) > 1
    curves = {(point.called, point.peclet): point for point in points}

    def curve(point: Point, score: str) -> dict[float, list[float]]:
        return {calls: values for calls in point.by_calls if (values := point.in_steps(calls).values(score))}

    def panel(score: str, title: str) -> figures.SweepPanel:
        named = {f"{name}, Pe = {peclet:g}" if several else name: curve(point, score) for (name, peclet), point in curves.items()}
        return figures.SweepPanel(title, SCORES[score].more_is_better, scoring["floor"][score], named, ())

    return [panel(score, title) for score, title in titles(scoring).items()]


def caption(settings: Mapping[str, Any], scoring: Mapping[str, Any], points: Sequence[Point], finished: int, runs: int) -> str:
    """What one has to know to read the numbers."""
    half = whole_and_half(settings["data"])[1]
    report = next(iter(points[0].reports.values()))
    seeds = max(len(point.reports) for point in points)
    still = list(dict.fromkeys(point.process for point in points if point.process != point.called))
    held_out = f"the {report['scores']['reference']:,} pictures" + ("" if half == "all" else f" of {OTHER_HALF[half]} number")
    sentences = [
        f"Trained for {settings['training']['images']:,} images on the pictures{'' if half == 'all' else f' of {half} number'};",
        f"{report['scores']['samples']:,} samples of every run scored against {held_out}",
        f"({scoring['features']['name']} features, k = {scoring['k']}).",
        f"Mean and standard deviation over {seeds} seeds." if seeds > 1 else "One seed.",
        "Floor: real pictures, one half as samples of the other.",
        *([f"At Pe = 0 these processes are ihd: {', '.join(still)}."] if still else []),
        *([f"Finished: {finished} of {runs} runs."] if finished < runs else []),
    ]
    return " ".join(sentences)


def last_grid(run: Path, images: int) -> Path:
    """The grid of samples that cli.train writes at the end of a training of so many images."""
    return run / "samples" / f"{images:09d}.png"


def first_samples(grid: Path, size: Size) -> np.ndarray:
    """The first twelve samples of a grid that cli.train wrote, side by side, uint8 [H, W, 3]."""
    with Image.open(grid) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    # As diffusion.training.observers.grid draws it: samples enlarged to 64 pixels, with gaps of 4.
    height, width = (side * max(1, -(-64 // size.shorter)) + 4 for side in size)
    places = [divmod(number, sheet.shape[1] // width) for number in range(SHOWN)]
    cells = [sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] for row, column in places]
    return np.hstack(cells)

"""Score the samples of a run, or of any other model, against real pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import distributed

from cli import console, figures
from diffusion.data.products import kind_of_file
from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.scoring import evaluate
from diffusion.files import read_json, write_json
from diffusion.size import Size
from lbm_warp.checks import InputError, amount

# What a report holds where it is asked for; and how samples are made.
ON_REQUEST = ("likelihood", "calibration", "variance", "restoration")
SAMPLED = ("seed", "steps", "sampling_noise")
LEARNED = {"all": " that it was trained on", "half": ", half of which it was trained on"}


@dataclass(frozen=True)
class Evaluate:
    """Options of ``python -m cli.evaluate``."""

    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    """A run (its folder, owner/name on the Hugging Face Hub, or digits, fashion or emoji, which are included), or samples of any
    model: a folder or .zip of images, or an .npz file (arr_0, uint8 [N, H, W, C])."""
    data: str | None = None
    """Real pictures to compare with, named as for cli.train; by default those that the run was trained on."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; under torchrun or accelerate launch each process takes its own."""
    out: Path | None = None
    """JSON file for the results; by default metrics.json in a run folder, else outputs/<name>-metrics.json."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=EvaluationConfig)


def run(options: Evaluate) -> None:
    """Score the samples, print the scores, write them down."""
    place = Path(options.samples)
    usual = place / "metrics.json" if (place / "config.json").exists() else Path("outputs") / f"{place.stem}-metrics.json"
    console.check_file(out := options.out or usual)
    report = evaluate(options.samples, options.data, options.evaluation, device=console.pick_device(options.device))
    if distributed.is_initialized():
        # A process that ends with its group open may abort.
        distributed.destroy_process_group()
    if report is None:
        return
    title = show(options.samples, report)
    new, picture = "calibration" in report, out.with_name(f"{out.stem}-calibration.png")
    if earlier := earlier_results(out, report):
        print(f"kept of an earlier evaluation of the same model: {', '.join(earlier['earlier'])}")
        report |= earlier
    if "calibration" not in report and picture.is_file() and kind_of_file(picture) == "figure":
        picture.unlink()  # of another model
    write_json(out, report)
    print(f"wrote {out}")
    if new:
        figures.save_figure(picture, figures.rank_histograms(report["calibration"], f"{title}: ranks among restorations"))
        print(f"wrote {picture}")


def earlier_results(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier report in this file has beyond a new one of the same model and the same pictures; "earlier" says, by the name
    of each result, how samples were made."""

    def subject(of: Mapping[str, Any]) -> list[Any]:
        return [of["samples"]["model"], *(of[name] for name in ("reference", "size", "channels"))]

    try:
        there = read_json(out)
        kept = [name for name in ON_REQUEST if name in there and name not in report]
        if subject(there) != subject(report):
            if kept:
                print(f"not kept of an earlier evaluation, with another model, pictures or features: {', '.join(kept)}")
            return {}
        how = {name: there["samples"][name] for name in SAMPLED}
        how_each = {name: there.get("earlier", {}).get(name, how) for name in kept}
    except (InputError, FileNotFoundError, KeyError, TypeError, AttributeError):  # none, another file, or samples of no run
        return {}
    return {name: there[name] for name in kept} | {"earlier": how_each} if kept else {}


def show(samples: str, report: Mapping[str, Any]) -> str:
    """Print what was found out; returns the title."""
    reference, features = report["reference"], report["features"]["name"]
    height, width = Size.of(report["size"])
    title = f"{samples} against {reference['data']} ({reference['split']}), {height} x {width} px"
    print(f"{title}, {features} features, k = {report['k']}")
    print(table({"samples": report["scores"], "floor": report["floor"]}, distance_name(features, "FD")))
    print("floor: half of the real pictures as samples of the other half; drift and spread: of the mean colour, drift in 1/255")
    if shown := report.get("intervals"):
        ends = ", ".join(f"{name.replace('_', ' ')} {low:.3g} to {high:.3g}" for name, (low, high) in shown.items())
        print(f"95 % intervals of the samples: {ends}")
    if report.get("learned") in ("all", "half"):
        which = "these pictures" if report["learned"] == "all" else "half of these pictures"
        print(f"the run was trained on {which}; it may do worse on new ones (cli.train --split even keeps half for this)")
    if "memorisation" in report:
        share = f"{100 * report['memorisation']:.1f} % of samples"
        print(f"{share} are nearer to a picture that was learned than to any other (50 %: none is known by heart)")
    if bound := report.get("likelihood"):
        bits, error = (bound[name] for name in ("bits_per_dimension", "standard_error"))
        of = f"{amount(bound['pictures'], 'picture')}{LEARNED.get(bound['learned'], '')}, {amount(bound['steps'], 'step')}"
        print(f"likelihood: at most {bits:.3f} +- {error:.3f} bits a dimension ({of})")
    for ranks in report.get("calibration", ()):
        level, error, chi_square = (ranks[name] for name in ("level", "error", "chi_square"))
        widths = f"; 90 % of the pixels within {found[-1]:.1f} standard deviations" if (found := ranks["half_widths"]) else ""
        chance = f"chi^2 over its degrees of freedom {chi_square:.2f}"
        print(f"calibration from level {level}: ranks off by {100 * error:.0f} % ({chance}){widths}")
    for degraded in report.get("restoration", ()):
        methods = ", ".join(f"{name} {score['psnr']:.1f} ({score['ssim']:.2f})" for name, score in degraded["methods"].items())
        print(
            f"restoration of blur {degraded['sigma']:.2f} px, noise {degraded['noise']:.3f} (estimated blur off by "
            f"{100 * degraded['sigma_error']:.0f} %), PSNR in dB (SSIM): {methods}"
        )
    for measured, shares in report.get("variance", {}).items():
        parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        print(f"variance of the samples ({measured}): {parts}")
    return title


def distance_name(features: str, other: str) -> str:
    """Name of the Frechet distance between features of this name: FID for Inception's, else ``other``."""
    return "FID" if features == "inception" else other


def table(rows: Mapping[str, Mapping[str, Any]], distance: str) -> str:
    """Scores side by side for a terminal, a row for each of ``rows``."""
    columns = {"images": ("samples", "d"), "reference": ("reference", "d"), distance: ("frechet_distance", ".4g")}
    columns |= {"KID": ("kernel_distance", ".3g"), "sliced W": ("sliced_wasserstein", ".4g")}
    columns |= {share: (share, ".3f") for share in ("precision", "recall", "density", "coverage")}
    columns |= {"drift": ("colour_drift", ".2f"), "spread": ("colour_spread", ".3f")}
    lines = [["", *columns]]
    for name, scores in rows.items():
        cells = {score: "-" if scores[score] is None else f"{scores[score]:{form}}" for score, form in columns.values()}
        cells["kernel_distance"] += f" +- {scores['kernel_distance_error']:.1g}"
        lines.append([name, *cells.values()])
    widths = [max(11, 2 + max(map(len, cells))) for cells in list(zip(*lines, strict=True))[1:]]
    return "\n".join(f"{name:<8}" + "".join(map(str.rjust, cells, widths)) for name, *cells in lines)


# What --help shows; --help-all shows the rest.
COMMON = (
    "--data --num --features --split --seed --steps --likelihood --calibration --variance --restoration --bootstrap --device"
).split()
main = partial(console.run, "evaluate", run, partial(tyro.cli, Evaluate), common=COMMON)


if __name__ == "__main__":
    main()

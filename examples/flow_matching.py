"""Heat dissipation flow matching (Ma et al. 2026), with a flow as well: a path of one's own is five objects."""

from pathlib import Path

import tyro

from cli.render import save_grid
from diffusion import (
    ODE,
    EvaluationConfig,
    FlowAndBlur,
    FlowMatching,
    LinearPath,
    LogitNormal,
    Method,
    Pipeline,
    RunConfig,
    Sine,
    TrainingConfig,
    evaluate,
    open_dataset,
    train,
)


def main(out: Path = Path("runs/flow-matching"), images: int = 40_000, peclet: float = 2.0, scored: int = 64) -> None:
    """Train on half of the digits, sample by the ODE, bound the likelihood of the other half by the change of variables."""
    method = Method(
        operator=FlowAndBlur(peclet=peclet, blur=Sine(0.16), levels=200),
        scales=LinearPath(),
        denoiser=FlowMatching(prediction="clean", loss_in="velocity"),
        density=LogitNormal(),
        sampler=ODE(steps=20),
    )
    digits = open_dataset("digits", split="even")
    config = RunConfig("flow-matching", digits.name, 1, digits.size, method, training=TrainingConfig(images))
    train(config, digits, out)
    pipeline = Pipeline.from_pretrained(out)
    save_grid(out / "samples.png", pipeline.sample(16))
    report = evaluate(pipeline, config=EvaluationConfig(num=scored, likelihood=True))
    assert report is not None
    print("Frechet distance:", report["scores"]["frechet_distance"])
    print("bits a dimension:", report["likelihood"]["bits_per_dimension"])


if __name__ == "__main__":
    tyro.cli(main)

"""The privacy benchmark's figure: held-out loss against epsilon, from its JSON result."""

from pathlib import Path
from typing import Any


def plot(result: dict[str, Any], path: Path) -> None:
    """Mean and standard deviation over seeds at each epsilon, between the public model and training without privacy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses = result["nll"]
    private = sorted((name for name in losses if name != "inf"), key=float)
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    axes.errorbar(
        [float(name) for name in private],
        [losses[name]["mean"] for name in private],
        yerr=[losses[name]["std"] for name in private],
        marker="o",
        capsize=4,
        label="record-level privacy",
    )
    axes.axhline(result["meta"]["config"]["nll_public_model"], color="0.6", linestyle=":", label="public model")
    axes.axhline(losses["inf"]["mean"], color="0.2", linestyle="--", label="without privacy")
    axes.set_xscale("log", base=2)
    axes.set_xticks([float(name) for name in private], private)
    axes.set_xlabel(f"epsilon of the whole run, delta {result['meta']['config']['delta']:g}")
    axes.set_ylabel("held-out nats a token")
    axes.legend(frameon=False)
    figure.savefig(path)
    pyplot.close(figure)

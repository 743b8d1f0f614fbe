"""autoslim demo: the whole job on built-in data."""

import time
from pathlib import Path

import click

TARGETS = ("50%", "30%", "15%")


@click.command()
@click.option("--out", default="autoslim-demo", show_default=True, type=click.Path(path_type=Path), help="Folder of the demo.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
def demo(out, seed):
    """Train a supernet on the digits of scikit-learn, search three budgets, retrain and plot; two to seven minutes on two cores.

    Digits are easy: the demo shows the job and its files, not what a search can gain.
    """
    from autoslim.commands.plot import plot_runs
    from autoslim.commands.retrain import retrain_run
    from autoslim.commands.search import search_run
    from autoslim.commands.train import train_run
    from autoslim.report.tables import align
    from autoslim.spaces import load_space

    started = time.perf_counter()
    say("1/4 training the supernet: one network that runs at every width")
    supernet = out / "supernet"
    train_run(load_space("digits_cnn"), "digits", supernet, seed=seed, device="cpu")
    say(f"2/4 searching channel numbers for {', '.join(TARGETS)} of its multiply-adds")
    found, _ = search_run(supernet, {"macs": TARGETS}, device="cpu")
    say(f"3/4 retraining {len(found)} networks from scratch: the searched ones, and uniform ones of equal cost")
    rows = [("network", "MACs", "params", "supernet estimate", "retrained accuracy")]
    runs = []
    for path, config in found:
        run = out / "retrained" / path.stem
        result = retrain_run(path, "digits", run, seed=seed, device="cpu")
        runs.append(run)
        rows.append(
            (
                f"{config.provenance['kind']:<8} {path.stem.removeprefix('uniform-')}",
                f"{config.cost['macs']:,}",
                f"{config.cost['params']:,}",
                f"{1 - config.estimate['error']:.2%}",
                f"{1 - result['test']['error']:.2%}",
            )
        )
    say("4/4 drawing")
    pictures = {what: out / f"{what}.png" for what in ("spectrum", "channels", "path")}
    for what, picture in pictures.items():
        plot_runs([supernet, *runs] if what == "spectrum" else [supernet], picture, what)
    click.echo(align(rows))
    click.echo(
        f"\nretrained accuracy: {result['test']['images']} test images, one seed; a difference below about one point is noise"
        f"\nconfigurations  {supernet / 'search'}"
        f"\npictures        {', '.join(map(str, pictures.values()))}"
        f"\ntook            {time.perf_counter() - started:.0f} s"
        "\n\nnext, on your own images (DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg):"
        "\n  autoslim train mobilenet_v2_cifar --data folder:DIR --out runs/supernet"
        "\n  autoslim search runs/supernet --flops-target 88M --flops-target 59M --flops-target 28M"
        "\n  autoslim retrain runs/supernet/search/88M.json --data folder:DIR --out runs/88M"
    )


def say(text: str) -> None:
    """Print one line of progress on stderr."""
    click.echo(text, err=True)

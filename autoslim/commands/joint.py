"""Several configurations of one family in one network: S-Nets, and the joint training of found configurations."""

from pathlib import Path

from autoslim.channels.config import ChannelConfig
from autoslim.commands import runs
from autoslim.cost.table import CostTable
from autoslim.errors import ConfigError
from autoslim.files import write_json
from autoslim.search.evaluate import evaluate
from autoslim.slimmable import family
from autoslim.slimmable.materialize import example_input
from autoslim.slimmable.switchable import SwitchableNet, join_configs
from autoslim.training.loop import train_switches
from autoslim.training.recipe import Recipe


def build_switches(configs: dict[str, ChannelConfig], norm: str, system: str) -> SwitchableNet:
    """Build the untrained network of several configurations.

    Raises:
        ConfigError: a configuration does not fit its model, or they are of different networks.
    """
    from autoslim.commands.retrain import supernet_of

    (first, lead), *rest = configs.items()
    for name, config in rest:
        if (config.model, config.grouping, config.input_shape) != (lead.model, lead.grouping, lead.input_shape):
            raise ConfigError(f"{name} is of another network than {first}; train networks of one family jointly")
    net = supernet_of(lead, first)
    table = CostTable(net)
    for name, config in configs.items():
        table.checked(config, name)
    options = {"norm": norm, "share_equal": system == "s-net", **family.group_options(lead.grouping)}
    return join_configs(net, configs, example_input(lead), **options)


def joint_run(configs: dict[str, ChannelConfig], images: runs.Images, out: Path, *, norm: str, recipe: dict, **settings) -> dict:
    """Train configurations jointly on all training images and score each on the test images; returns what result.json holds.

    Args:
        configs: name to configuration.
        settings: `system` ("s-net" or "joint"), `space` (as JSON, where the configurations are a family's own), `data`,
            `seed` and `skip_corrupt`.
    """
    from autoslim.commands.retrain import check_classes

    net = build_switches(configs, norm, settings["system"])
    check_classes(net, next(iter(configs.values())), images, settings["data"])
    switches = {name: config.to_json() for name, config in configs.items()}
    runs.write_run(
        out, "switches", images.normalization(), **settings, switches=switches, norm=norm, recipe=recipe,
        classes=list(images.classes), **images.noted(),
    )  # fmt: skip
    if known := runs.read_result(out, *(("switches", name, part) for name in switches for part in ("test", "cost"))):
        return known
    family.place(net, images.device)
    seed = settings["seed"]
    batches = images.training(images.train, recipe, seed)
    train_switches(net, batches, folder=out, seed=seed, progress=True, recipe=Recipe.of(recipe))
    result = {
        "kind": accuracy_kind(configs),
        "system": settings["system"],
        "norm": norm,
        "switches": score_switches(net, images.scoring(images.test)),
        "seed": seed,
        "epochs": recipe["epochs"],
    }
    write_json(out / "result.json", result)
    return result


def accuracy_kind(switches) -> str:
    """Return what the accuracy of a switch is: one network alone has nothing to share."""
    return "retrained accuracy" if len(switches) == 1 else "jointly trained accuracy"


def score_switches(net: SwitchableNet, images, names=None) -> dict[str, dict]:
    """Return accuracy and cost of switches (of all by default), with the statistics they were trained with."""
    table, before, found = CostTable(net.net), net.switch, {}
    for name in names or net.switches:
        net.set(name)
        found[name] = {"test": evaluate(net, images).to_json(), "cost": table.cost(net.switches[name]).to_json()}
    net.set(before)
    return found


def load_switches(folder: Path, device: str) -> tuple[SwitchableNet, dict]:
    """Rebuild the trained network of a run folder; returns it with the run's settings.

    Raises:
        RunError: the folder is no such run, or is not finished.
    """
    settings = runs.read_run(folder, "switches")
    configs = {
        name: ChannelConfig.from_json(document, f"{folder}/config.json") for name, document in settings["switches"].items()
    }
    net = build_switches(configs, settings["norm"], settings["system"])
    runs.load_finished(folder, "switches", net, settings["recipe"]["epochs"])
    return family.place(net, runs.choose_device(device)), settings

"""Which networks can be slimmed: every CNN of torchvision and a spread of timm's (`pip install timm`).

    python benchmarks/coverage.py --out results/coverage [--only 'resnet*,timm:*net*'] [--resume]

For each network: channel groups, frozen groups (besides the network's output and gates of one channel), multiply-adds of
the narrowest network as a part of the full one, the largest difference between the supernet and the materialised network
(relative to the largest output; widest, narrowest and three random configurations, in eval and train mode), whether the
multiply-adds equal fvcore's, and the seconds that grouping takes.
Writes coverage.csv, README.md and frozen.json (why each frozen group is) after every network.
"""

import argparse
import csv
import fnmatch
import json
import logging
import time
import traceback
import warnings
from pathlib import Path

import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils._pytree import tree_leaves

import autoslim

NO_CNN = ("vit_", "swin", "maxvit")
TIMM = """
    mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobilenetv2_100 mnasnet_100
    fbnetc_100 fbnetv3_b spnasnet_100 lcnet_050 tinynet_a hardcorenas_a efficientnet_b0 efficientnet_lite0 tf_efficientnet_b0
    efficientnetv2_rw_t tf_efficientnetv2_b0 mixnet_s mixnet_m tf_mixnet_s ghostnet_100 ghostnetv2_100 regnetx_002 regnety_002
    regnetz_b16 resnet18 resnet26d resnet50 resnetv2_50 resnetv2_50x1_bit resnetblur50 resnext50_32x4d seresnet18 seresnext26d_32x4d
    ecaresnet26t ecaresnext26t_32x4d legacy_seresnet18 skresnet18 skresnext50_32x4d resnest14d resnest26d res2net50_26w_4s
    res2next50 dla34 dla46_c dla60_res2net hrnet_w18_small hrnet_w18 dpn48b dpn68 densenet121 densenetblur121d vovnet39a ese_vovnet19b_dw
    cspresnet50 cspresnext50 cspdarknet53 darknet53 repvgg_a0 repvgg_b0 repghostnet_050 nfnet_l0 eca_nfnet_l0 nf_resnet26 nf_regnet_b0
    dm_nfnet_f0 convnext_atto convnext_tiny convnextv2_atto convnextv2_tiny xception41 xception65p legacy_xception inception_v3
    inception_v4 inception_resnet_v2 inception_next_tiny efficientvit_b0 efficientvit_m0 fastvit_t8 mobileone_s0 tresnet_m selecsls42b
    edgenext_xx_small edgenext_small rexnet_100 gernet_s hgnet_tiny hgnetv2_b0 starnet_s1 repvit_m0_9 poolformer_s12 poolformerv2_s12
    visformer_tiny mobilevit_xxs mobilevitv2_050 bat_resnext26ts gcresnext26ts gcresnet33ts lambda_resnet26t halonet26t botnet26t_256
    coatnet_nano_rw_224 vgg11_bn rdnet_tiny mambaout_femto focalnet_tiny_srf fasternet_t0 shvit_s1 swiftformer_xs csatv2 nextvit_small
    levit_128s tiny_vit_5m_224 convmixer_768_32 senet154 pnasnet5large nasnetalarge rdnet_tiny test_resnet test_convnext test_efficientnet
"""
# Not counted as frozen: what the network returns, and gates of one channel.
EXPECTED = {"the network's output", "it has one channel"}
COLUMNS = [
    "library",
    "model",
    "input",
    "groups",
    "frozen",
    "gmacs",
    "narrowest",
    "identity_error",
    "macs_equal",
    "seconds",
    "note",
]

MEANINGS = {
    "groups": "channel groups that can change width",
    "frozen": "groups that cannot, besides the network's output and gates of one channel; frozen.json names each with its reason",
    "gmacs": "billions of multiply-adds at full width, at this input",
    "narrowest": "multiply-adds of the narrowest network as a part of the full one (divisor 8, a tenth of every width at least)",
    "identity_error": "largest difference between supernet and materialised network, relative to the largest output; widest, "
    "narrowest and three random configurations, in eval and in train mode",
    "macs_equal": "whether multiply-adds (conv and linear) and parameters equal fvcore's at all five",
    "seconds": "to find the groups",
}


def networks() -> list[tuple[str, str]]:
    """Return (library, name) of every network to try."""
    names = [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(NO_CNN)]
    found = [("torchvision", name) for name in names]
    found += [("torchvision.segmentation", n) for n in torchvision.models.list_models(module=torchvision.models.segmentation)]
    found += [("torchvision.video", n) for n in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")]
    try:
        import timm
    except ImportError:
        return found
    known = set(timm.list_models())
    return found + [("timm", name) for name in dict.fromkeys(TIMM.split()) if name in known]


def build(library: str, name: str) -> nn.Module:
    """Build a network with random weights."""
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    if library == "torchvision.segmentation":
        extra = {} if name.startswith("lraspp") else {"aux_loss": True}
        return torchvision.models.get_model(name, weights=None, weights_backbone=None, **extra)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra)


def input_shape(library: str, name: str, model: nn.Module) -> tuple[int, ...]:
    """Return a small input that the network takes."""
    if library == "torchvision.video":
        return (3, 16, 224, 224) if name == "s3d" else (3, 4, 64, 64)
    fixed = getattr(model, "default_cfg", {}).get("fixed_input_size", False)
    if fixed or name.startswith(("bat_", "halonet", "visformer")):
        return tuple(model.default_cfg["input_size"])
    if name == "inception_v3":
        return (3, 299, 299)
    if "inception" in name or "nasnet" in name or name in ("googlenet", "alexnet") or "vgg" in name:
        return (3, 160, 160)
    if library == "timm":
        return (3, 128, 128)
    return (3, 64, 64)


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Give every parameter and statistic a value of its own, at a scale that neither dies nor explodes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=(1.5 / max(1, parameter[0].numel())) ** 0.5, generator=generator)
        else:
            parameter.uniform_(0.2, 0.8, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)


def outputs(network: nn.Module, x: torch.Tensor, training: bool) -> list[torch.Tensor]:
    """Run a network with the same random numbers each time."""
    network.train(training)
    torch.manual_seed(5)
    with torch.no_grad():
        return [t for t in tree_leaves(network(x)) if isinstance(t, torch.Tensor)]


def difference(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest value of each output."""
    worst = 0.0
    for a, b in zip(ours, expected, strict=True):
        if not torch.isfinite(b).all():
            return float("nan")
        worst = max(worst, (a - b).abs().max().item() / max(b.abs().max().item(), 1e-6))
    return worst


def measure(library: str, name: str) -> tuple[dict, autoslim.Supernet]:
    """Return one row of the table, and the supernet."""
    torch.manual_seed(0)
    model = build(library, name)
    shape = input_shape(library, name, model)
    started = time.perf_counter()
    found = autoslim.find_groups(model, torch.zeros(1, *shape))
    seconds = time.perf_counter() - started
    randomize(model)
    net = autoslim.Supernet(model, torch.zeros(1, *shape))
    table = autoslim.CostTable(net)
    full, narrowest = table.cost(net.full()), table.cost(net.narrowest())
    row = {
        "library": library,
        "model": name,
        "input": "x".join(map(str, shape)),
        "groups": len(found.groups),
        "frozen": sum(not set(group.frozen) <= EXPECTED for group in found.frozen),
        "gmacs": f"{full.macs / 1e9:.3f}",
        "narrowest": f"{narrowest.macs / full.macs:.4f}",
        "seconds": f"{seconds:.2f}",
        "note": f"untraceable: {', '.join(list(found.opaque)[:3])}" if found.opaque else "",
    }
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(1)
    error, equal = 0.0, True
    for config in (net.full(), net.narrowest(), *(net.random(generator) for _ in range(3))):
        net.set(config)
        plain = autoslim.materialize(net)
        for training in (False, True):
            found_error = difference(outputs(net, x, training), outputs(plain, x, training))
            error = found_error if found_error != found_error else max(error, found_error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analysis = FlopCountAnalysis(plain.eval(), x[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            rows = analysis.by_operator()
        cost = table.cost(config)
        equal &= cost.macs == rows["conv"] + rows["linear"]
        equal &= cost.params == sum(p.numel() for p in plain.parameters())
    return row | {"identity_error": f"{error:.1e}", "macs_equal": "yes" if equal else "no"}, net


def main() -> None:
    """Measure all networks, one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/coverage"))
    parser.add_argument("--only", default="*", help="names, with wildcards and commas; 'timm:*' for one library")
    parser.add_argument("--resume", action="store_true", help="leave out the networks that coverage.csv has already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    rows, reasons = read(options.out) if options.resume else ([], {})
    done = {(row["library"], row["model"]) for row in rows}
    patterns = options.only.split(",")
    for library, name in networks():
        wanted = any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(f"{library}:{name}", p) for p in patterns)
        if not wanted or (library, name) in done:
            continue
        try:
            row, net = measure(library, name)
            reasons[f"{library} {name}"] = {group.name: group.frozen for group in net.frozen}
        except Exception as error:
            traceback.print_exc()
            row = dict.fromkeys(COLUMNS, "") | {
                "library": library,
                "model": name,
                "note": f"{type(error).__name__}: {error}"[:200],
            }
        rows.append(row)
        print(*(str(row.get(column, "")) for column in COLUMNS), sep="  ", flush=True)
        write(options.out, rows, reasons)
    print(summary(rows))


def read(folder: Path) -> tuple[list[dict], dict]:
    """Read what an earlier run wrote."""
    path = folder / "coverage.csv"
    if not path.exists():
        return [], {}
    with path.open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "frozen.json").read_text())


def write(folder: Path, rows: list[dict], reasons: dict) -> None:
    """Write the table as CSV and as Markdown, and why each frozen group is."""
    with (folder / "coverage.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "# Which networks can be slimmed",
        "",
        f"`python benchmarks/coverage.py --out {folder}`, one thread.",
        "",
        summary(rows),
        "",
    ]
    lines += [f"- **{column}**: {meaning}" for column, meaning in MEANINGS.items()]
    lines += ["", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(str(row.get(column, '')) for column in COLUMNS)} |" for row in rows]
    (folder / "README.md").write_text("\n".join(lines) + "\n")
    (folder / "frozen.json").write_text(json.dumps(reasons, indent=1) + "\n")


def summary(rows: list[dict]) -> str:
    """Say how many networks can be slimmed well."""
    known = [row for row in rows if row["narrowest"]]
    slim = [row for row in known if float(row["narrowest"]) < 0.15]
    good = [row for row in known if float(row["identity_error"]) <= 1e-4]
    equal = [row for row in known if row["macs_equal"] == "yes"]
    whole = [row for row in known if int(row["frozen"]) == 0]
    return (
        f"{len(rows)} networks, {len(rows) - len(known)} failed. Narrowest under 15 % of the full multiply-adds: {len(slim)}. "
        f"Nothing frozen besides outputs: {len(whole)}. Identity to 1e-4: {len(good)}. Multiply-adds equal to fvcore's: {len(equal)}."
    )


if __name__ == "__main__":
    main()

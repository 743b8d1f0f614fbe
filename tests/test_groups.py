import pytest
import torch
import tricky
from all_cases import ALL_CASES
from torch import nn

import autoslim


@pytest.fixture(params=ALL_CASES, ids=lambda kind: kind.__name__)
def case(request):
    torch.manual_seed(0)
    return request.param()


def test_groups_are_the_stated_ones(case):
    found = autoslim.find_groups(case, case.inputs(1))
    assert {g.name: (g.full, g.unit, g.members) for g in found.groups} == case.groups


def test_frozen_groups_are_the_stated_ones_with_their_reasons(case):
    found = autoslim.find_groups(case, case.inputs(1))
    assert {g.name for g in found.frozen} == set(case.frozen)
    for group in found.frozen:
        assert case.frozen[group.name] in "; ".join(group.frozen), group.frozen


def test_every_conv_and_linear_output_is_in_one_group(case):
    found = autoslim.find_groups(case, case.inputs(1))
    producers = {name for name, m in case.named_modules() if type(m) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)}
    untraced = tuple(found.opaque)
    held = {member for group in (*found.groups, *found.frozen) for member in group.members}
    assert {name for name in producers if not name.startswith(untraced or ("-",))} <= held


def test_analysis_leaves_the_model_and_the_random_state_alone(case):
    case.train()
    before = {key: value.clone() for key, value in case.state_dict().items()}
    state = torch.get_rng_state()
    autoslim.find_groups(case, case.inputs(1, torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in case.state_dict().items())
    assert all(module.training for module in case.modules())


def test_a_frozen_group_names_the_source_line():
    (group,) = [g for g in autoslim.find_groups(tricky.UnknownOperation(), torch.randn(1, 3, 8, 8)).frozen if g.name == "before"]
    assert "tricky.py:" in group.frozen[0] and ".cumsum(dim=1)" in group.frozen[0]


def test_untraceable_submodule_is_named_with_its_line():
    found = autoslim.find_groups(tricky.Untraceable(), torch.randn(1, 3, 8, 8))
    assert list(found.opaque) == ["branch"] and "if y.sum() > 0" in found.opaque["branch"]


def test_an_untraceable_forward_is_refused_with_its_line():
    with pytest.raises(autoslim.AutoSlimError, match="if y.sum"):
        autoslim.find_groups(tricky.DataBranch(), torch.randn(1, 16, 8, 8))


def test_a_model_with_nothing_to_slim_is_refused():
    with pytest.raises(autoslim.AutoSlimError, match="no channel group"):
        autoslim.Supernet(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(1, 3, 2, 2))


def test_the_older_weight_norm_is_slimmed():
    with pytest.warns(FutureWarning):
        normed = torch.nn.utils.weight_norm(nn.Conv2d(16, 12, 3))
    model = nn.Sequential(nn.Conv2d(3, 16, 3), normed, nn.Conv2d(12, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 5))
    found = autoslim.find_groups(model, torch.randn(1, 3, 8, 8))
    assert [(g.name, g.members) for g in found.groups] == [("0", ("0",)), ("1", ("1",)), ("2", ("2",))]


@pytest.mark.parametrize("example", [torch.tensor(1.0), (), "an image"])
def test_an_example_without_a_batch_is_refused(example):
    with pytest.raises(autoslim.AutoSlimError, match="example input"):
        autoslim.find_groups(tricky.Plain(), example)


def test_published_grid():
    # Full widths of MobileNet v1 and v2 at 1.5x and the steps of a twelfth, to the nearest 8, never below 8.
    grid = autoslim.Grid()
    assert [grid.step(full) for full in (24, 48, 96, 144, 240, 384, 480, 1536, 1920)] == [
        8,
        8,
        8,
        16,
        16,
        32,
        40,
        128,
        160,
    ]
    assert grid.choices(48) == (8, 16, 24, 32, 40, 48)
    assert autoslim.Grid(min_ratio=0.5).choices(48) == (24, 32, 40, 48)


@pytest.mark.parametrize("full", range(1, 80))
@pytest.mark.parametrize("unit", [1, 2, 3])
def test_choices_are_legal_and_reach_full_width(full, unit):
    full *= unit
    choices = autoslim.Grid(divisor=4).choices(full, unit)
    multiple = next(m for m in range(4, 4 + unit) if m % unit == 0)
    assert choices == tuple(sorted(set(choices))) and choices[-1] == full
    assert all(width % multiple == 0 and width >= 0.1 * full for width in choices[:-1])


@pytest.mark.parametrize(
    "wrong", [{"divisor": 0}, {"divisor": 2.5}, {"steps": 0}, {"min_ratio": 1.5}, {"min_ratio": float("nan")}]
)
def test_a_wrong_grid_is_refused(wrong):
    with pytest.raises(autoslim.AutoSlimError, match=next(iter(wrong))):
        autoslim.Grid(**wrong)

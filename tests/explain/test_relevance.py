"""Options of the relevance map, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (10, 9, 8)


class Mean(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean(dim=(1, 2, 3, 4))[:, None]


def model(**card: object) -> vx.Model:
    return vx.Model(Mean(), vx.Card(name="mean", channels=("t1", "t2"), classes=("c",), **card))


def scan() -> vx.Scan:
    data = np.random.default_rng(0).uniform(1, 2, (2, *SHAPE))
    data[:, :2] = 0
    return vx.Scan(data, vx.Grid(SHAPE, np.diag([2.0, 2, 2, 1])), ("t1", "t2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": "mean"}, "fill is one of blank, min, max, tissue-mean"),
        ({"scope": "voxel"}, "is one of region, sequence"),
        ({"scale": "odds"}, "scale is one of probability, logit; got 'odds'"),
        ({"mask": "head"}, "mask is one of brain, none; got 'head'"),
        ({"segments": 0}, "segments must be at least 1"),
        ({"compactness": 0.0}, "compactness above 0"),
        ({"compactness": -1.0}, "compactness above 0"),
        ({"partition": "spheres"}, "cubes:MM with an edge in mm"),
        ({"partition": "cubes"}, "cubes:MM with an edge in mm"),
        ({"partition": "cubes:big"}, "got 'cubes:big'"),
        ({"partition": "cubes:-4"}, "got 'cubes:-4'"),
        ({"partition": "cubes:nan"}, "got 'cubes:nan'"),
        ({"partition": "cubes:inf"}, "got 'cubes:inf'"),
        ({"compactness": float("nan")}, "compactness above 0"),
    ],
)
def test_options_are_refused_before_anything_is_read(options: dict[str, object], message: str) -> None:
    with pytest.raises(vx.InputError, match=message):
        vx.RelevanceMap(**options)


def test_a_sequence_that_the_network_does_not_read_is_refused_by_name() -> None:
    with pytest.raises(vx.InputError, match=r"no sequence 'flair'; it has t1, t2"):
        vx.RelevanceMap(channel="flair")(model(), scan(), compute=CPU)


def test_sequences_are_found_by_their_usual_names() -> None:
    assert vx.RelevanceMap(channel="t2", segments=5)(model(), scan(), compute=CPU).parts is not None


def test_unit_names_the_scale() -> None:
    for scale in ("probability", "logit"):
        why = vx.RelevanceMap(scale=scale, segments=5)(model(), scan(), compute=CPU)
        assert why.unit == f"|change of {scale}|"
        assert not why.signed


def test_background_has_no_part_unless_asked_for() -> None:
    brain = vx.RelevanceMap(segments=10)(model(), scan(), compute=CPU)
    everything = vx.RelevanceMap(segments=10, mask="none")(model(), scan(), compute=CPU)
    assert brain.parts is not None
    assert everything.parts is not None
    assert not brain.parts.data[:2].any()
    assert brain.parts.data[2:].all()
    assert everything.parts.data.all()


def test_one_cube_over_all_gives_the_change_of_blanking_everything() -> None:
    image = scan()
    why = vx.RelevanceMap(partition="cubes:1000", scale="logit")(model(), image, compute=CPU)
    assert why.scores is not None
    assert why.scores == pytest.approx([image.data.mean()], rel=1e-5)


def test_seeds_do_not_matter_where_nothing_is_drawn() -> None:
    first, second = (vx.RelevanceMap(segments=8)(model(), scan(), seed=seed, compute=CPU) for seed in (0, 1))
    np.testing.assert_array_equal(first.map, second.map)

"""One sequence of a part at a time: which sequence carries the evidence."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.results import read_results, write_results

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (9, 8, 7)
GRID = vx.Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
NAMES = ("flair", "t1", "t2")
CARD = vx.Card(name="products", channels=NAMES, classes=("c",))
EACH = vx.RelevanceMap(sequences="each", partition="cubes:6")


class Products(nn.Module):
    """Reads flair twice as strongly as t1, their product, and t2 not at all."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flair, t1, _ = inputs.flatten(2).mean(dim=2).T
        return (2 * flair + t1 + 0.5 * flair * t1)[:, None]


def model(**card: object) -> vx.Model:
    return vx.Model(Products(), dataclasses.replace(CARD, **card))


def scan() -> vx.Scan:
    return vx.Scan(np.random.default_rng(2).uniform(0.5, 2, (3, *SHAPE)), GRID, NAMES)


def plain_loop(data: np.ndarray, parts: np.ndarray, fill: str, scale: str) -> np.ndarray:
    """The fall of the score with one part blanked (or set to its minimum) in one sequence, (K, N)."""
    net = Products()

    def score(values: np.ndarray) -> float:
        logit = float(net(torch.tensor(values[None])))
        return logit if scale == "logit" else 1 / (1 + np.exp(-logit))

    found = np.zeros((len(data), parts.max()))
    for channel, label in np.ndindex(found.shape):
        changed = data.copy()
        inside = parts == label + 1
        changed[channel][inside] = 0 if fill == "blank" else data[channel][inside].min()
        found[channel, label] = score(data) - score(changed)
    return found


@pytest.mark.parametrize("engine", ["full", "incremental"])
@pytest.mark.parametrize("scale", ["logit", "probability"])
@pytest.mark.parametrize("effect", ["absolute", "signed"])
@pytest.mark.parametrize("fill", ["blank", "min"])
@pytest.mark.parametrize("kind", [vx.RelevanceMap, vx.Occlusion])
def test_against_a_plain_loop(kind: type, fill: str, effect: str, scale: str, engine: str) -> None:
    stride = {"stride": 6.0} if kind is vx.Occlusion else {}
    explain = kind(fill=fill, effect=effect, scale=scale, sequences="each", partition="cubes:6", **stride)
    why = explain(model(), scan(), compute=dataclasses.replace(CPU, engine=engine))
    assert why.parts is not None
    assert why.channels == NAMES
    expected = plain_loop(scan().data, why.parts.data, fill, scale)
    expected = np.abs(expected) if effect == "absolute" else expected
    np.testing.assert_allclose(why.sequence_scores(), expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(why.scores, expected.sum(axis=0), rtol=0, atol=4e-6)
    painted = np.concatenate([np.zeros((3, 1)), expected], axis=1)[:, why.parts.data]
    np.testing.assert_allclose(why.map, painted, rtol=0, atol=2e-6)
    np.testing.assert_allclose(why.total, painted.sum(axis=0), rtol=0, atol=4e-6)


def test_says_which_sequence_carries_the_evidence() -> None:
    facts = EACH(model(), scan(), compute=CPU).provenance["facts"]["whole"]
    shares = facts["share_of_sequences"]
    assert list(shares) == list(NAMES)
    assert shares["flair"] > 1.5 * shares["t1"] > 0
    assert shares["t2"] == 0
    assert sum(shares.values()) == pytest.approx(1)


def test_a_model_that_never_moves_has_no_shares() -> None:
    class Constant(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.new_full((len(inputs), 1), 0.3)

    why = EACH(vx.Model(Constant(), CARD), scan(), compute=CPU)
    np.testing.assert_array_equal(why.map, 0)
    assert set(why.provenance["facts"]["whole"]["share_of_sequences"].values()) == {0.0}


def test_costs_a_pass_per_part_and_sequence_that_changes() -> None:
    partly = scan().data.copy()
    partly[2] = 0
    partly[2, :, :, 0] = 1
    why = EACH(model(), vx.Scan(partly, GRID, NAMES), compute=CPU)
    assert why.parts is not None
    assert why.scores is not None
    in_t2 = len(np.unique(why.parts.data[:, :, 0]))
    assert in_t2 < len(why.scores)
    assert why.provenance["passes"]["forward"] == 1 + 2 * len(why.scores) + in_t2


def test_one_sequence_alone_is_the_joint_map() -> None:
    card = vx.Card(name="one", channels=("flair",), classes=("c",))

    class Mean(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.mean(dim=(1, 2, 3, 4))[:, None]

    one, image = vx.Model(Mean(), card), scan().select(["flair"])
    each, joint = (vx.RelevanceMap(sequences=how, segments=8)(one, image, compute=CPU) for how in ("each", "joint"))
    np.testing.assert_array_equal(each.map, joint.map)
    assert (each.channels, joint.channels) == (("flair",), ("all",))


def test_halves_are_numbered_through(make_head: type, tiny_model: vx.Model) -> None:
    why = vx.RelevanceMap(sequences="each", segments=6)(tiny_model, make_head().scan(), compute=CPU)
    assert why.parts is not None
    assert why.scores is not None
    assert why.map.shape[0] == 4
    table = why.sequence_scores()
    assert table.shape == (4, len(why.scores))
    np.testing.assert_allclose(table.sum(axis=0), why.scores, rtol=1e-5, atol=1e-9)
    both = [set(why.labels_in(region).tolist()) for region in why.regions]
    assert not both[0] & both[1]


def test_the_table_is_among_the_ranks_and_survives_the_disk(tmp_path) -> None:
    why = EACH(model(), scan(), compute=CPU)
    ranks = why.ranks()
    assert list(ranks.columns[-3:]) == ["score_flair", "score_t1", "score_t2"]
    np.testing.assert_allclose(ranks[[f"score_{name}" for name in NAMES]].sum(axis=1), ranks["score"], rtol=1e-5)
    mask = vx.segment.otsu(why, everywhere=True)
    write_results(why, mask, "relevance-map", tmp_path, rule="otsu")
    (result,) = read_results(tmp_path)
    back = result.explanation
    assert back.channels == NAMES
    np.testing.assert_array_equal(back.map, why.map)
    np.testing.assert_allclose(back.sequence_scores(), why.sequence_scores(), rtol=1e-6)
    vx.report(scan(), [back], masks=[result.mask], path=tmp_path / "report.html")
    # Scores of another run are noticed here as they are for joint maps.
    path = tmp_path / "relevance-map-ranks.tsv"
    lines = path.read_text().splitlines()
    cells = lines[1].split("\t")
    lines[1] = "\t".join([*cells[:2], "9.5", *cells[3:]])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(vx.InputError, match=r"not those of the map"):
        read_results(tmp_path)


def test_scaling_keeps_scores_the_sum_of_the_maps() -> None:
    for effect in ("absolute", "signed"):
        scaled = dataclasses.replace(EACH, effect=effect)(model(), scan(), compute=CPU).scaled()
        assert (scaled.map.min(), scaled.map.max()) == pytest.approx((0, 100), abs=1e-4)
        np.testing.assert_allclose(scaled.sequence_scores().sum(axis=0), scaled.scores, atol=1e-3)


def test_joint_maps_have_one_column_less() -> None:
    why = vx.RelevanceMap(partition="cubes:6")(model(), scan(), compute=CPU)
    assert list(why.ranks().columns)[-1] == "region"
    np.testing.assert_allclose(why.sequence_scores()[0], why.scores, rtol=1e-6)


def test_maps_without_parts_have_no_table() -> None:
    why = vx.RISE(samples=4, cell=6.0)(model(), scan(), compute=CPU)
    with pytest.raises(vx.InputError, match="voxel-wise"):
        why.sequence_scores()


@pytest.mark.parametrize("options", [{"partition": "cubes:8"}, {"partition": "cubes:8", "stride": 4.0}])
def test_windows_that_overlap_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(vx.InputError, match="windows that do not overlap"):
        vx.Occlusion(sequences="each", **options)


def test_another_word_is_refused() -> None:
    with pytest.raises(vx.InputError, match="sequences is one of joint, each; got 'all'"):
        vx.RelevanceMap(sequences="all")

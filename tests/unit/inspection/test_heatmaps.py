"""Recordings, figures and colour maps on tensors whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from training.errors import ConfigError
from training.inspection import COLOUR_MAPS, Recording, choose_blocks, default_blocks, figure_of
from training.inspection.colours import DIVERGING, TABLES
from training.inspection.heatmaps import draw_comparison, draw_figure, overlays, read_figure, save_figure
from training.inspection.localisation import (
    area_baseline,
    average_precision,
    best_iou,
    localisation,
    otsu,
)
from training.inspection.recording import OUTPUT, SOFTMAX
from training.inspection.words import PromptWords, Word

GRID = (2, 3)
WORDS = (Word("red", 0, 3, (0,)), Word("car", 4, 7, (1, 2)))
PROMPT = PromptWords("red car", (5, 6, 7), ("▁red", "▁ca", "r"), ((0, 3), (4, 6), (6, 7)), WORDS, length=6)


def a_recording(steps: int = 3, heads: int = 2, images: int = 2) -> Recording:
    """Two blocks; probabilities like real ones, 10 keys in all."""
    recording = Recording(blocks=(1, 4), double=3)
    recording.begin(GRID, text_length=6, keys=10)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        recording.add(1 - step / steps, [torch.rand(images, heads, 6, 6, generator=generator) / 10 for _ in range(2)])
    return recording


def test_a_recording_keeps_what_it_was_given() -> None:
    recording = Recording(blocks=(0,), double=1)
    recording.begin(GRID, 6, 4608)
    given = [torch.rand(1, 1, 6, 6) * 1e-5 for _ in range(2)]  # far below 1 / 4608, where plain fp16 would be coarse
    for step, each in enumerate(given):
        recording.add(1.0 - step, [each])
    assert recording.maps.dtype == torch.float16
    assert recording.nbytes == 2 * 36 * 2
    expected = torch.stack(given).mean(0)[0, 0].unflatten(-1, GRID)
    torch.testing.assert_close(recording.mean(), expected, rtol=1e-3, atol=0)


def test_means_over_parts_of_a_recording() -> None:
    recording = a_recording()
    maps = recording.maps.double() / 10  # [T, L, B, H, K, N]
    expected = maps[[0, 2]][:, [1], 1, 1].mean((0, 1)).unflatten(-1, GRID)
    found = recording.mean(image=1, times=[0, 2], blocks=[1], head=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    assert recording.names() == ["1", "s1"]


def test_a_new_run_replaces_the_old_one() -> None:
    recording = a_recording()
    assert recording.maps.shape[0] == 3
    recording.clear()
    with pytest.raises(ConfigError, match="Nothing was recorded"):
        _ = recording.maps
    recording.begin(GRID, 6, 10)
    recording.add(0.5, [torch.zeros(1, 1, 6, 6)] * 2)
    assert recording.times == [0.5] and recording.maps.shape[0] == 1
    with pytest.raises(ConfigError, match="has 1 images"):
        recording.mean(image=1)


def test_a_recording_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.inspection.recording.LIMIT", 600)
    with pytest.raises(ConfigError, match="record fewer blocks"):
        a_recording()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("best", (11, 12, 14, 17, 18)),
        ("double", tuple(range(19))),
        ("single", tuple(range(19, 57))),
        ("all", tuple(range(57))),
        ("3, 0-1, s2", (0, 1, 3, 21)),
        (" 5-3 ", (3, 4, 5)),
        ("s36-s37", (55, 56)),
    ],
)
def test_choice_of_blocks(text: str, expected: tuple[int, ...]) -> None:
    assert choose_blocks(text, 19, 38) == expected


@pytest.mark.parametrize("text", ["", "19", "s38", "-1", "0-", "x", "1.5", "0,,1"])
def test_blocks_that_do_not_exist(text: str) -> None:
    if text == "0-":
        assert choose_blocks(text, 19, 38) == (0,)
        return
    with pytest.raises(ConfigError, match="names no block"):
        choose_blocks(text, 19, 38)


def test_default_blocks_of_any_depth() -> None:
    for depth in range(1, 40):
        for kind in (SOFTMAX, OUTPUT):
            blocks = default_blocks(depth, kind)
            assert blocks and min(blocks) >= 0
        # concepts live in the double blocks; words are looked for in single ones too only where that was measured
        assert max(blocks) < depth and choose_blocks("best", depth, 2 * depth, OUTPUT) == blocks
        assert depth == 3 or max(default_blocks(depth)) < depth


def test_a_figure_sums_a_words_tokens() -> None:
    recording = a_recording()
    figure = figure_of(recording, PROMPT, WORDS, torch.rand(16, 24, 3), index=1)
    mean = recording.mean(1).numpy()
    np.testing.assert_allclose(figure.maps[0], mean[0], rtol=1e-6)
    np.testing.assert_allclose(figure.maps[1], mean[1] + mean[2], rtol=1e-6)
    np.testing.assert_allclose(figure.maps[2], mean[3], rtol=1e-6)  # the end token
    np.testing.assert_allclose(figure.maps[3], mean[4] + mean[5], rtol=1e-6)  # padding
    assert figure.special == ["end", "padding"] and figure.drawn == 2
    # all parts of the detail average to the whole
    np.testing.assert_allclose(figure.detail.mean((0, 1, 2)), figure.maps, rtol=1e-3)
    assert figure.detail.shape == (3, 2, 2, 4, *GRID)


def test_the_json_alone_redraws_the_figure(tmp_path) -> None:
    generator = torch.Generator().manual_seed(1)
    figure = figure_of(a_recording(), PROMPT, WORDS, torch.rand(32, 48, 3, generator=generator), scale="each")
    files = save_figure(figure, tmp_path / "maps_00001_")
    assert [file.name for file in files] == ["maps_00001_.png", "maps_00001_.npz", "maps_00001_.json"]
    again = read_figure(json.loads(files[2].read_text(encoding="utf-8")))
    assert np.array_equal(np.asarray(draw_figure(figure)), np.asarray(draw_figure(again)))
    assert again.words == figure.words and again.tokens[1] == {"id": 6, "piece": "▁ca"}
    np.testing.assert_allclose(again.detail, figure.detail, atol=figure.detail.max() / 60000)
    kept = np.load(files[1])
    np.testing.assert_array_equal(kept["maps"], figure.maps)
    assert list(kept["words"]) == ["red", "car", "end", "padding"]
    with pytest.raises(ConfigError, match="no heatmap figure"):
        read_figure({"format": 99})


def test_one_scale_for_all_words() -> None:
    figure = figure_of(a_recording(), PROMPT, WORDS, torch.zeros(20, 30, 3), opacity=1.0)
    figure.maps[0, 0, 0] = 2 * figure.maps.max()
    pictures = overlays(figure)
    assert pictures.shape == (2, 20, 30, 3)
    top = TABLES[figure.colour_map][-1]
    assert (pictures[0] == top).all(-1).any() and not (pictures[1] == top).all(-1).any()
    figure.scale = "each"
    assert (overlays(figure)[1] == top).all(-1).any()


def test_comparisons_show_the_sign_of_the_change() -> None:
    before, after = (figure_of(a_recording(), PROMPT, WORDS, torch.zeros(20, 30, 3)) for _ in range(2))
    before.maps[:2], after.maps[:2] = 0.1, 0.1
    after.maps[0] = 0.0  # the first word falls, the second one stays
    picture = np.asarray(draw_comparison(before, after)).reshape(-1, 3)
    low, middle, high = (TABLES[DIVERGING][n] for n in (0, 128, 255))
    assert (picture == low).all(1).any() and (picture == middle).all(1).any() and not (picture == high).all(1).any()


@pytest.mark.parametrize("change", [{"colour_map": "jet"}, {"opacity": 1.5}, {"scale": "log"}])
def test_settings_out_of_range(change: dict) -> None:
    with pytest.raises(ConfigError, match="Choose a colour map"):
        figure_of(a_recording(), PROMPT, WORDS, torch.zeros(8, 8, 3), **change)


def test_words_that_were_not_recorded() -> None:
    late = Word("late", 0, 4, (6,))
    with pytest.raises(ConfigError, match='"late" comes later'):
        figure_of(a_recording(), PROMPT, [late], torch.zeros(8, 8, 3))
    other = PromptWords("red", (5,), ("▁red",), ((0, 3),), WORDS[:1], length=256)
    with pytest.raises(ConfigError, match="6 text tokens, this CLIP reads 256"):
        figure_of(a_recording(), other, WORDS, torch.zeros(8, 8, 3))


def oklab(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 -> OKLab, by the published forward formulas."""
    s = srgb / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    cones = (
        linear
        @ np.array(
            [
                [0.4122214708, 0.5363325363, 0.0514459929],
                [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005],
            ]
        ).T
    )
    return (
        np.cbrt(cones)
        @ np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        ).T
    )


@pytest.mark.parametrize("name", [*COLOUR_MAPS, DIVERGING])
def test_colour_maps_are_even_and_ordered_by_lightness(name: str) -> None:
    lab = oklab(TABLES[name].astype(float))
    steps = np.linalg.norm(lab[16:] - lab[:-16], axis=1)  # so far apart that rounding to 8 bits does not count
    straight = steps if name != DIVERGING else np.delete(steps, slice(104, 136))  # it turns in the middle
    assert straight.max() / straight.min() < 1.2
    lightness = lab[:, 0] if name != DIVERGING else lab[:128, 0]
    assert (lightness[8:] > lightness[:-8]).all()
    if name == DIVERGING:
        assert abs(lab[0, 0] - lab[-1, 0]) < 0.02


def test_measures_of_a_perfect_and_of_a_wrong_map() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:5, 1:4] = True
    others = np.zeros_like(mask)
    others[6:, 6:] = True
    good = localisation(mask.astype(float), mask, others)
    assert good == {
        "pointing": 1,
        "iou_best": 1,
        "iou_otsu": 1,
        "precision": pytest.approx(1),
        "energy": 1,
        "leakage": 0,
    }
    bad = localisation(others.astype(float), mask, others)
    assert bad["pointing"] == bad["iou_otsu"] == bad["energy"] == 0 and bad["leakage"] == 1
    flat = localisation(np.ones((8, 8)), mask, others)
    for measure in ("iou_best", "precision", "energy", "leakage"):
        assert flat[measure] == pytest.approx(area_baseline(mask, others)[measure])


def test_average_precision_and_otsu_by_hand() -> None:
    heat = np.array([[0.9, 0.8, 0.3, 0.1]])
    mask = np.array([[True, False, True, False]])
    assert average_precision(heat, mask) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert best_iou(heat, mask) == pytest.approx(2 / 3)
    assert 0.3 <= otsu(np.array([0.0, 0.1, 0.2, 0.3, 0.8, 0.9, 1.0])) < 0.8

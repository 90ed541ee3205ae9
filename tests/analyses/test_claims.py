"""Each claim is judged by its criterion from the runs that bear on it, and by nothing else."""

import pytest

from common import claims

SEEDS = range(3)


def test_no_silent_linked_unit_in_three_seeds_supports_c1_and_one_refutes_it(tmp_path, judged, depth_runs):
    alive = judged(tmp_path / "a", "C1", depth_runs({"relu": [2, 1, 2], "linked-relu": [0, 0, 0]}))
    assert alive.word == "supported"
    assert alive.effects[0].number.value == pytest.approx(5 / 3 / 8)
    dead = judged(tmp_path / "b", "C1", depth_runs({"relu": [2, 2, 2], "linked-relu": [0, 1, 0]}))
    assert dead.word == "refuted"
    few = judged(tmp_path / "c", "C1", depth_runs({"relu": [2, 2], "linked-relu": [0, 0]}))
    assert few.effects[0].word == few.word == "undetermined"


@pytest.mark.parametrize(("silent", "word"), [(0, "supported"), (1, "refuted")])
def test_one_long_run_is_an_illustration_and_decides_nothing(tmp_path, silent, word, judged, depth_runs):
    runs = depth_runs({"relu": [2, 1, 2], "linked-relu": [silent] * 3})
    runs += depth_runs({"relu": [2], "linked-relu": [1 - silent]}, preset="cpu-9000", steps=9000, plan={"seeds": 1})
    found = judged(tmp_path, "C1", runs)
    assert sorted(effect.word for effect in found.effects) == sorted(["illustration", word])
    assert found.word == word


@pytest.mark.parametrize("check", ["gradient arrives", "scale over depth"])
def test_one_run_whose_gradient_died_refutes_c2(tmp_path, check, judged, depth_runs):
    runs = depth_runs({"linked-relu": [0, 0, 0]})
    assert judged(tmp_path / "a", "C2", runs).word == "supported"
    runs[1]["diagnosis"]["checks"] = {check: {"ok": 3, "bad": 1}}
    found = judged(tmp_path / "b", "C2", runs)
    assert found.word == "refuted"
    assert "dead in 1 of 3 runs" in found.effects[0].detail
    assert found.effects[0].number.value == pytest.approx(0.011)


@pytest.fixture
def shifting(summary):
    """A run at depth 50 whose distributions move by so much, and so many of whose ten layers rest."""

    def run(variant, seed, factor, stable):
        return summary(
            "covariate_shift", variant, seed, condition={"initialization": "keras", "depth": 50},
            shift={"equivalent_shift": [[None, None], [factor * (1 + seed), factor * (1 + seed)]]},
            measured=[{"ics_to_noise": [0.0, factor * (1 + 0.1 * seed), factor * (1 + 0.1 * seed)]}],
            operating_points={"STABLE": stable, "DRIFTING": 10 - stable},
        )  # fmt: skip

    return run


def test_c3_compares_linked_with_plain_and_with_bn_seed_by_seed(tmp_path, judged, shifting):
    runs = [
        shifting(variant, seed, factor, stable)
        for variant, factor, stable in (("relu", 2.0, 5), ("linked-relu", 1.0, 10), ("batch-norm", 1.5, 8))
        for seed in SEEDS
    ]
    found = judged(tmp_path, "C3", runs)
    assert found.word == "supported"
    ratios = [effect.number.value for effect in found.effects]
    assert ratios == pytest.approx([0.5, 0.5, 1 / 1.5, 1 / 1.5, 1.0])


def test_c3_is_refuted_where_linked_moves_more_or_never_rests(tmp_path, judged, shifting):
    for name, factor, stable in (("moves", 3.0, 10), ("restless", 1.0, 1)):
        runs = [shifting("relu", seed, 2.0, 5) for seed in SEEDS]
        runs += [shifting("linked-relu", seed, factor, stable) for seed in SEEDS]
        assert judged(tmp_path / name, "C3", runs).word == "refuted"


def test_c3_draws_nothing_from_a_control_that_stays_at_chance(tmp_path, judged, shifting):
    controls = (("relu", 0.1), ("linked-relu", 3.0))
    runs = [shifting(variant, seed, factor, 10) for variant, factor in controls for seed in SEEDS]
    runs[1]["evaluations"]["best"] = 0.11
    ratios = judged(tmp_path, "C3", runs).effects[:2]
    assert [effect.word for effect in ratios] == ["undetermined"] * 2
    assert [effect.detail for effect in ratios] == ["5 of 6 runs left chance"] * 2


@pytest.mark.parametrize(("low", "high", "word"), [
    (1.9, 2.3, "supported"), (1.1, 1.4, "refuted"), (1.5, 2.1, "undetermined"),
])  # fmt: skip
def test_c4_asks_whether_the_whole_interval_is_about_2(tmp_path, low, high, word, summary, judged):
    ratio = {"central": (low + high) / 2, "low": low, "high": high}
    ratios = {"LK-ReLU, BN / LK-ReLU": ratio, "ReLU, BN / LK-ReLU": ratio}
    arms = {"LK-ReLU": {"ms": 10.0, "parameters": 5}}
    run = summary("step_time", "resnet", 0, condition={"rounds": 30}, ratios=ratios, arms=arms)
    assert judged(tmp_path, "C4", [run]).word == word


@pytest.mark.parametrize(("loss", "word"), [(0.0, "supported"), (0.1, "refuted")])
def test_c5_asks_what_is_lost_without_standardisation(tmp_path, loss, word, summary, judged):
    runs = [
        summary("input_shift", "linked-relu", seed, condition={"input": given}, test_accuracy=0.5 + 0.01 * seed - less)
        for given, less in (("standardised", 0.0), ("raw", loss))
        for seed in SEEDS
    ]
    found = judged(tmp_path, "C5", runs)
    assert found.word == word
    assert found.effects[0].number.value == pytest.approx(loss)


def test_c6_compares_with_the_wide_control_in_table_e_and_the_single_net_elsewhere(tmp_path, summary, judged):
    gains = {
        "parameter_matched": {"relu": 0.2, "relu-wide": 0.0, "linked-relu": 0.05},
        "width": {"relu": 0, "linked-relu": -0.1},
    }
    runs = [
        summary(experiment, variant, seed, test_accuracy=0.5 + 0.01 * seed + gain)
        for experiment, variants in gains.items()
        for variant, gain in variants.items()
        for seed in SEEDS
    ]
    found = judged(tmp_path, "C6", runs)
    assert [(effect.number.value, effect.word) for effect in found.effects] == [
        (pytest.approx(0.05), "supported"),
        (pytest.approx(-0.1), "refuted"),
    ]
    assert found.word == "refuted"


def test_c6_draws_nothing_from_nets_that_have_not_begun_to_learn(tmp_path, summary, judged):
    runs = [
        summary("allcnn", variant, seed, test_accuracy=0.1) for variant in ("relu", "linked-relu") for seed in SEEDS
    ]
    assert judged(tmp_path / "a", "C6", runs).word == "supported"
    for run in runs:
        run["evaluations"]["best"] = 0.11
    (effect,) = judged(tmp_path / "b", "C6", runs).effects
    assert effect.word == "undetermined"
    assert effect.detail.endswith("; 0 of 6 runs left chance")


def test_runs_of_another_preset_are_never_paired(tmp_path, summary, judged):
    runs = [summary("width", "linked-relu", seed) for seed in SEEDS]
    runs += [summary("width", "relu", seed, preset="cpu-9000") for seed in SEEDS]
    assert judged(tmp_path, "C6", runs).word == "undetermined"


@pytest.mark.parametrize(("sizes", "fate"), [
    ([1.0, 0.1, 1e-3, 1e-9], "vanishing"), ([1.0, 2.0, 2.0, 2.0], "carried"), ([1.0, 10.0, 1e3, 1e4], "exploding"),
    ([1.0, 10.0, None, None], "not finite"),
])  # fmt: skip
def test_the_fate_of_the_signal_is_read_from_the_first_record(sizes, fate, summary):
    run = summary("depth", "linked-silu", 0)
    run["profiles"]["activation"] = run["profiles"]["activation"] | {"rms": [sizes, [1.0] * 4]}
    assert claims.forward_fate(run) == fate

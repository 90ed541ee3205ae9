"""Each claim is judged by its criterion from the runs that bear on it, and by nothing else."""

import pytest

from common.measures import forward_fate, gradient_loss

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
    checks = runs[1]["diagnosis"]["checks"] | {check: {"ok": 3, "bad": 1}}
    runs[1]["diagnosis"] = runs[1]["diagnosis"] | {"checks": checks}
    found = judged(tmp_path / "b", "C2", runs)
    assert found.word == "refuted"
    assert found.effects[0].detail.startswith("runs: 2 alive, 1 dead; gradient 0.0 to 0.0 decades smaller")
    assert found.effects[0].number.value == pytest.approx(0.011)


@pytest.mark.parametrize(("loss", "checks", "state"), [
    (None, {}, "diverged"),
    (1.0, {"non-finite": {"bad": 1, "ok": 3}}, "diverged"),
    (1.0, {"scale over depth": {"not measured": 1}}, "not measured"),
    (1.0, {"gradient arrives": {}}, "not measured"),
])  # fmt: skip
def test_c2_draws_nothing_from_a_run_that_diverged_or_was_not_measured(
    tmp_path, judged, depth_runs, loss, checks, state
):
    runs = depth_runs({"linked-relu": [0, 0, 0]})
    found = runs[2]["diagnosis"]["checks"] | checks
    runs[2] |= {"test_loss": loss, "diagnosis": runs[2]["diagnosis"] | {"checks": found}}
    found = judged(tmp_path, "C2", runs)
    assert found.word == "undetermined"
    assert found.effects[0].detail.startswith(f"runs: 2 alive, 1 {state}; ")


def test_c2_names_nets_other_than_the_depth_net(tmp_path, judged, summary):
    found = judged(tmp_path, "C2", [summary("no_batchnorm", "linked-relu", seed) for seed in SEEDS])
    assert [effect.what for effect in found.effects] == ["LK-ReLU: ResNet-50 without normalisation"]


def test_the_loss_of_gradient_is_in_decades_from_the_output_to_the_input(summary):
    run = summary("depth", "linked-relu", 0)
    sizes = {"rms": [[1.0] * 4, [2e-5, 1e-3, 1.0, 2e-1]]}
    run["profiles"] = run["profiles"] | {"activation_grad": run["profiles"]["activation_grad"] | sizes}
    assert gradient_loss(run) == pytest.approx(4)


@pytest.mark.parametrize("claim", ["C1", "C2"])
def test_a_run_stopped_early_leaves_a_claim_undetermined(tmp_path, judged, depth_runs, claim):
    runs = depth_runs({"linked-relu": [0, 0, 0]})
    runs[1]["complete"] = False
    found = judged(tmp_path, claim, runs)
    assert found.word == "undetermined"
    assert found.effects[0].detail.endswith("; 1 stopped early")


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


@pytest.mark.parametrize(("states", "word"), [
    ({"STABLE": 10}, "supported"),
    ({"STABLE": 4, "UNDETERMINED": 6}, "undetermined"),
    ({"UNDETERMINED": 10}, "undetermined"),
    ({"STABLE": 4, "DRIFTING": 3, "FROZEN": 3}, "refuted"),
])  # fmt: skip
def test_c3_counts_a_layer_whose_state_is_not_decided_for_neither_side(tmp_path, judged, shifting, states, word):
    runs = [shifting("linked-relu", seed, 1.0, 10) | {"operating_points": states} for seed in SEEDS]
    runs += [shifting("relu", seed, 2.0, 5) for seed in SEEDS]
    rest = judged(tmp_path / "a", "C3", runs).effects[-1]
    assert rest.word == word
    assert rest.detail.endswith("; 3 of 3 runs left chance; found of plain 0.50")
    runs[0]["evaluations"] = {"best": 0.11}
    assert judged(tmp_path / "b", "C3", runs).effects[-1].word == "undetermined"


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
    assert judged(tmp_path / "a", "C4", [run]).word == word
    # The paper tells no times of other nets.
    other = judged(tmp_path / "b", "C4", [run | {"variant": "depth"}])
    assert {effect.word for effect in other.effects} == {"illustration"}


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
    runs += [
        summary("input_shift", "relu", seed, condition={"input": given}, test_accuracy=less)
        for given, less in (("standardised", 0.4), ("raw", 0.35))
        for seed in SEEDS
    ]
    beside = judged(tmp_path / "beside", "C5", runs)
    assert beside.word == word
    assert beside.effects[0].detail.endswith("; unlinked it loses 0.050")


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


def test_c6_draws_nothing_where_a_run_diverged_and_tells_how_large_the_nets_are(tmp_path, judged, summary):
    runs = [summary("allcnn", variant, seed) for variant in ("relu", "linked-relu") for seed in SEEDS]
    runs[3]["parameters"] = 1600
    (effect,) = judged(tmp_path / "a", "C6", runs).effects
    assert effect.word == "supported"
    assert effect.detail == "0.510 against 0.510 of ReLU, with 1.60 times the parameters; 6 of 6 runs left chance"
    runs[1]["test_loss"] = None
    (effect,) = judged(tmp_path / "b", "C6", runs).effects
    assert effect.word == "undetermined"
    assert effect.detail.endswith("; 6 of 6 runs left chance, 1 diverged")


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
    assert forward_fate(run) == fate

"""What ``covshift.probe`` offers: functions, and nothing that only looks like one."""

import inspect

import covshift
import covshift.probe.zero_causes  # the module behind ``zeros``, as an editor that completes names would find it

PROMISED = {"zeros", "gradient_ics", "loss_landscape", "shift_attribution", "paired_movement"}


def test_the_probe_room_lists_the_promised_functions_and_no_module():
    assert set(dir(covshift.probe)) == set(covshift.probe.__all__) == PROMISED
    for name in PROMISED:
        function = getattr(covshift.probe, name)
        assert inspect.isfunction(function), name
        parameters = inspect.signature(function).parameters
        assert next(iter(parameters)) == "model", name
        assert inspect.getdoc(function)


def test_every_function_of_the_probe_room_has_a_module_of_another_name():
    for name in PROMISED:
        assert getattr(covshift.probe, name).__module__.rpartition(".")[2] != name

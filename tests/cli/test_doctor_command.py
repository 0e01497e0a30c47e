"""`doctor` names what is there, and says when something needed is not."""

import json
from importlib.metadata import PackageNotFoundError

import pytest

from specmoe.cli.doctor import packages


def test_it_says_that_specmoe_can_work_here(command_line):
    code, out, _ = command_line("doctor")
    assert code == 0
    assert "specmoe can work here" in out
    assert "transformers" in out


def test_json_lists_devices_backends_and_versions(command_line):
    code, out, _ = command_line("doctor", "--json")
    found = json.loads(out)
    by_name = {finding["what"]: finding for finding in found["findings"]}
    assert (code, found["ready"]) == (0, True)
    assert by_name["gloo"]["status"] == "usable"
    assert by_name["torch"]["detail"].startswith("2.")
    assert len(by_name) == len(found["findings"])
    assert not {"pytest", "ruff"} & set(by_name)


@pytest.mark.parametrize("detail", ["not installed", "0.0.1, "])
def test_a_package_that_is_not_there_or_too_old_is_missing(command_line, monkeypatch, detail):
    real = packages.version

    def version(name):
        if name != "scipy":
            return real(name)
        if detail == "not installed":
            raise PackageNotFoundError(name)
        return "0.0.1"

    monkeypatch.setattr(packages, "version", version)
    code, out, _ = command_line("doctor", "--json")
    found = json.loads(out)
    assert (code, found["ready"]) == (1, False)
    [scipy] = [finding for finding in found["findings"] if finding["what"] == "scipy"]
    assert scipy["status"] == "missing"
    assert scipy["detail"].startswith(detail)

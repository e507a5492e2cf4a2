"""`baleen cost`: published ratios beside computed ones, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from baleen.assets import nano_dir
from baleen.cli.cost import amount
from baleen.cli.main import main
from baleen.errors import UsageError


def test_json_holds_all_rules_and_the_published_ratios(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["cost", "v4-pro", "--context", "1M", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cache"]["entries"] == 5280404480
    assert found["cache"]["against"]["v3.2"]["published"] == 0.10
    rules = found["flops"]["rules"]
    assert len(rules) == 4
    assert rules["equivalent fp8"]["published"] == 0.27
    assert round(rules["equivalent fp8"]["ratio"], 3) == 0.265
    assert found["parameters"]["total"] == 1572997201763


def test_sessions_follow_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    fits = []
    for memory in ("16G", "64G"):
        main(["cost", "v4-flash", "--memory", memory, "--json"])
        fits.append(json.loads(capsys.readouterr().out)["sessions"]["fit"])
    assert fits[0] == {"131072": 36, "1048576": 4}
    assert fits[1]["131072"] >= 4 * 36


@pytest.mark.parametrize("model", ["v4-flash", "v4-pro-base", "v3.2", "gqa8", str(nano_dir())])
def test_every_model_has_a_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", model, "--context", "8K"]) == 0
    text = capsys.readouterr().out
    assert "8,192 tokens" in text
    assert "sessions" in text


def test_published_figures_stand_only_where_they_belong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["cost", "v4-flash"])
    assert "published: 7%" in capsys.readouterr().out
    main(["cost", "v4-flash", "--context", "128K"])
    assert "published" not in capsys.readouterr().out


def test_a_misspelt_preset_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "v4-flsh"]) == 2
    assert "v4-flash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"), [("131072", 131072), ("128K", 131072), ("1M", 1 << 20), ("64GiB", 1 << 36)]
)
def test_amounts_have_units(text: str, value: int) -> None:
    assert amount(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "1X", "M"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no amount"):
        amount(text)


def test_it_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from baleen.cli.main import main; sys.exit(main(['cost', 'v4-pro']))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)

"""The programs of the recipes do what their pages say, with callers at once, on real servers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import fresh_database

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240

PAIRS = [("postgres", "redis_server"), ("mariadb", "valkey"), ("sqlite", "redis_server")]


@pytest.fixture(params=PAIRS, ids=[" and ".join(pair) for pair in PAIRS])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """A fresh database, and a fresh Redis or Valkey."""
    database, redis = request.param
    if database == "sqlite":
        url = f"sqlite:///{tmp_path / 'shop.db'}"
    else:
        url = fresh_database(request.getfixturevalue(database))
    return {"database": url, "index": url, "redis": fresh_database(request.getfixturevalue(redis))}


def told_by(program: str, servers: dict[str, str], *options: str) -> dict[str, Any]:
    """Run a program as a reader would, and return what it prints."""
    words = [sys.executable, str(ROOT / "docs" / "recipes" / f"{program}.py")]
    source = (ROOT / "docs" / "recipes" / f"{program}.py").read_text()
    for name, url in servers.items():
        if f'"--{name}"' in source:
            words += [f"--{name}", url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    ended = subprocess.run(
        [*words, *options], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def test_fifty_clicks_at_once_make_one_order(servers: dict[str, str]) -> None:
    told = told_by("order_submit", servers)
    assert (told["clicks"], told["answers"], told["different_answers"], told["orders"]) == (50, 50, 1, 1)
    assert told["form_again"] == "the same order"
    assert told["used_token_for_another_order"] == told["token_of_another_customer"] == "refused"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_each_payment_pays_its_order_or_goes_back_and_each_callback_is_answered(
    servers: dict[str, str], seed: str
) -> None:
    told = told_by("payment_callback", servers, "--seed", seed)
    assert told["answered_as_the_normal_case"] == told["deliveries"] == 50
    assert told["orders"] == {"A-1": "paid", "A-2": "cancelled", "A-3": "paid", "A-5": "shipped"}
    assert told["refunded_twice"] == 0
    assert sorted(told["refunds"].values()) == ["already", "illegal", "superseded"]


def test_ten_of_stock_ten_are_sold_and_nobody_gets_two(servers: dict[str, str]) -> None:
    told = told_by("stock", servers)
    assert (told["tries"], told["errors"], told["different_answers_per_buyer"]) == (150, [], 1)
    assert (told["sold"], told["sold_twice_to"], told["stock"]) == (10, [], 0)
    assert told["version"] == 11


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_index_ends_as_the_table_is_whatever_the_order_of_arrival(
    servers: dict[str, str], seed: str
) -> None:
    told = told_by("search_index", servers, "--seed", seed)
    assert (told["changes"], told["deliveries"]) == (200, 600)
    assert told["index_is_the_table"]
    assert told["a_late_one"] == "superseded"

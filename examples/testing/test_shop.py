"""Tests of the shop: real deliveries, real retries, and an hour that takes no time."""

import pytest
import shop


class FakeBank:
    def __init__(self) -> None:
        self.down = False
        self.charged: list[int] = []

    def charge(self, amount: int) -> None:
        if self.down:
            raise ConnectionError("the bank is closed")
        self.charged.append(amount)


@pytest.fixture
def bank(monkeypatch):
    bank = FakeBank()
    monkeypatch.setattr(shop, "bank", bank)
    return bank


@pytest.fixture
def checkout(meshwire, bank):
    return meshwire.app("checkout", shop.app)


def test_an_order_is_charged_and_announced(meshwire, checkout, bank):
    assert checkout.deliver("orders", {"id": "7", "amount": 30}).status == "success"
    assert bank.charged == [30]
    assert checkout.get_state("7") == "paid"
    assert meshwire.published("paid", data={"order": "7"}, source="checkout")


def test_a_closed_bank_is_asked_again(meshwire, checkout, bank):
    bank.down = True
    assert checkout.deliver("orders", {"id": "8", "amount": 40}).status == "retry"
    meshwire.advance(60)
    bank.down = False
    meshwire.advance(3600)
    assert bank.charged == [40]
    assert len(meshwire.published("paid", data={"order": "8"})) == 1


def test_an_order_that_is_too_large_is_dropped(meshwire, checkout, bank):
    assert checkout.deliver("orders", {"id": "9", "amount": 1_000_000}).status == "drop"
    assert not meshwire.published("paid")


def test_other_apps_can_be_plain_functions(meshwire, checkout):
    parcels = []
    meshwire.app("warehouse", {"paid": lambda event: parcels.append(event["data"]["order"])})
    meshwire.publish("orders", {"id": "10", "amount": 5})
    assert parcels == ["10"]

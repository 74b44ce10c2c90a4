"""CUDA_VISIBLE_DEVICES against the cards that NVML lists."""

from __future__ import annotations

import pytest

from harness.power.source import Refused
from harness.power.visible_devices import CardId, visible_cards

A, B, C = (
    "GPU-aaaa1111-0000-0000-0000-000000000001",
    "GPU-aaaa2222-0000-0000-0000-000000000002",
    "GPU-cccc3333-0000-0000-0000-000000000003",
)
MIG = "MIG-12345678-0000-0000-0000-00000000000b"
CARDS = [CardId(A, "H100"), CardId(B, "H100", (MIG, "MIG-99999999-0000-0000-0000-00000000000b")), CardId(C, "H100")]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("0,2,-1,1", [0, 2]),  # cut at the first invalid entry, as CUDA does
        ("1,7,0", [1]),
        ("0,junk,1", [0]),
        ("0,²", [0]),
        (C, [2]),
        (C.lower(), [2]),
        ("GPU-cccc", [2]),
        (f"{B},{A}", [1, 0]),
        ("GPU-dddd,0", None),
        (MIG, [1]),
        ("MIG-1234", [1]),
        (f"MIG-{C}/1/0", [2]),  # legacy id: keeps its G
        (f"MIG-{C}/1/0,MIG-{C}/2/0", [2]),  # two instances, one card
        ("MIG-77777777", None),
        ("-1", None),
        ("3", None),
        ("NoDevFiles", None),
    ],
)
def test_mapping(visible: str | None, expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(Refused, match="is none of the 3 cards") as e:
            visible_cards(visible, CARDS)
        assert e.value.code == "NO_SOURCE"
    else:
        assert visible_cards(visible, CARDS) == expected


@pytest.mark.parametrize("visible", ["", "  "])
def test_empty_is_a_cpu_run(visible: str) -> None:
    with pytest.raises(Refused, match=r"hides every GPU.*power=rapl or power=unmetered"):
        visible_cards(visible, CARDS)


def test_repeats_and_ambiguous_prefixes_are_refused() -> None:
    with pytest.raises(Refused, match="names '0' twice"):
        visible_cards("0,1,0", CARDS)
    with pytest.raises(Refused, match="beginning of 2 UUIDs"):
        visible_cards("GPU-aaaa", CARDS)


def test_no_cards() -> None:
    with pytest.raises(Refused, match="lists no card"):
        visible_cards(None, [])


def test_an_index_needs_bus_order_where_cards_differ() -> None:
    mixed = [CardId(A, "H100"), CardId(C, "L4")]
    with pytest.raises(Refused, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_cards("0", mixed)
    assert visible_cards("0", mixed, "PCI_BUS_ID") == [0]
    assert visible_cards(C, mixed) == [1]
    assert visible_cards(None, mixed) == [0, 1]

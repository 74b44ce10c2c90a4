"""Which physical cards a run uses: CUDA_VISIBLE_DEVICES against the cards that NVML lists. Pure;
standard library only.

NVML ignores CUDA_VISIBLE_DEVICES and orders cards by PCI bus; CUDA's default order is fastest first
(CUDA C++ programming guide, environment variables). So an index is trusted only where both orders
must agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.power.source import Refused

UNMETERED = "Choose power=unmetered to run without a meter."


@dataclass(frozen=True)
class CardId:
    """A physical card as NVML lists it, in NVML order."""

    uuid: str  # GPU-xxxxxxxx-…
    name: str
    mig_uuids: tuple[str, ...] = ()  # MIG-… ids of its instances


def visible_cards(visible: str | None, cards: list[CardId], device_order: str | None = None) -> list[int]:
    """Positions in `cards` of the physical cards that CUDA shows, in CUDA's order and without
    repeats.

    `visible` is the value of CUDA_VISIBLE_DEVICES (None: not set), `device_order` that of
    CUDA_DEVICE_ORDER. A list is cut at its first invalid entry, as CUDA does. A MIG id stands for
    its parent card. Raises Refused where no card is shown, an entry is repeated, a UUID prefix is
    ambiguous, or an index could mean different cards.
    """
    if not cards:
        raise Refused("NO_SOURCE", f"the NVIDIA driver lists no card. {UNMETERED}")
    if visible is None:
        return list(range(len(cards)))
    shown = f"CUDA_VISIBLE_DEVICES={visible!r}"
    entries = [e.strip() for e in visible.split(",")]
    if entries == [""]:
        raise Refused(
            "NO_SOURCE",
            f"{shown} hides every GPU, so there is none to meter. Unset it, or choose power=rapl or power=unmetered.",
        )
    positions: list[int] = []
    seen: set[str] = set()
    for entry in entries:
        position = _position(entry, cards, shown)
        if position is None:
            break
        key = entry.lower() if entry.upper().startswith("MIG-") else str(position)
        if key in seen:
            raise Refused("NO_SOURCE", f"{shown} names {entry!r} twice; CUDA refuses such a list. Name each card once.")
        seen.add(key)
        if entry.isdecimal() and device_order != "PCI_BUS_ID" and len({c.name for c in cards}) > 1:
            raise Refused(
                "NO_SOURCE",
                f"{shown} uses an index on a host with different cards, and CUDA_DEVICE_ORDER={device_order!r}: CUDA and NVML may"
                " count them differently. Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or give UUIDs (nvidia-smi -L).",
            )
        if position not in positions:
            positions.append(position)
    if not positions:
        raise Refused(
            "NO_SOURCE",
            f"{shown}: {entries[0]!r} is none of the {len(cards)} cards that NVML lists, so CUDA shows no GPU."
            " See nvidia-smi -L for what there is.",
        )
    return positions


def _position(entry: str, cards: list[CardId], shown: str) -> int | None:
    """The card that one entry names; None where CUDA would find it invalid."""
    if entry.isdecimal():
        return int(entry) if int(entry) < len(cards) else None
    text = entry.lower()
    # before driver 470: MIG-GPU-<parent uuid>/<gpu instance>/<compute instance>
    if text.startswith("mig-gpu-"):
        parent = text.removeprefix("mig-").split("/")[0]
        matches = [i for i, c in enumerate(cards) if c.uuid.lower() == parent]
    elif text.startswith("mig-"):
        matches = [i for i, c in enumerate(cards) if any(m.lower().startswith(text) for m in c.mig_uuids)]
    elif text.startswith("gpu-"):
        matches = [i for i, c in enumerate(cards) if c.uuid.lower().startswith(text)]
    else:
        return None
    if len(matches) > 1:
        raise Refused(
            "NO_SOURCE",
            f"{shown}: {entry!r} is the beginning of {len(matches)} UUIDs. Give more of its digits (nvidia-smi -L).",
        )
    return matches[0] if matches else None

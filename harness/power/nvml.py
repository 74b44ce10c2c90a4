"""NVIDIA GPUs through NVML. The only file that imports `pynvml`; everything else comes from the
standard library.

One `nvmlDeviceGetFieldValues` per poll reads instant power (field 186), average power (185) and the
energy counter (83). Support is probed by calling, never inferred from the architecture (Ampere's
number covers two different sensors).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from harness.power.interference import THROTTLE_FIELDS
from harness.power.source import GPU_GONE, NO_PERMISSION, NO_VALUE, OK, READ_FAILED, Card, Reading, Refused
from harness.power.visible_devices import UNMETERED, CardId, visible_cards
from harness.units import J_PER_MJ, W_PER_MW

FIELD_AVERAGE, FIELD_INSTANT, FIELD_ENERGY, FIELD_MEMORY_TEMP = 185, 186, 83, 82
# nvmlValueType_t
_VALUE = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
_NOT_SUPPORTED, _NO_FUNCTION = 3, 13
_PROBES = 3  # a single bad answer under fast polling is known to happen
T = TypeVar("T")


class NvmlSource:
    """The cards that CUDA_VISIBLE_DEVICES shows. Units: mJ, mW as NVML gives them."""

    energy_unit_j = J_PER_MJ
    power_unit_w = W_PER_MW
    boundary = "gpu_board"
    exclusive = True

    def __init__(self, cuda_visible: str | None, mig_whole_card: bool = False, period_s: float = 0.01) -> None:
        self.cuda_visible = cuda_visible
        self.period_s = period_s
        self.mig_whole_card = mig_whole_card
        self._handles: list[Any] = []
        # per card: field values work; else the older calls, one value each
        self._batched: list[bool] = []

    def open(self) -> list[Card]:
        _init()
        handles = _handles()
        ids = [CardId(_required(h, "UUID"), _required(h, "Name"), _mig_uuids(h)) for h in handles]
        wanted = visible_cards(self.cuda_visible, ids, os.environ.get("CUDA_DEVICE_ORDER"))
        self._handles = [handles[i] for i in wanted]
        self._batched = [_batched(h) for h in self._handles]
        return [self._describe(k, i) for k, i in enumerate(wanted)]

    def _describe(self, card: int, index: int) -> Card:
        handle = self._handles[card]
        uuid, name = _required(handle, "UUID"), _required(handle, "Name")
        limit_mw = _ask(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        mig = _ask(lambda: pynvml.nvmlDeviceGetMigMode(handle))
        if mig and mig[0] and not self.mig_whole_card:
            raise Refused(
                "NO_SOURCE",
                f"MIG is on on {uuid} ({name}): NVML measures the whole card only, so a slice's joules do not"
                f" exist. Set power.mig_whole_card=true to label the whole card's joules as such. {UNMETERED}",
            )
        support = self._support(card)
        if not any(rc == OK for rc in support.values()):
            denied = NO_PERMISSION in support.values()
            why = ", ".join(f"{quantity}: {_error(rc)}" for quantity, rc in support.items())
            raise Refused(
                "NO_PERMISSION" if denied else "NO_SOURCE",
                f"{uuid} ({name}) gives neither energy nor power ({why}). {UNMETERED}",
            )
        batched = self._batched[card]
        return Card(
            uuid,
            name,
            label="nvml-counter",
            counter="ticks" if support["energy"] == OK else None,
            average_label="nvml-average",
            instant_label="nvml-instant" if batched else "nvml-power-usage",
            momentary=batched,
            limit_w=None if not limit_mw else limit_mw * W_PER_MW,
            codes=("UNCALIBRATED",),
            mig=bool(mig and mig[0]),
            driver=_ask(pynvml.nvmlSystemGetDriverVersion),
            facts={
                "index": index,
                "architecture": _ask(lambda: pynvml.nvmlDeviceGetArchitecture(handle)),
                "nvml": _ask(pynvml.nvmlSystemGetNVMLVersion),
                "support": support,
                "power_call": "fields 185, 186" if batched else "nvmlDeviceGetPowerUsage",
            },
        )

    def _support(self, card: int) -> dict[str, int]:
        """Return code per quantity: the best of a few tries, as a zero or an error now and then
        means nothing."""
        best = {"energy": READ_FAILED, "instant": READ_FAILED, "average": READ_FAILED}
        for _ in range(_PROBES):
            r = self.read(card)
            for name, value, rc in (
                ("energy", r.energy, r.rc_energy),
                ("instant", r.instant, r.rc_instant),
                ("average", r.average, r.rc_average),
            ):
                if best[name] != OK:
                    best[name] = _NOT_SUPPORTED if rc == OK and not value else rc
            if all(rc == OK for rc in best.values()):
                break
            time.sleep(0.005)
        return best

    def read(self, card: int) -> Reading:
        handle = self._handles[card]
        if not self._batched[card]:
            return _single_reads(handle)
        try:
            values = pynvml.nvmlDeviceGetFieldValues(handle, [FIELD_INSTANT, FIELD_AVERAGE, FIELD_ENERGY])
        except pynvml.NVMLError as e:
            code = _code(e)
            return Reading(None, None, None, code, code, code, None)
        instant, average, energy = (_field(v) for v in values)
        return Reading(energy[0], instant[0], average[0], energy[1], instant[1], average[1], int(values[2].timestamp))

    def watch(self, card: int) -> dict[str, Any] | None:
        handle = self._handles[card]
        limit_mw = _ask(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        clocks = [
            _ask(lambda k=k: pynvml.nvmlDeviceGetApplicationsClock(handle, k))
            for k in (pynvml.NVML_CLOCK_GRAPHICS, pynvml.NVML_CLOCK_MEM)
        ]
        fields = _ask(lambda: pynvml.nvmlDeviceGetFieldValues(handle, [*THROTTLE_FIELDS.values(), FIELD_MEMORY_TEMP]))
        values = [_field(v)[0] for v in fields] if fields else [None] * (len(THROTTLE_FIELDS) + 1)
        processes = _ask(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return {
            "limit_w": None if not limit_mw else limit_mw * W_PER_MW,
            "clock_setting_mhz": None if None in clocks else clocks,
            "sm_clock_mhz": _ask(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "mask": _ask(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            "throttle_ns": values[:-1],
            "temp_c": _ask(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "memory_temp_c": values[-1],
            "pids": None if processes is None else [int(p.pid) for p in processes],
        }

    def close(self) -> None:
        _shutdown()


def probe() -> dict[str, Any]:
    """What `harness doctor` prints: `reason` and `do` are None where at least one card can be
    metered.

    Keys: `reason`, `code`, `do`, `driver`, `nvml`, and `cards`: a list of {uuid, name, index,
    limit_w, mig, counter, instant, average} (the last three: "yes" or why not).
    """
    out: dict[str, Any] = {"reason": None, "code": None, "do": None, "driver": None, "nvml": None, "cards": []}
    source = NvmlSource(None, mig_whole_card=True)
    try:
        cards = source.open()
    except Refused as e:
        return {**out, "reason": e.reason, "code": e.code, "do": UNMETERED}
    out["driver"], out["nvml"] = cards[0].driver, cards[0].facts["nvml"]
    for c in cards:
        seen = {k: "yes" if rc == OK else _error(rc) for k, rc in c.facts["support"].items()}
        seen["counter"] = seen.pop("energy")
        known = {"uuid": c.uuid, "name": c.name, "index": c.facts["index"], "limit_w": c.limit_w, "mig": c.mig}
        out["cards"].append(known | seen)
    source.close()
    return out


def _init() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as e:
        code = _code(e)
        why = {
            12: "libnvidia-ml.so.1 was not found: there is no NVIDIA driver here, or the container hides it (docker run --gpus all)",
            9: "the NVIDIA driver is not loaded (see nvidia-smi, dmesg)",
            18: "library and kernel module of the NVIDIA driver differ in version: reboot, or reload the module",
            NO_PERMISSION: "this user may not talk to the NVIDIA driver (look at the rights of /dev/nvidiactl)",
        }.get(code, _error(code))
        raise Refused(
            "NO_PERMISSION" if code == NO_PERMISSION else "NO_DRIVER", f"NVML cannot start: {why}. {UNMETERED}"
        ) from e


def _shutdown() -> None:
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return  # the driver went away first; there is nothing left to release


def _handles() -> list[Any]:
    """Handles of all cards in NVML order. A card that cannot be opened is an error here: its index
    would shift others."""
    try:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as e:
        code = _code(e)
        kind = "GPU_LOST" if code in GPU_GONE else "NO_PERMISSION" if code == NO_PERMISSION else "NO_SOURCE"
        raise Refused(kind, f"NVML cannot list the cards: {_error(code)}. See nvidia-smi. {UNMETERED}") from e


def _required(handle: Any, what: str) -> str:
    try:
        value = pynvml.nvmlDeviceGetUUID(handle) if what == "UUID" else pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as e:
        raise Refused("NO_SOURCE", f"NVML does not tell a card's {what}: {_error(_code(e))}. {UNMETERED}") from e
    return value if isinstance(value, str) else value.decode()


def _mig_uuids(handle: Any) -> tuple[str, ...]:
    mode = _ask(lambda: pynvml.nvmlDeviceGetMigMode(handle))
    if not (mode and mode[0]):
        return ()
    uuids = []
    for i in range(_ask(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
        instance = _ask(lambda i=i: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i))
        uuid = instance and _ask(lambda h=instance: pynvml.nvmlDeviceGetUUID(h))
        if uuid:
            uuids.append(uuid)
    return tuple(uuids)


def _ask(call: Callable[[], T]) -> T | None:
    """The answer, or None where this card or driver has none."""
    try:
        return call()
    except pynvml.NVMLError:
        return None


def _batched(handle: Any) -> bool:
    """Whether the card answers field values at all (drivers before 530 or so lack the power
    fields)."""
    try:
        values = pynvml.nvmlDeviceGetFieldValues(handle, [FIELD_INSTANT, FIELD_AVERAGE])
    except pynvml.NVMLError as e:
        return _code(e) not in (_NOT_SUPPORTED, _NO_FUNCTION)
    # 2: field unknown to this driver
    return any(v.nvmlReturn not in (_NOT_SUPPORTED, 2, _NO_FUNCTION) for v in values)


def _single_reads(handle: Any) -> Reading:
    """Older interface. `PowerUsage` is momentary on some sensors and a mean on others, so it stands
    in the instant column."""
    energy, rc_energy = _call(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    power, rc_power = _call(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
    return Reading(energy, power, None, rc_energy, rc_power, NO_VALUE, None)


def _call(call: Callable[[], int]) -> tuple[int | None, int]:
    try:
        return int(call()), OK
    except pynvml.NVMLError as e:
        return None, _code(e)


def _field(value: Any) -> tuple[int | None, int]:
    if value.nvmlReturn != OK:
        return None, int(value.nvmlReturn)
    name = _VALUE.get(value.valueType)
    try:
        return (None, READ_FAILED) if name is None else (int(getattr(value.value, name)), OK)
    except (ValueError, OverflowError):  # a double that is no number
        return None, READ_FAILED


def _code(error: Any) -> int:
    return int(error.value)


def _error(code: int) -> str:
    """What NVML calls a return code."""
    if code == NO_VALUE:
        return "no such reading"
    try:
        return f"{pynvml.nvmlErrorString(code)} ({code})"
    except pynvml.NVMLError:  # no library to ask
        return f"NVML error {code}"

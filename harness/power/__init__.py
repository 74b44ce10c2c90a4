"""Joules of a run: a sensor, a sampler in a process of its own, a pure estimator.

    meter.py            START HERE: what a run uses
    source.py           what a sensor is: cards, readings, refusals
    nvml.py rapl.py replay.py    the sensors
    visible_devices.py  CUDA_VISIBLE_DEVICES -> cards (pure)
    sampler.py          the process that polls
    segment_process.py  that process as the meter sees it
    segment_file.py     the append-only files on disk
    table.py            all segments as one parquet table
    series.py           rows of a segment -> ticks, gaps, resets (pure)
    estimate.py         window -> joules, error bar, codes (pure)
    errorbar.py         times of ticks, and standard errors (pure)
    plausibility.py interference.py    checks of the joules (pure)
    reason_codes.py     codes and their verdicts
    sensor.py           a GPU's sensor card, measured once and stored

The sampler imports the standard library and `pynvml` only, so that it is ready within a second.
Boundaries: `nvml` is the board of the GPU with its memory, without host and cooling; `rapl` is CPU
packages and DRAM of the whole host.
"""

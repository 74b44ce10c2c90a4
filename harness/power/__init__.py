"""Joules of a run: a sensor, a sampler in a process of its own, a pure estimator.

    source.py   what a sensor is: cards, readings, refusals        nvml.py rapl.py replay.py   the three sensors
    cards.py    CUDA_VISIBLE_DEVICES -> physical cards (pure)      segment.py  the append-only files on disk
    sampler.py  the process that polls                             series.py   rows of a segment -> ticks, gaps, resets (pure)
    codes.py    reason codes and their verdicts                    estimate.py window -> joules, error bar, codes (pure)
    comb.py     when ticks happened (pure)                        errorbar.py  parts of the standard error (pure)
    sensor.py   a GPU's sensor card: measured once, kept
    meter.py    START HERE: what a run holds in its hand

The sampler imports the standard library and `pynvml` only, so that it is ready within a second. Boundaries: `nvml` is the
board of the GPU with its memory, without host and cooling; `rapl` is CPU packages and DRAM of the whole host.
"""

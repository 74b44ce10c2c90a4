"""Joules of a run: a sensor, a sampler in a process of its own, a pure estimator.

    meter.py     START HERE: what a run holds in its hand
    source.py    what a sensor is: cards, readings, refusals       nvml.py rapl.py replay.py   the sensors
    sampler.py   the process that polls                            segment_process.py          its life, as the meter sees it
    segment_file.py  the append-only files on disk                 table.py                    all of them as one parquet table
    series.py    rows of a segment -> ticks, gaps, resets (pure)   errorbar.py                 when ticks happened; errors (pure)
    estimate.py  window -> joules, error bar, codes (pure)         plausibility.py interference.py  what stands beside it (pure)
    sensor.py    a GPU's sensor card: measured once, kept          visible_devices.py          CUDA_VISIBLE_DEVICES -> cards (pure)
    reason_codes.py  codes and their verdicts

The sampler imports the standard library and `pynvml` only, so that it is ready within a second. Boundaries: `nvml` is the
board of the GPU with its memory, without host and cooling; `rapl` is CPU packages and DRAM of the whole host.
"""

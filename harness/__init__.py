"""A scaling-experiment harness: loss, FLOP and joules of a ladder of small transformers in one ledger, and their laws.

Reading order: `schema` (what a run may be), `ladder` (config to rung), `train.run` (START HERE for the path of one run),
`records` (what a run leaves), `curves` (records to arrays), `laws` (arrays to fits), `report` (fits to pages), `cli` (verbs).
"""

__version__ = "0.1.0"

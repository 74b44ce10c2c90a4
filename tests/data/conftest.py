"""Text corpora are tested without a network: the Hub's libraries read this when they are
imported.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else it warns when a later test forks

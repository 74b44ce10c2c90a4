"""Corpora of text and facts: where training and validation tokens come from.

`harness.data.corpora` opens them.
"""

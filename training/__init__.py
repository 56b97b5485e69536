"""How the small pair is made: a dense Mistral on Python's standard library, upcycled into a Mixtral.

A recipe, not a part of the engine: the engine never imports it.  `python -m training run --out DIR` retrains the pair.
"""

"""Reading checkpoints: which file holds which tensor, and a pair of models from them."""

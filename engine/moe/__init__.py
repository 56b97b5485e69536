"""The MoE layers of a transformers model, and the backends that compute their experts."""

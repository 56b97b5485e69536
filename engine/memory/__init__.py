"""Host memory, device slots and the link that copies between them; it knows bytes and slots, no models.

Read in this order: `layout` (an expert's tensors in one block), `host_store`, `slot_buffer`, `copiers`, `link`.
"""

"""Where the weights of experts lie and how they move: host store, slot buffer, and the link between them."""

"""Our own policies: eviction by expected next use, prefetching into an idle link, chosen draft lengths."""

"""Array operations without state: resizing, pooling, batched products, normalisation."""

"""The composition root: settings in, a working Platform or Worker out. The only package that imports adapters."""

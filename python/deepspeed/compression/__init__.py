"""Model compression: only the helpers by dotted name exist so far."""


def _later(name: str):

    def raises(*_args, **_kwargs):
        raise NotImplementedError(f"deepspeed.compression.{name}: compression is not built yet")

    return raises


init_compression = _later("init_compression")
redundancy_clean = _later("redundancy_clean")

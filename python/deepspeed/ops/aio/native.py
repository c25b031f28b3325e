"""The functions of the async_io operator as its builder loads them."""
from deepspeed._C import aio_handle, aio_read, aio_write, deepspeed_memcpy

__all__ = ["aio_handle", "aio_read", "aio_write", "deepspeed_memcpy"]

"""The functions of the pin_memory operator as its builder loads them."""
from deepspeed._C import pin_handle

__all__ = ["pin_handle"]

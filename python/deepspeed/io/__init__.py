"""Writers that torch.save takes in the place of a file: FastFileWriter past the page cache, PyFileWriter as Python does it,
MockFileWriter for finding out what the rest costs.

    pinned = handle.new_cpu_locked_tensor(64 * 2**20, torch.empty(0, dtype=torch.uint8))
    writer = FastFileWriter(path, FastFileWriterConfig(dnvme_handle=handle, pinned_tensor=pinned))
    torch.save(state, writer)
    writer.close()
"""
from deepspeed.io.writers import FastFileWriter, FastFileWriterConfig, MockFileWriter, PyFileWriter

__all__ = ["FastFileWriter", "FastFileWriterConfig", "MockFileWriter", "PyFileWriter"]

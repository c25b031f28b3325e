// CRC-32 as zip, zlib and gzip use it (polynomial 0x04C11DB7, bits reflected; ISO 3309, RFC 1952). Threads: pure
// functions.
#pragma once

#include <cstdint>

namespace deepscale::kernels {

/// Of `bytes` bytes; `before` is that of the bytes in front of them, 0 where there are none.
[[nodiscard]] uint32_t crc32(const void* data, int64_t bytes, uint32_t before = 0);

/// That of two pieces of bytes, one behind the other, from those of each; second_bytes is the length of the second.
[[nodiscard]] uint32_t crc32_of_both(uint32_t first, uint32_t second, int64_t second_bytes);

}  // namespace deepscale::kernels

// Numbers of the zip format (PKWARE's APPNOTE.TXT 6.3), for zip_file.cpp and zip_stream.cpp.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

namespace deepscale::zip {

static_assert(std::endian::native == std::endian::little, "the format is little endian, and so is every target");

inline constexpr uint32_t kLocalMark = 0x04034b50, kEntryMark = 0x02014b50, kChecksumMark = 0x08074b50,
                          kEndMark = 0x06054b50, kEnd64Mark = 0x06064b50, kLocator64Mark = 0x07064b50;
inline constexpr int64_t kLocalBytes = 30, kEntryBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20;
inline constexpr uint16_t kExtra64 = 0x0001;
inline constexpr uint32_t kIn64 = 0xFFFFFFFF;  ///< the value stands in the 64-bit extension
inline constexpr uint16_t kCountIn64 = 0xFFFF;

/// The bytes of numbers, one after the other.
template <typename... T>
std::string packed(T... values) {
  std::string bytes;
  (bytes.append(reinterpret_cast<const char*>(&values), sizeof(values)), ...);
  return bytes;
}

}  // namespace deepscale::zip

// Element types that the torch-free folders know, with their sizes. The torch-bound folders convert to and from
// at::ScalarType in comm/communicator.cpp.
#pragma once

#include <cstdint>
#include <string_view>

namespace deepscale {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kInt8, kUInt8, kInt16, kInt32, kInt64, kBool };

/// Bytes of one element.
constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
    case DType::kInt16:
      return 2;
    default:
      return 1;
  }
}

constexpr std::string_view name_of(DType dtype) {
  constexpr std::string_view kNames[] = {"float32", "bfloat16", "float16", "float64", "int8",
                                         "uint8",   "int16",    "int32",   "int64",   "bool"};
  return kNames[static_cast<uint8_t>(dtype)];
}

}  // namespace deepscale

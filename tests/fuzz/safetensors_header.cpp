// The header of a safetensors file. Input: eight bytes for the size of the data part (little endian), then the JSON.
#include <cstring>

#include "base/dtype.h"
#include "checkpoint/safetensors.h"
#include "deepscale/error.h"
#include "fuzz_support.h"

using deepscale::fuzz::claim;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t given = 0;
  if (size < sizeof(given)) return 0;
  std::memcpy(&given, data, sizeof(given));
  const auto data_bytes = static_cast<int64_t>(given >> 1);  // a file's size is never negative
  const std::string_view json = deepscale::fuzz::text_of(data + sizeof(given), size - sizeof(given));
  try {
    const auto header = deepscale::parse_safetensors_header(json, data_bytes, "f");
    int64_t position = 0;
    for (const auto& entry : header.entries) {
      claim(entry.begin == position && entry.end >= entry.begin, "tensors stand end to end");
      position = entry.end;
      int64_t bytes = size_of(entry.dtype);
      for (const int64_t extent : entry.shape) {
        claim(extent >= 0, "sizes are not negative");
        bytes = extent == 0 ? 0 : bytes * extent;  // the sanitizer notices what does not fit
        if (bytes == 0) break;
      }
      claim(bytes == entry.end - entry.begin, "a tensor has the bytes that its shape needs");
    }
    claim(position == data_bytes, "tensors fill the data part");
  } catch (const deepscale::CheckpointError& error) {
    deepscale::fuzz::claim_readable(error.what());
  }
  return 0;
}

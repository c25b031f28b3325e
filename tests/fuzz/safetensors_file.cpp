// A whole safetensors file: opened, every tensor read, and read again in parts.
#include <algorithm>
#include <string>

#include "checkpoint/safetensors.h"
#include "deepscale/error.h"
#include "fuzz_support.h"

using deepscale::fuzz::claim;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const deepscale::fuzz::FileRemover kRemover;
  const std::string name = deepscale::fuzz::as_file(deepscale::fuzz::text_of(data, size));
  try {
    auto file = deepscale::SafetensorsFile::open(name);
    for (const auto& entry : file.header().entries) {
      const int64_t bytes = entry.end - entry.begin;
      claim(bytes <= static_cast<int64_t>(size), "a tensor is not larger than its file");
      std::string whole(static_cast<size_t>(bytes), '\0');
      file.read(entry, whole.data());
      const int64_t half = bytes / 2;
      std::string part(static_cast<size_t>(bytes - half), '\0');
      file.read(entry, half, bytes - half, part.data());
      claim(whole.compare(static_cast<size_t>(half), std::string::npos, part) == 0,
            "a part is what the whole has there");
    }
    (void)file.find("weight");
  } catch (const deepscale::CheckpointError& error) {
    deepscale::fuzz::claim_readable(error.what());
  }
  return 0;
}

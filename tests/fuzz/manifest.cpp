// The manifest of a checkpoint, of one rank or of all. Input: JSON; its checksum is put right, because nobody guesses
// one.
#include "checkpoint/manifest.h"

#include <set>

#include "base/shape.h"
#include "config/json_text.h"
#include "deepscale/error.h"
#include "fuzz_support.h"

using deepscale::Manifest;
using deepscale::fuzz::claim;

namespace {

void check(const Manifest& manifest, bool is_part) {
  std::set<std::string> names;
  for (const auto& file : manifest.files) {
    claim(names.insert(file.name).second, "a file is listed once");
    claim(!file.name.empty() && file.name.find_first_of("/\\:") == std::string::npos && file.name != "..",
          "a file is in the checkpoint's folder");
    claim(file.checksums.bytes >= 0, "sizes are not negative");
  }
  for (const auto& tensor : manifest.tensors) {
    int64_t position = 0;
    for (const auto& slice : tensor.slices) {
      claim(slice.numel >= 0 && slice.begin >= 0 && slice.offset >= position, "slices are in order");
      const auto& file = manifest.files.at(static_cast<size_t>(slice.file));
      claim(slice.begin + slice.numel * size_of(tensor.dtype) <= file.checksums.bytes, "a slice is inside its file");
      position = slice.offset + slice.numel;  // the sanitizer notices what does not fit
    }
    claim(is_part ? position <= tensor.numel() : position == tensor.numel(), "a tensor is whole");
  }
}

void read(std::string_view text) {
  for (const bool is_part : {false, true}) {
    try {
      const Manifest manifest = deepscale::parse_manifest(text, "f", is_part);
      check(manifest, is_part);
      const std::string printed = manifest_text(manifest);
      claim(manifest_text(deepscale::parse_manifest(printed, "f", is_part)) == printed, "what is printed reads back");
      if (is_part) (void)deepscale::join_manifests({manifest});
    } catch (const deepscale::CheckpointError& error) {
      deepscale::fuzz::claim_readable(error.what());
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = deepscale::fuzz::text_of(data, size);
  read(text);
  try {
    deepscale::config::Json json = deepscale::config::parse_json_text(text);
    if (!json.is_object()) return 0;
    json.erase("checksum");
    json["checksum"] = deepscale::checksum_text(deepscale::checksum_of(json.dump()));
    read(json.dump());
  } catch (const deepscale::ConfigError&) {
    // Not JSON: said to be damaged above.
  }
  return 0;
}

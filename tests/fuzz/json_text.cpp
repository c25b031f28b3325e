// The text layer below the configuration and the headers of checkpoints: comments, Infinity, base64.
#include "config/json_text.h"

#include "deepscale/error.h"
#include "fuzz_support.h"

using deepscale::config::Json;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = deepscale::fuzz::text_of(data, size);
  (void)deepscale::config::decode_base64url(text);
  try {
    const Json value = deepscale::config::parse_json_text(text);
    const std::string printed = deepscale::config::json_to_text(value);
    deepscale::fuzz::claim(deepscale::config::json_to_text(deepscale::config::parse_json_text(printed)) == printed,
                           "printed text reads back");
  } catch (const deepscale::ConfigError& error) {
    deepscale::fuzz::claim_readable(error.what());
  }
  return 0;
}

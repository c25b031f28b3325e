// ds_config.json, whole: the text is refused with ConfigError, or accepted, and what an accepted configuration prints
// reads back as the same.
#include "deepscale/config.h"

#include "fuzz_support.h"

using deepscale::Config;
using deepscale::ConfigError;
using deepscale::ParseMode;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = deepscale::fuzz::text_of(data, size);
  try {
    const Config config = Config::parse(text, 2);
    const std::string printed = config.to_json();
    deepscale::fuzz::claim(Config::parse(printed, 2).to_json() == printed, "a printed configuration reads back");
    (void)config.to_text();
  } catch (const ConfigError& error) {
    deepscale::fuzz::claim(*error.what() != '\0', "an error says something");
  }
  try {
    (void)Config::parse(text, 1, ParseMode::kZeroInit);
  } catch (const ConfigError&) {
  }
  return 0;
}

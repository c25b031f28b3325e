#include "platform/text_reader.h"

#include <fstream>
#include <sstream>
#include <utility>

namespace deepscale {

std::optional<std::string> read_text_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

}  // namespace deepscale

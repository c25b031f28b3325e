// docs/config.md, generated from the option table.
#pragma once

#include <string>

namespace deepscale::config {

/// The page as Markdown.
std::string documentation();

}  // namespace deepscale::config
